"""Rasters as they come: one file or many, coarser bands, STAC items, what is refused; and jobs that are stopped."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import zarr

sys.path.insert(0, str(Path(__file__).parent))
from archives import unpack  # noqa: E402
from embed_cases import BANDS, Small, contract, numbers, write  # noqa: E402
from stac_server import server  # noqa: E402

import dsengine
from dsengine import cli
from dsengine.corpus.schema import S1_BANDS, S2_BANDS
from dsengine.errors import RunError, UsageError
from dsengine.export.scene import find_scenes, opened
from dsengine.export.tiles import Span


@pytest.fixture(scope="module")
def encoder() -> Small:
    torch.manual_seed(0)
    return Small(14).eval()


def stored(path: Path, *, s2_offset: str = "0", **only: object) -> np.ndarray:
    """All pixels of the one scene at `path`, as integers."""
    scene, = find_scenes(path, contract(), s2_offset=s2_offset, **only)
    with opened(scene, -32768) as reader:
        return reader.read(Span(0, scene.shape[0]), Span(0, scene.shape[1]))


def expected(values: np.ndarray) -> np.ndarray:
    """What a corpus stores of `numbers`: reflectance x 10000, dB x 100."""
    return np.stack([np.rint(v if band in S2_BANDS else v.astype(np.float64) * 100) for v, band in zip(values, BANDS)]).astype(np.int16)


def test_one_file_many_files_and_any_order_of_bands_are_the_same_scene(tmp_path: Path) -> None:
    values = numbers(40, 48)
    want = expected(values)
    np.testing.assert_array_equal(stored(write(tmp_path / "all.tif", values)), want)
    np.testing.assert_array_equal(stored(write(tmp_path / "unnamed.tif", values, bands=None)), want)  # 14 bands in the contract's order
    shuffled = np.random.default_rng(0).permutation(14)
    np.testing.assert_array_equal(stored(write(tmp_path / "mixed.tif", values[shuffled], bands=tuple(BANDS[k] for k in shuffled))), want)
    for k, band in enumerate(BANDS):
        write(tmp_path / "each" / f"T13TDE_{band.lower()}.tif", values[k:k + 1], bands=None)
    np.testing.assert_array_equal(stored(tmp_path / "each"), want)
    write(tmp_path / "parts" / "s2" / "a.tif", values[:12], bands=None)
    write(tmp_path / "parts" / "s1" / "b.tif", values[12:], bands=None)
    np.testing.assert_array_equal(stored(tmp_path / "parts"), want)


def test_a_folder_of_scenes_is_paired_by_stem(tmp_path: Path) -> None:
    for seed, name in enumerate(("north", "south")):
        values = numbers(24, 24, seed=seed)
        write(tmp_path / "S2" / f"{name}.tif", values[:12])
        write(tmp_path / "S1" / f"{name}.tif", values[12:], bands=S1_BANDS)
    scenes = find_scenes(tmp_path, contract(), s2_offset="0")
    assert [scene.name for scene in scenes] == ["north", "south"]
    with opened(scenes[1], -32768) as reader:
        np.testing.assert_array_equal(reader.read(Span(0, 24), Span(0, 24)), expected(numbers(24, 24, seed=1)))


@pytest.mark.parametrize("rows, columns", [(Span(0, 45), Span(0, 50)), (Span(7, 44), Span(13, 49)), (Span(44, 45), Span(5, 6))])
def test_coarser_bands_are_repeated_wherever_a_window_begins(tmp_path: Path, rows: Span, columns: Span) -> None:
    values = numbers(45, 50)
    coarse = values.copy()
    for k, band in enumerate(BANDS):
        factor = 2 if band in ("B05", "B06", "B11") else 6 if band == "B01" else 1
        small = values[k:k + 1, ::factor, ::factor]
        write(tmp_path / f"x_{band}.tif", small, bands=None, pixel=10.0 * factor)
        coarse[k] = small[0].repeat(factor, 0).repeat(factor, 1)[:45, :50]
    scene, = find_scenes(tmp_path, contract(), s2_offset="0")
    with opened(scene, -32768) as reader:
        found = reader.read(rows, columns)
    np.testing.assert_array_equal(found, expected(coarse)[:, rows.start:rows.stop, columns.start:columns.stop])


def test_the_offset_of_new_baselines_is_taken_out_and_said(tmp_path: Path) -> None:
    values = numbers(24, 24)
    shifted = values.copy()
    shifted[:12] += 1000
    path = write(tmp_path / "S2B_MSIL2A_20230610T160829_N0509_R140.tif", shifted)
    np.testing.assert_array_equal(stored(path, s2_offset="-1000"), expected(values))
    np.testing.assert_array_equal(stored(path, s2_offset="auto"), expected(values))  # the baseline stands in the name
    assert find_scenes(path, contract())[0].facts["s2_offset_reason"] == "product name 05.09"


def item(folder: Path, values: np.ndarray, *, boa: bool | None = None) -> Path:
    """A STAC item whose assets lie beside it, named as one archive does."""
    common = ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16", "swir22")
    assets = {}
    for key, band, value in zip((*common, "vv", "vh"), BANDS, values, strict=True):
        write(folder / "data" / f"{key}.tif", value[None], bands=None)
        declared = {"raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1 if boa is None else 0}]} if band in S2_BANDS else {}
        assets[key] = {"href": f"./data/{key}.tif", "roles": ["data"], **declared}
    assets["visual"] = {"href": "./visual.tif", "roles": ["visual"], "eo:bands": [{"name": "B04"}, {"name": "B03"}, {"name": "B02"}]}
    properties = {"datetime": "2024-04-22T17:53:02Z", "s2:processing_baseline": "05.10"}
    if boa is not None:
        properties["earthsearch:boa_offset_applied"] = boa
    path = folder / "item.json"
    path.write_text(json.dumps({"type": "Feature", "stac_version": "1.0.0", "id": "S2A_T13TDE", "properties": properties, "assets": assets}))
    return path


def test_a_stac_item_says_which_asset_is_which_band_and_what_offset_its_numbers_have(tmp_path: Path) -> None:
    values = numbers(32, 24)
    shifted = values.copy()
    shifted[:12] += 1000
    np.testing.assert_array_equal(stored(item(tmp_path / "a", shifted), s2_offset="auto"), expected(values))
    np.testing.assert_array_equal(stored(item(tmp_path / "b", values, boa=True), s2_offset="auto"), expected(values))
    scene, = find_scenes(tmp_path / "a" / "item.json", contract())
    assert scene.name == "S2A_T13TDE" and scene.facts["s2_offset"] == -1000


def test_assets_behind_a_url_are_read_as_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = numbers(200, 300)[:12]
    path = item(tmp_path, np.concatenate([values, numbers(200, 300)[12:]]), boa=True)
    content = json.loads(path.read_text())
    held = server.Archive(tmp_path / "data", [])
    monkeypatch.setattr("dsengine.export.remote.REOPEN_PIXELS", 20_000)
    with server.serving(held):
        for asset in content["assets"].values():
            asset["href"] = asset["href"].replace("./data", f"{held.root}/files")
        path.write_text(json.dumps(content))
        optical = contract(("B02", "B03", "B04", "B11"))
        scene, = find_scenes(path, optical)
        with opened(scene, -32768) as reader:
            for rows, columns in [(Span(0, 200), Span(0, 300)), (Span(90, 170), Span(33, 240)), (Span(0, 60), Span(250, 300))]:
                np.testing.assert_array_equal(reader.read(rows, columns), expected(values)[[1, 2, 3, 10], rows.start:rows.stop, columns.start:columns.stop])
        out, = dsengine.embed((Small(4).eval(), optical), path, tmp_path / "a.zarr", picture=True)
        assert zarr.open_group(out)["embedding"].shape == (6, 25, 38) and (tmp_path / "a.png").exists()
        (tmp_path / "data" / "red.tif").unlink()
        with pytest.raises(RunError, match="red.tif.*404"):
            find_scenes(path, optical)


def test_items_without_local_assets_or_bands_are_refused(tmp_path: Path) -> None:
    path = item(tmp_path, numbers(16, 16), boa=True)
    content = json.loads(path.read_text())
    content["assets"]["vv"]["href"] = "https://example.com/vv.tif?token=secret"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"vv.tif of band VV; legal: local files.*corpus build --source stac") as refused:
        find_scenes(path, contract())
    assert "secret" not in str(refused.value)
    content["assets"]["vv"]["href"] = "./data/vv.tif"
    del content["assets"]["red"]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="B04 missing; legal: rasters with all of B01, B02"):
        find_scenes(path, contract())
    path.write_text("[1, 2]")
    with pytest.raises(UsageError, match="not a STAC item"):
        find_scenes(path, contract())


def test_wrong_bands_are_refused_with_the_legal_ones(tmp_path: Path) -> None:
    values, legal = numbers(16, 16), ", ".join(BANDS)
    for name, part, bands in [("three", values[:3], None), ("lacks", values[:13], BANDS[:13]), ("twice", values[:2], ("B02", "B02"))]:
        path = write(tmp_path / f"{name}.tif", part, bands=bands)
        with pytest.raises(UsageError, match=legal) as refused:
            find_scenes(path, contract(), s2_offset="0")
        assert str(path) in str(refused.value) or name in str(refused.value)
    with pytest.raises(UsageError, match="L1C"):
        find_scenes(write(tmp_path / "l1c.tif", values, bands=(*BANDS[:12], "B10", "VV")), contract(), s2_offset="0")


def test_other_pixels_grids_and_units_are_refused(tmp_path: Path) -> None:
    values = numbers(24, 24)
    with pytest.raises(UsageError, match="pixels of 20 x 20 m; legal: 10 m"):
        find_scenes(write(tmp_path / "coarse.tif", values, pixel=20.0), contract(), s2_offset="0")
    write(tmp_path / "two" / "s2.tif", values[:12])
    write(tmp_path / "two" / "s1.tif", values[12:], bands=S1_BANDS, corner=(399970.0, 4500000.0))
    with pytest.raises(UsageError, match="not on the grid"):
        find_scenes(tmp_path / "two", contract(), s2_offset="0")
    power = values.copy()
    power[12:] = 10 ** (power[12:] / 10)
    with pytest.raises(UsageError, match="not in dB"):
        find_scenes(write(tmp_path / "power.tif", power), contract(), s2_offset="0")
    with pytest.raises(UsageError, match="no raster"):
        find_scenes(tmp_path.joinpath("empty") if tmp_path.joinpath("empty").mkdir() else tmp_path / "empty", contract())


def test_a_real_raster_in_degrees_keeps_its_grid(tmp_path: Path, sample_data: Path) -> None:
    unpack(sample_data / "pairs" / "ssl4eo_s12" / "0000200.tar.gz", tmp_path, r"s2a/.*/20200604.*/B[2348]\.tif")
    bands = ("B02", "B03", "B04", "B08")
    out, = dsengine.embed((Small(4).eval(), contract(bands)), tmp_path / "s2a", tmp_path / "a.tif")
    with rasterio.open(out) as file, rasterio.open(next(tmp_path.rglob("B2.tif"))) as raster:
        assert file.shape == (33, 33) and file.crs == raster.crs and raster.shape == (264, 264)
        assert file.xy(32, 7, offset="ul") == pytest.approx(raster.xy(256, 56, offset="ul"), abs=1e-12) and file.bounds == pytest.approx(raster.bounds)


class Stopped(Exception):
    """What a kill does to a job, at a moment of our choosing."""


def test_a_stopped_job_goes_on_and_ends_with_the_same_file(encoder: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsengine.export.rasters.tile_side", lambda cells: 6)  # 5 x 4 tiles
    path = write(tmp_path / "a.tif", numbers(203, 150))
    embed = lambda out, **more: dsengine.embed((encoder, contract()), path, tmp_path / out, s2_offset="0", **more)  # noqa: E731
    embed("whole.zarr")

    def stop_at(number: int) -> Callable[[int, int], None]:
        def stop(done: int, total: int) -> None:
            if done == number:
                raise Stopped
        return stop

    with pytest.raises(Stopped):
        embed("b.zarr", progress=stop_at(5))
    assert not (tmp_path / "b.zarr").exists() and (tmp_path / "b.zarr.part" / "journal").read_text() == "0\n1\n2\n3\n4\n"
    with open(tmp_path / "b.zarr.part" / "journal", "a") as journal:
        journal.write("1")  # a line that was cut off: with the next one, 5, it must not become 15
    torch.manual_seed(1)
    with pytest.raises(UsageError, match="another job .*encoder_sha256"):
        dsengine.embed((Small(14), contract()), path, tmp_path / "b.zarr", s2_offset="0")
    computed: list[int] = []
    from dsengine.export import rasters
    real = rasters.compute
    monkeypatch.setattr(rasters, "compute", lambda *a, **k: computed.append(k["tile"].number) or real(*a, **k))
    with pytest.raises(Stopped):
        embed("b.zarr", progress=stop_at(6))
    embed("b.zarr")
    assert computed == list(range(5, 20)) and not (tmp_path / "b.zarr.part").exists()
    both = [zarr.open_group(tmp_path / name, mode="r") for name in ("whole.zarr", "b.zarr")]
    for name in ("embedding", "data_percent", "x", "y"):
        np.testing.assert_array_equal(both[0][name][...], both[1][name][...])
    assert dict(both[0].attrs) == dict(both[1].attrs)
    embed("b.zarr")
    assert len(computed) == 15  # a finished job is not done again
    with pytest.raises(UsageError, match="holds embeddings of another job"):
        embed("b.zarr", window=64)


def test_what_is_there_is_never_written_over(encoder: Small, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", numbers(24, 24))
    (tmp_path / "thesis.tif").write_text("years of work")
    with pytest.raises(UsageError, match="exists"):
        dsengine.embed((encoder, contract()), path, tmp_path / "thesis.tif", s2_offset="0")
    assert (tmp_path / "thesis.tif").read_text() == "years of work"


def test_the_command_embeds_every_scene_of_a_folder(encoder: Small, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("north", "south")):
        write(tmp_path / "in" / f"{name}.tif", numbers(24, 24, seed=seed))
    monkeypatch.setattr("dsengine.export.model.load_encoder", lambda path, name: (encoder, contract()))
    base = ["embed", "--run", "run", "--raster", str(tmp_path / "in"), "--s2-offset", "0", "--device", "cpu"]
    assert cli.main([*base, "--out", str(tmp_path / "out" / "*.tif"), "--dtype", "int8"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"{name}.tif") for name in ("north", "south")]
    assert cli.main([*base, "--out", str(tmp_path / "one.tif")]) == 2
    assert "2 scenes do not go into one file" in capsys.readouterr().err
