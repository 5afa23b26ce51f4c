"""Cloud fraction and S1/S2 shift as steps of a build: on real scenes, on planted shifts, beside nodata, and as a pass over a corpus."""

import pickle
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile
from scipy import ndimage
from scipy.spatial import cKDTree

from dsengine import cli
from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.clouds import cloud_fraction
from dsengine.corpus.build.coregistration import shift_of
from dsengine.corpus.build.plan import Plan, build_corpus
from dsengine.corpus.build.quality import COLUMNS, METHOD, Quality, with_quality
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import NODATA, S1_BANDS, S2_BANDS, ArraySpec, Band, Layout, standard_layout
from dsengine.corpus.synth import make_patch

SIDE = 128
L1C_BANDS = (*S2_BANDS[:10], "B10", *S2_BANDS[10:])


def table(*specs: ArraySpec) -> tuple[Band, ...]:
    return Layout(arrays=specs, patch_size=240, resolution_m=10.0).bands()


def spec(name: str, bands: tuple[str, ...], factor: int = 1) -> ArraySpec:
    return ArraySpec(name=name, sensor=name[:2], bands=bands, units="", scale_factor=1e-4, factor=factor)


PLAIN = standard_layout(SIDE).bands()
S2_ONLY = {band.name: band for band in PLAIN if band.sensor == "s2"}


@pytest.fixture(scope="module")
def ssl4eo(sample_data: Path) -> dict[str, dict[str, np.ndarray]]:
    """Scene folder -> band -> pixels of the archive, by tarfile and rasterio."""
    scenes: dict[str, dict[str, np.ndarray]] = {}
    with tarfile.open(sample_data / "pairs/ssl4eo_s12/0000200.tar.gz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if member.name.endswith(".tif"):
                with MemoryFile(archive.extractfile(member).read()) as memory, memory.open() as file:
                    name = parts[-1].removesuffix(".tif")
                    name = f"B0{name[1:]}" if len(name) == 2 and name != "VV" and name != "VH" else name
                    scenes.setdefault(f"{parts[-4]} {parts[-2]}", {})[name] = file.read(1)
    return scenes


def cloud_of(bands: dict[str, np.ndarray]) -> float:
    """Of a scene whose bands have 1, 1/2 or 1/6 of the pixels a side."""
    side = max(x.shape[0] for x in bands.values())
    arrays = {name: x.astype(np.int16)[None, None] for name, x in bands.items()}
    by_name = {name: Band(name, "s2", name, 0, side // x.shape[0]) for name, x in bands.items()}
    return float(cloud_fraction(arrays, by_name)[0])


def test_the_cloudy_real_scene_is_told_from_the_clear_ones(ssl4eo: dict) -> None:
    found = {name: cloud_of(bands) for name, bands in ssl4eo.items() if not name.startswith("s1")}
    cloudy = [name for name in found if "20200823" in name]
    assert len(found) == 4 and len(cloudy) == 1
    assert 0.25 < found.pop(cloudy[0]) < 0.4  # about a third of it, looked at
    assert max(found.values()) < 0.005


def test_snow_sand_surf_and_fields_are_no_cloud(sample_data: Path) -> None:
    found = {}
    for path in sorted((sample_data / "pairs/terramesh/S2L2A").glob("*.tif")):
        with rasterio.open(path) as file:
            raw = file.read() - (1000 if path.stem.startswith("433D") else 0)
        found[path.stem] = cloud_of(dict(zip(S2_BANDS, raw, strict=True)))
    assert len(found) == 5 and max(found.values()) < 0.01  # 609U is snow, 282D a beach, 38D bare soil
    with tarfile.open(sample_data / "pairs/bigearthnet/BigEarthNet-S2-Example.tar.bz2") as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(".tif") and "20180204" in m.name]
        snow = {m.name[-7:-4]: rasterio.open(archive.extractfile(m)).read(1) for m in members}
    assert len(snow) == 12 and np.median(snow["B02"]) > 2500 and cloud_of(snow) < 0.01


def test_synthetic_clouds_are_found_at_their_fraction() -> None:
    patches = [patch for row in range(0, 480, 2) if ((patch := make_patch(7, row, 64)).s2 != NODATA).mean() > 0.9]
    truth = np.array([patch.cloud_fraction for patch in patches])
    found = cloud_fraction({"s2": np.stack([patch.s2 for patch in patches])}, S2_ONLY)
    assert (truth > 0).sum() >= 20
    assert np.corrcoef(found, truth)[0, 1] > 0.98 and np.abs(found - truth)[truth > 0].mean() < 0.03
    assert found[truth == 0].max() < 0.1 and ((found > 0.4) == (truth > 0.4)).all()


def test_cloud_is_of_the_pixels_with_data_and_unknown_without_any() -> None:
    x = np.full((3, 12, 64, 64), 500, np.int16)
    x[:, :, :32] = 4000  # the upper half is white
    x[1, :, :, :] = np.where(np.arange(64)[None, :, None] < 48, NODATA, x[1])
    x[2] = NODATA
    np.testing.assert_array_equal(cloud_fraction({"s2": x}, S2_ONLY), np.float32([0.5, 0.0, np.nan]))


def test_cirrus_is_seen_where_there_is_a_b10() -> None:
    bands = {band.name: band for band in table(spec("s2", L1C_BANDS))}
    x = np.full((2, 13, 64, 64), 800, np.int16)
    x[0, L1C_BANDS.index("B10")] = 10
    x[1, L1C_BANDS.index("B10")] = 300
    np.testing.assert_array_equal(cloud_fraction({"s2": x}, bands), [0.0, 1.0])


def test_without_a_needed_band_cloud_and_shift_stay_unknown() -> None:
    plan = Plan(layout=standard_layout(SIDE, sensors=("s1",)), num_patches=1, cut=print, made_by={})
    assert with_quality(plan) is plan
    for arrays in ((spec("s2", ("B02", "B03")), spec("s1", S1_BANDS)), (replace(spec("s2", S2_BANDS), scale_factor=1.0),)):
        other = replace(plan, layout=Layout(arrays=arrays, patch_size=SIDE, resolution_m=10.0))
        assert with_quality(other) is other  # bands are missing, or are not reflectance x 10000


@cache
def field(seed: int, dy: float, dx: float) -> np.ndarray:
    """(128, 4, 128, 4): which of 150 fields each of 4 x 4 samples of each pixel lies in, the fields moved by (dy, dx) pixels."""
    points, extent = np.random.default_rng(seed).uniform(-20, SIDE + 20, (150, 2)), (np.arange(SIDE * 4) + 0.5) / 4
    return cKDTree(points).query(np.stack(np.meshgrid(extent - dy, extent - dx, indexing="ij"), -1).reshape(-1, 2))[1].reshape(SIDE, 4, SIDE, 4)


def ground(shift: tuple[float, float], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(128, 128) optical and (2, 128, 128) radar int16 of the same fields with unrelated contrasts, the radar off by `shift`.

    Each is drawn at four times the resolution where it lies, so the shift is known and nothing is resampled.
    """
    rng = np.random.default_rng(seed)
    optical = rng.uniform(300, 3000, 150)[field(seed, 0, 0)].mean(axis=(1, 3)) + rng.normal(0, 30, (SIDE, SIDE))
    radar = rng.uniform(-2000, -800, 150)[field(seed, *shift)].mean(axis=(1, 3)) + rng.normal(0, 150, (2, SIDE, SIDE))
    return np.round(optical).astype(np.int16), np.round(radar).astype(np.int16)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.5, -1.25), (-3.375, 4.5), (0.5, 0.5), (-6.0, 6.125), (0.25, -0.75)])
def test_a_known_shift_of_unlike_images_is_found_with_its_sign(shift: tuple[float, float]) -> None:
    found = shift_of(*ground(shift, seed=int(10 * abs(shift[0]))))
    np.testing.assert_allclose(found, shift, atol=0.2)


def test_a_shift_beyond_the_search_is_unknown_rather_than_wrong() -> None:
    assert np.isnan(shift_of(*ground((14.0, -11.0), seed=4))).all()


@pytest.fixture(scope="module")
def terramesh(sample_data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Site -> B04 (224, 224) and S1 (2, 224, 224), stored units."""
    sites = {}
    for path in sorted((sample_data / "pairs/terramesh/S2L2A").glob("*.tif")):
        with rasterio.open(path) as optical, rasterio.open(sample_data / f"pairs/terramesh/S1RTC/{path.name}") as radar:
            sites[path.stem] = optical.read(4).astype(np.int16), np.round(radar.read() * 100).astype(np.int16)
    return sites


def test_a_real_pair_cut_with_an_offset_shows_that_offset(terramesh: dict) -> None:
    errors = []
    for red, radar in terramesh.values():
        for y, x in ((8, 8), (8, 88), (88, 8), (88, 88), (48, 48)):
            window = red[y:y + SIDE, x:x + SIDE]
            true = shift_of(window, radar[:, y:y + SIDE, x:x + SIDE])
            for dy, dx in ((3, -2), (-4, 5), (1, 1), (-2, -3)):
                found = shift_of(window, radar[:, y - dy:y - dy + SIDE, x - dx:x - dx + SIDE])
                errors.append(np.abs(np.subtract(found, true) - (dy, dx)).max())
    known = np.array(errors)[~np.isnan(errors)]
    assert len(known) > 0.4 * len(errors)
    assert np.median(known) < 0.1 and np.percentile(known, 90) < 0.2 and (known < 0.3).mean() > 0.95


def test_a_fractional_shift_of_real_pairs_comes_back(terramesh: dict, sample_data: Path) -> None:
    pairs = [(red[48:176, 48:176], radar[:, 48:176, 48:176], radar) for red, radar in terramesh.values()]
    errors = []
    for red, radar, whole in pairs:
        true = shift_of(red, radar)
        for shift in ((0.5, -0.5), (1.4, 2.3), (-2.7, 0.2)):
            moved = np.stack([ndimage.shift(band.astype(float), shift, order=3, mode="reflect") for band in whole])[:, 48:176, 48:176]
            errors.append(np.abs(np.subtract(shift_of(red, np.round(moved).astype(np.int16)), true) - shift).max())
    known = np.array(errors)[~np.isnan(errors)]
    assert len(known) >= 6 and np.median(known) < 0.15 and known.max() < 0.3


def test_pairs_of_different_places_have_no_shift(terramesh: dict) -> None:
    cut = [(red[y:y + SIDE, x:x + SIDE], radar[:, y:y + SIDE, x:x + SIDE]) for red, radar in terramesh.values()
           for y in (0, 96) for x in (0, 96)]
    found = [shift_of(cut[i][0], cut[j][1])[0] for i in range(len(cut)) for j in range(len(cut)) if i // 4 != j // 4]
    assert len(found) == 320 and np.count_nonzero(~np.isnan(found)) <= 3


def test_nodata_neither_moves_the_peak_nor_makes_one() -> None:
    optical, radar = ground((2.5, -1.25), seed=3)
    optical[:20], radar[:, :, 110:] = NODATA, NODATA
    np.testing.assert_allclose(shift_of(optical, radar), (2.5, -1.25), atol=0.25)
    edge = np.add.outer(np.arange(SIDE), np.arange(SIDE)) < 60  # the same edge of a swath in both, and nothing else in common
    for seed in range(8):
        optical, radar = ground((0, 0), seed=seed)[0], ground((0, 0), seed=100 + seed)[1]
        optical[edge], radar[:, edge] = NODATA, NODATA
        assert np.isnan(shift_of(optical, radar)).all()
    for pixels in (NODATA, 700):  # nothing at all, and nothing to see
        assert np.isnan(shift_of(np.full((SIDE, SIDE), pixels, np.int16), radar)).all()


def block(rows: range) -> Block:
    """Real fields in native groups: S2 at 10 and 20 m, S1 at 10 m; every third row brings its own values."""
    pairs = [ground((1.5, -2.0), seed=row) for row in rows]
    s2 = np.stack([np.stack([pair[0]] * 4) for pair in pairs])
    return Block({"s2": s2, "s2_20m": np.full((len(rows), 1, 64, 64), 900, np.int16), "s1": np.stack([pair[1] for pair in pairs])},
                 {"lon": np.arange(len(rows)), "lat": np.zeros(len(rows)), "shift_y": np.where(np.arange(len(rows)) % 3 == 0, 7.0, np.nan),
                  "shift_x": np.where(np.arange(len(rows)) % 3 == 0, -7.0, np.nan),
                  "cloud_fraction": np.where(np.arange(len(rows)) % 3 == 0, 0.9, np.nan)})


GROUPS = (spec("s2", ("B02", "B03", "B04", "B08")), spec("s2_20m", ("B11",), 2), spec("s1", S1_BANDS))


def test_what_the_source_gave_stays_and_the_rest_is_measured() -> None:
    step = Quality(table(*GROUPS))
    index = step(block(range(4))).index
    np.testing.assert_array_equal(index["cloud_fraction"][[0, 3]], np.float32(0.9))
    np.testing.assert_array_equal([index["shift_y"][[0, 3]], index["shift_x"][[0, 3]]], [[7, 7], [-7, -7]])
    np.testing.assert_allclose([index["shift_y"][1:3], index["shift_x"][1:3]], [[1.5, 1.5], [-2, -2]], atol=0.2)
    assert (index["cloud_fraction"][1:3] == 0).all() and index["lon"].tolist() == [0, 1, 2, 3]


def test_figures_do_not_depend_on_block_process_or_threads() -> None:
    step, whole = Quality(table(*GROUPS)), block(range(4))
    whole = whole._replace(index={"lon": whole.index["lon"], "lat": whole.index["lat"]})
    parts = [step(Block({k: v[row:row + 1] for k, v in whole.arrays.items()}, {"lon": [0.0], "lat": [0.0]})).index for row in range(4)]
    for name in COLUMNS:
        assert step(whole).index[name].tobytes() == b"".join(part[name].tobytes() for part in parts)
    code = ("import sys, pickle; step, block = pickle.loads(sys.stdin.buffer.read()); index = step(block).index\n"
            f"sys.stdout.buffer.write(b''.join(index[name].tobytes() for name in {COLUMNS!r}))")
    for threads in ("1", "4"):
        other = subprocess.run([sys.executable, "-P", "-c", code], input=pickle.dumps((step, whole)), capture_output=True, check=True,
                               env={"PATH": "", "OMP_NUM_THREADS": threads})
        assert other.stdout == b"".join(step(whole).index[name].tobytes() for name in COLUMNS)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three patches with the step."""
    layout = Layout(arrays=GROUPS, patch_size=SIDE, resolution_m=10.0)
    plan = Plan(layout=layout, num_patches=4, cut=block, made_by={"source": "test"})
    return open_corpus(build_corpus(tmp_path_factory.mktemp("quality") / "with", with_quality(plan)))


def test_the_pass_over_a_corpus_gives_what_the_build_gives_and_writes_only_columns(built: Corpus, tmp_path: Path) -> None:
    layout = Layout(arrays=GROUPS, patch_size=SIDE, resolution_m=10.0)
    path = build_corpus(tmp_path / "without", Plan(layout=layout, num_patches=4, cut=block, made_by={"source": "test"}))
    assert np.isnan(open_corpus(path).index.shift_y[1]) and built.attributes["made_by"]["quality"] == METHOD
    before = {f.relative_to(path): f.read_bytes() for f in Path(path).rglob("*") if f.is_file()}
    assert cli.main(["corpus", "quality", str(path)]) == 0
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(open_corpus(path).index, name), getattr(built.index, name))
    changed = {str(name) for name in before if (path / name).read_bytes() != before[name] and not str(name).startswith("manifest")}
    assert changed == {f"index/{name}/c/0" for name in COLUMNS} | {"zarr.json"}
    assert open_corpus(path).attributes["made_by"] == built.attributes["made_by"]
    assert cli.main(["corpus", "verify", str(path)]) == 0


def test_again_measures_what_has_a_value_too(built: Corpus, tmp_path: Path) -> None:
    path = shutil.copytree(built.path, tmp_path / "again")
    assert cli.main(["corpus", "quality", str(path), "--again"]) == 0
    index = open_corpus(path).index
    assert (index.cloud_fraction == 0).all() and np.abs(index.shift_y - 1.5).max() < 0.2
    assert len(open_corpus(path).rows("all", "cloud < 0.4 and shift < 3")) == 4 and len(built.rows("all", "cloud < 0.4 and shift < 3")) == 2


def test_no_quality_leaves_the_columns_unknown(sample_data: Path, tmp_path: Path) -> None:
    terramesh = sample_data / "pairs/terramesh"
    command = ["corpus", "build", "OUT", "--source", "geotiff", "--s2", f"{terramesh}/S2L2A/38D*.tif", "--s1", f"{terramesh}/S1RTC/38D*.tif"]
    for flags, known in (([], 1), (["--no-quality"], 0)):
        out = tmp_path / f"known {known}"
        assert cli.main([str(out) if word == "OUT" else word for word in [*command, *flags]]) == 0
        index = open_corpus(out).index
        assert all(np.count_nonzero(~np.isnan(getattr(index, name))) == known for name in COLUMNS)
