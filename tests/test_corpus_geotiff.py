"""Source geotiff on small rasters made here: nodata, scale, saturation, and every way files can disagree."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio.transform import from_origin

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.grid import blocks
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import NODATA, S1_BANDS, S2_BANDS
from dsengine.errors import UsageError

SIDE = 48


def s2_pixels(seed: int = 0) -> np.ndarray:
    """(12, SIDE, SIDE) uint16 with dark water, so that it cannot carry an offset."""
    return np.random.default_rng(seed).integers(1, 4000, (12, SIDE, SIDE)).astype(np.uint16)


def s1_pixels(seed: int = 0) -> np.ndarray:
    """(2, SIDE, SIDE) float32 dB."""
    return np.random.default_rng(seed).uniform(-25, 3, (2, SIDE, SIDE)).astype(np.float32)


def write(path: Path, x: np.ndarray, *, left: float = 500000.0, crs: str = "EPSG:32632", bands: tuple[str, ...] = (), **profile: Any) -> Path:
    """A GeoTIFF of 10 m pixels; `bands` become descriptions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", height=x.shape[1], width=x.shape[2], count=len(x), dtype=x.dtype, crs=crs,
                       transform=from_origin(left, 5200000.0, 10, 10), **profile) as file:
        file.write(x)
        for index, name in enumerate(bands, start=1):
            file.set_band_description(index, name)
    return path


def build(folder: Path, *extra: str, s2: bool = True, s1: bool = True) -> Corpus:
    """Build folder/c from folder/s2 and folder/s1."""
    parser = argparse.ArgumentParser()
    flags = [*(["--s2", f"{folder}/s2/*.tif"] if s2 else []), *(["--s1", f"{folder}/s1/*.tif"] if s1 else [])]
    argv = ["corpus", "build", str(folder / "c"), "--source", "geotiff", "--size", "16", *flags, *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(folder / "c")


def windows(x: np.ndarray) -> np.ndarray:
    """(9, C, 16, 16) of (C, 48, 48), row by row."""
    return x.reshape(-1, 3, 16, 3, 16).transpose(1, 3, 0, 2, 4).reshape(9, -1, 16, 16)


def test_declared_nodata_zero_and_nan_become_the_stored_nodata(tmp_path: Path) -> None:
    s2, s1 = s2_pixels(), s1_pixels()
    s2[3, 5, 6], s2[:, 20:24, 20:24], s1[0, 1, 1], s1[1, 40, 40] = 0, 0, np.nan, -99
    write(tmp_path / "s2/a.tif", s2)
    write(tmp_path / "s1/a.tif", s1, nodata=-99)
    corpus = build(tmp_path)
    np.testing.assert_array_equal(corpus.read(range(9), "s2") == NODATA, windows(s2) == 0)
    np.testing.assert_array_equal(corpus.read(range(9), "s1") == NODATA, windows(~np.isfinite(s1) | (s1 == -99)))
    np.testing.assert_allclose(corpus.index.nodata_fraction[[0, 1, 4, 8]], np.array([2, 0, 16 * 12, 1]) / (14 * 256), atol=1e-7)
    valid = s2[0][s2[0] != 0]
    assert corpus.contract().mean[0] == pytest.approx(valid.mean() * 1e-4, rel=1e-12)


def test_nodata_can_be_chosen_or_switched_off(tmp_path: Path) -> None:
    s2 = s2_pixels()
    s2[0, 0, :2] = 0, 3999
    write(tmp_path / "s2/a.tif", s2)
    (tmp_path / "t").mkdir()
    stored = build(tmp_path, "--s2-nodata", "3999", s1=False).read([0], "s2")[0]
    np.testing.assert_array_equal(stored == NODATA, s2[:, :16, :16] == 3999)
    (tmp_path / "c").rename(tmp_path / "old")
    assert (build(tmp_path, "--s2-nodata", "none", s1=False).read([0], "s2")[0] == s2[:, :16, :16]).all()


def test_values_outside_int16_are_cut_and_counted(tmp_path: Path) -> None:
    s2, s1 = s2_pixels(), s1_pixels()
    s2[4, 0, :3], s1[1, 0, 0] = (32767, 32768, 65535), 400.0
    write(tmp_path / "s2/a.tif", s2)
    write(tmp_path / "s1/a.tif", s1)
    corpus = build(tmp_path)
    assert corpus.read([0], "s2")[0, 4, 0, :3].tolist() == [32767] * 3 and corpus.read([0], "s1")[0, 1, 0, 0] == 32767
    assert corpus.arrays["s2"].attrs["saturated"] == [0] * 4 + [2] + [0] * 7 and corpus.arrays["s1"].attrs["saturated"] == [0, 1]


def test_scales_turn_other_units_into_the_stored_ones(tmp_path: Path) -> None:
    s2, s1 = s2_pixels() / np.float32(10000), s1_pixels()
    write(tmp_path / "s2/a.tif", s2)
    write(tmp_path / "s1/a.tif", np.round((s1 + 83) * 100).astype(np.uint16))
    corpus = build(tmp_path, "--s2-scale", "1", "--s2-offset", "0", "--s1-scale", "0.01", "--s1-offset", "-83")
    np.testing.assert_array_equal(corpus.read(range(9), "s2"), windows(s2_pixels()))
    assert np.abs(corpus.read(range(9), "s1") * 0.01 - windows(s1)).max() <= 0.0051


def test_descriptions_and_flags_put_bands_in_corpus_order(tmp_path: Path) -> None:
    s2, s1, order = s2_pixels(), s1_pixels(), np.random.default_rng(5).permutation(12)
    write(tmp_path / "s2/a.tif", s2[order], bands=tuple(S2_BANDS[i].replace("B0", "B") for i in order))
    write(tmp_path / "s1/a.tif", s1[::-1])
    corpus = build(tmp_path, "--s1-bands", "VH,VV")
    np.testing.assert_array_equal(corpus.read(range(9), "s2"), windows(s2))
    np.testing.assert_allclose(corpus.read(range(9), "s1") * 0.01, windows(s1), atol=0.0051)


def test_labels_without_a_table_are_named_by_value(tmp_path: Path) -> None:
    write(tmp_path / "s1/a.tif", s1_pixels())
    cover = np.random.default_rng(0).choice([3, 11, 255], (1, SIDE, SIDE)).astype(np.uint8)
    write(tmp_path / "cover/a.tif", cover, nodata=255)
    corpus = build(tmp_path, "--label", f"cover={tmp_path}/cover/*.tif", s2=False)
    np.testing.assert_array_equal(corpus.labels["cover"][...], windows(cover)[:, 0])
    attrs = dict(corpus.labels["cover"].attrs)
    assert attrs["ignore"] == 255 and {"3": "class 3", "11": "class 11"}.items() <= attrs["classes"].items()


def test_a_missing_band_is_named(tmp_path: Path) -> None:
    write(tmp_path / "s2/a.tif", s2_pixels()[:11], bands=S2_BANDS[:10] + ("B12",))
    with pytest.raises(UsageError, match="--s2: site a lacks band B11"):
        build(tmp_path, s1=False)


def test_a_missing_single_band_file_is_named(tmp_path: Path) -> None:
    for band, plane in zip(S1_BANDS, s1_pixels(), strict=True):
        write(tmp_path / f"s1/a_{band.lower()}.tif", plane[None])
    write(tmp_path / "s1/b_VV.tif", s1_pixels()[:1])
    with pytest.raises(UsageError, match="--s1: site b lacks band VH"):
        build(tmp_path, s2=False)


def test_unnamed_bands_of_another_number_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path / "s2/a.tif", np.concatenate([s2_pixels(), s2_pixels()[:1]]))
    with pytest.raises(UsageError, match="13 unnamed bands.*--s2-bands"):
        build(tmp_path, s1=False)


@pytest.mark.parametrize(("change", "what"), [({"left": 500005.0}, "transform"), ({"crs": "EPSG:32633"}, "CRS")])
def test_files_on_different_grids_are_refused_by_name(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    write(tmp_path / "s2/a.tif", s2_pixels())
    write(tmp_path / "s1/a.tif", s1_pixels(), **change)
    with pytest.raises(UsageError, match=rf"site a: \S+s1/a.tif is not on the grid of \S+s2/a.tif: {what}"):
        build(tmp_path)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("crs", ["EPSG:2263", "EPSG:4326"])  # US survey feet, degrees
def test_a_grid_that_is_not_in_metres_is_refused(tmp_path: Path, crs: str) -> None:
    write(tmp_path / "s1/a.tif", s1_pixels(), crs=crs)
    with pytest.raises(UsageError, match=f"s1/a.tif: CRS is {crs}; legal: a projected CRS in metres"):
        build(tmp_path, s2=False)


def test_a_small_file_that_says_it_is_huge_in_one_piece_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    with rasterio.open(tmp_path / "s1/a.tif", "w", driver="GTiff", height=8000, width=9000, count=2, dtype="float64", crs="EPSG:32632",
                       transform=from_origin(0, 0, 10, 10), compress="deflate", sparse_ok=True, blockysize=8000, interleave="pixel"):
        pass
    assert (tmp_path / "s1/a.tif").stat().st_size < 10_000
    with pytest.raises(UsageError, match="s1/a.tif is stored in pieces of 1,152,000,000 bytes; legal: up to 1,073,741,824"):
        build(tmp_path, s2=False)


def test_files_of_different_shape_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "s2/a.tif", s2_pixels())
    write(tmp_path / "s1/a.tif", s1_pixels()[:, :, :40])
    with pytest.raises(UsageError, match=r"site a: .* shape \(48, 40\), legal: \(48, 48\)"):
        build(tmp_path)


def test_linear_power_is_not_taken_for_decibels(tmp_path: Path) -> None:
    write(tmp_path / "s1/a.tif", 10 ** (s1_pixels() / 10))
    with pytest.raises(UsageError, match="a.tif is not in dB"):
        build(tmp_path, s2=False)


@pytest.mark.parametrize(("extra", "message"), [
    (("--label", "lulc"), "legal: NAME=GLOB"), (("--label", "lulc=/nowhere/*.tif"), "/nowhere/.*no file matches"),
    (("--s1-nodata", "x"), "--s1-nodata x: legal"), (("--size", "64"), "smaller than --size 64"), (("--stride", "-1"), "stride=-1"),
    (("--source", "geotif"), "did you mean geotiff")])
def test_flags_that_make_no_sense_are_named(tmp_path: Path, extra: tuple[str, ...], message: str) -> None:
    write(tmp_path / "s1/a.tif", s1_pixels())
    with pytest.raises(UsageError, match=message):
        build(tmp_path, *extra, s2=False)


def test_label_values_outside_the_class_table_are_named(tmp_path: Path) -> None:
    write(tmp_path / "s1/a.tif", s1_pixels())
    write(tmp_path / "lulc/a.tif", np.full((1, SIDE, SIDE), 77, np.uint8))
    with pytest.raises(UsageError, match="lulc/a.tif has value 77; legal: 0 no data, 1 water"):
        build(tmp_path, "--label", f"lulc={tmp_path}/lulc/*.tif", s2=False)


def test_a_small_site_on_the_edge_of_a_split_block_stays_in_one_split(tmp_path: Path) -> None:
    latitude_row = np.floor(46.95 / 0.25)
    edge_lon = np.ceil(9.0 * np.cos(np.radians((latitude_row + 0.5) * 0.25)) / 0.25) * 0.25 / np.cos(np.radians((latitude_row + 0.5) * 0.25))
    (edge_x,), _ = rasterio.warp.transform("EPSG:4326", "EPSG:32632", [edge_lon], [46.95])
    write(tmp_path / "s1/a.tif", s1_pixels(), left=round(edge_x) - 240.0)
    index = build(tmp_path, "--stride", "4", s2=False).index
    assert len(np.unique(blocks(index.lon, index.lat), axis=0)) == 2 and len(np.unique(index.split)) == 1


def test_files_of_a_site_must_declare_one_nodata_value(tmp_path: Path) -> None:
    for band, plane, nodata in zip(S1_BANDS, s1_pixels(), (None, -99), strict=True):
        write(tmp_path / f"s1/a_{band}.tif", plane[None], nodata=nodata)
    with pytest.raises(UsageError, match="declares nodata None, .*a_VH.tif -99.0; files of a site must agree"):
        build(tmp_path, s2=False)


def test_neither_sensor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs --s2 GLOB, --s1 GLOB or both"):
        build(tmp_path, s2=False, s1=False)
