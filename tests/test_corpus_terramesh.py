"""Real imagery: a corpus built from the TerraMesh sites, against rasterio, pyproj and numpy, patch by patch."""

import argparse
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.windows import Window

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import S1_BANDS, S2_BANDS, UNKNOWN_TIME
from dsengine.errors import UsageError

STARTS = (0, 48, 96)  # of 128 px windows in 224 px with stride 48


def build(data: Path, out: Path, *extra: str) -> int:
    """The command line of the documentation, parsed and run."""
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "geotiff", "--s2", f"{data}/S2L2A/*.tif", "--s1", f"{data}/S1RTC/*.tif",
            "--label", f"lulc={data}/LULC/*.tif", "--size", "128", "--stride", "48", *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    return args.run(args)


@pytest.fixture(scope="module")
def terramesh(sample_data: Path) -> Path:
    return sample_data / "pairs" / "terramesh"


@pytest.fixture(scope="module")
def corpus(terramesh: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("terramesh") / "corpus"
    assert build(terramesh, out) == 0
    return open_corpus(out)


def expected(folder: Path) -> list[tuple[str, np.ndarray, rasterio.DatasetReader, Window]]:
    """(stem, pixels, file, window) of each patch in corpus order, read by rasterio."""
    found = []
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as file:
            for y, x in itertools.product(STARTS, STARTS):
                window = Window(x, y, 128, 128)
                found.append((path.stem, file.read(window=window), file, window))
    return found


def test_five_sites_give_nine_patches_each_with_a_complete_index(corpus: Corpus) -> None:
    assert len(corpus) == 45 and corpus.sensors == ("s2", "s1") and corpus.patch_size == 128 and corpus.resolution_m == 10.0
    assert tuple(b.name for b in corpus.bands) == S2_BANDS + S1_BANDS
    assert all(len(column) == 45 for column in corpus.index)
    assert corpus.index.id.tolist() == list(range(45)) and (corpus.index.nodata_fraction == 0).all()
    assert [Path(s).stem for s in corpus.index.source[::9]] == sorted({Path(s).stem for s in corpus.index.source})


def test_every_s2_patch_and_band_is_the_file_plus_its_recorded_offset(corpus: Corpus, terramesh: Path) -> None:
    recorded = corpus.attributes["made_by"]["s2_offset"]
    stored = zarr.open_group(corpus.path, mode="r")["s2"][...]
    for row, (stem, raw, _, _) in enumerate(expected(terramesh / "S2L2A")):
        np.testing.assert_array_equal(stored[row], raw.astype(np.int32) + recorded[stem]["offset"], err_msg=stem)


def test_auto_takes_the_offset_out_of_the_one_file_that_has_it_and_says_why(corpus: Corpus) -> None:
    recorded = corpus.attributes["made_by"]["s2_offset"]
    assert {stem: d["offset"] for stem, d in recorded.items()} == {
        "282D_485L_3_3": 0, "38D_378R_2_3": 0, "433D_629L_3_1": -1000, "609U_541L_3_0": 0, "637U_59R_1_3": 0}
    assert all("pixels" in d["reason"] for d in recorded.values())


def test_every_s1_patch_is_within_half_a_hundredth_of_a_decibel(corpus: Corpus, terramesh: Path) -> None:
    stored = zarr.open_group(corpus.path, mode="r")["s1"][...]
    for row, (stem, raw, _, _) in enumerate(expected(terramesh / "S1RTC")):
        assert np.abs(stored[row] * 0.01 - raw).max() <= 0.005 + 1e-9, stem


def test_labels_keep_values_and_class_names(corpus: Corpus, terramesh: Path) -> None:
    stored = corpus.labels["lulc"][...]
    for row, (stem, raw, _, _) in enumerate(expected(terramesh / "LULC")):
        np.testing.assert_array_equal(stored[row], raw[0], err_msg=stem)
    attrs = dict(corpus.labels["lulc"].attrs)
    assert attrs["kind"] == "classmap" and attrs["ignore"] == 0 and attrs["classes"]["4"] == "crops" and attrs["classes"]["9"] == "rangeland"


def test_positions_equal_pyproj_at_the_window_centre(corpus: Corpus, terramesh: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    for row, (_, _, file, window) in enumerate(expected(terramesh / "S2L2A")):
        left, bottom, right, top = rasterio.windows.bounds(window, file.transform)
        to_degrees = pyproj.Transformer.from_crs(file.crs.to_epsg(), 4326, always_xy=True)
        lon, lat = to_degrees.transform((left + right) / 2, (bottom + top) / 2)
        np.testing.assert_allclose([corpus.index.lon[row], corpus.index.lat[row]], [lon, lat], atol=1e-9)
        np.testing.assert_allclose([corpus.index.x[row], corpus.index.y[row]], [left, top], atol=1e-6)
        assert corpus.index.epsg[row] == file.crs.to_epsg()


def test_radar_time_comes_from_the_tag_and_missing_time_is_unknown(corpus: Corpus, terramesh: Path) -> None:
    for row, path in zip(range(0, 45, 9), sorted((terramesh / "S1RTC").glob("*.tif")), strict=True):
        with rasterio.open(path) as file:
            assert corpus.index.time_s1[row] == np.datetime64(file.tags()["datetime"], "ns").astype(np.int64)
    assert (corpus.index.time_s2 == UNKNOWN_TIME).all()


def test_no_site_is_in_two_splits_and_validation_is_not_empty(corpus: Corpus) -> None:
    by_site = corpus.index.split.reshape(5, 9)
    assert (by_site == by_site[:, :1]).all()
    assert len(corpus.rows("val")) >= 9 and len(corpus.rows("train")) >= 9
    assert sum(len(corpus.rows(s)) for s in ("train", "val", "test")) == len(corpus.rows("all")) == 45


def test_statistics_equal_numpy_over_the_rasters(corpus: Corpus, terramesh: Path) -> None:
    contract = corpus.contract()
    recorded = corpus.attributes["made_by"]["s2_offset"]
    s2 = np.stack([raw.astype(np.float64) + recorded[stem]["offset"] for stem, raw, _, _ in expected(terramesh / "S2L2A")]) * 1e-4
    s1 = np.stack([raw for _, raw, _, _ in expected(terramesh / "S1RTC")])
    for part, where, bound in ((s2, slice(0, 12), 1e-9), (s1, slice(12, 14), 0.005)):
        np.testing.assert_allclose(contract.mean[where], part.mean(axis=(0, 2, 3)), atol=bound)
        np.testing.assert_allclose(contract.std[where], part.std(axis=(0, 2, 3)), atol=bound)


def test_a_table_overrules_auto(terramesh: Path, tmp_path: Path) -> None:
    table = tmp_path / "offsets.csv"
    table.write_text("stem,offset\n" + "".join(f"{p.stem},{-5 * i}\n" for i, p in enumerate(sorted((terramesh / "S2L2A").glob("*.tif")))))
    build(terramesh, tmp_path / "c", "--s2-offset", str(table))
    stored = open_corpus(tmp_path / "c").read(range(0, 45, 9), "s2")
    for i, (_, raw, _, _) in enumerate(expected(terramesh / "S2L2A")[::9]):
        np.testing.assert_array_equal(stored[i], raw - 5 * i)


def test_several_files_a_site_give_the_same_pixels_as_one(corpus: Corpus, terramesh: Path, tmp_path: Path) -> None:
    stem = "38D_378R_2_3"
    for sensor, bands in (("S2L2A", S2_BANDS), ("S1RTC", S1_BANDS)):
        (tmp_path / sensor).mkdir()
        with rasterio.open(terramesh / sensor / f"{stem}.tif") as file:
            profile, raw = {**file.profile, "count": 1}, file.read()
        for band, plane in zip(bands, raw, strict=True):
            with rasterio.open(tmp_path / sensor / f"{stem}_{band}.tif", "w", **profile) as out:
                out.write(plane, 1)
    (tmp_path / "LULC").mkdir()
    shutil.copy(terramesh / "LULC" / f"{stem}.tif", tmp_path / "LULC")
    build(tmp_path, tmp_path / "c")
    first = sorted(p.stem for p in (terramesh / "S2L2A").glob("*.tif")).index(stem) * 9
    for sensor in ("s2", "s1"):
        np.testing.assert_array_equal(open_corpus(tmp_path / "c").read(range(9), sensor), corpus.read(range(first, first + 9), sensor))


def test_a_site_without_its_radar_file_is_named_and_nothing_is_written(terramesh: Path, tmp_path: Path) -> None:
    shutil.copytree(terramesh, tmp_path / "t", copy_function=shutil.copy)
    (tmp_path / "t/S1RTC").chmod(0o755)
    (tmp_path / "t/S1RTC/609U_541L_3_0.tif").unlink()
    with pytest.raises(UsageError, match=r"--s1 has no file for site 609U_541L_3_0, which --s2 has"):
        build(tmp_path / "t", tmp_path / "c")
    assert not (tmp_path / "c").exists()
