"""Imagery of both providers against numpy and pyproj, band by name; and the traps of the published files."""

import random
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pyproj
import pytest

from dsengine.corpus import Corpus
from dsengine.corpus.schema import NODATA, S2_BANDS, SPLITS, UNKNOWN_TIME
from dsengine.errors import UsageError

# idx, lon, lat, crs_code as published, EPSG: three are in zones 1 to 9, whose codes lack a zero.
SAMPLES = [(3, 9.5, 48.25, "EPSG:32632", 32632), (12, -152.1, -17.5, "EPSG:3275", 32705), (40, -157.9, 21.4, "EPSG:3264", 32604),
           (100, 1.5e-05, 51.25, "EPSG:32631", 32631), (205, -176.5, -43.9, "EPSG:3271", 32701)]
DL_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


@pytest.fixture
def published(new_tree: "Tree") -> dict[int, dict[str, np.ndarray]]:
    return {idx: new_tree.gee(idx, lon, lat, crs_code=code) for idx, lon, lat, code, _ in SAMPLES}


def channels(corpus: Corpus) -> dict[str, int]:
    return {band.name: band.channel for band in corpus.bands}


def test_earth_engine_bands_are_the_published_planes_by_name(new_tree: "Tree", published: dict, tmp_path: Path) -> None:
    corpus = new_tree.build(tmp_path / "c")
    assert [b.name for b in corpus.bands] == [*S2_BANDS, "VV", "VH"] and corpus.index.source[0] == "3/3_GEE_2018-06-21_9.5_48.25"
    s2, s1, at = corpus.read(range(5), "s2"), corpus.read(range(5), "s1"), channels(corpus)
    for row, arrays in enumerate(published.values()):
        for position, band in enumerate(S2_BANDS):
            np.testing.assert_array_equal(s2[row, at[band]], arrays["S2"][..., position], err_msg=f"{row} {band}")
        for position, band in enumerate(("VV", "VH")):
            assert np.abs(s1[row, at[band]] * 0.01 - arrays["S1"][..., position]).max() <= 0.005 + 1e-5
    assert corpus.attributes["made_by"]["s2_offset"]["all"]["offset"] == 0


def test_samples_are_in_order_of_idx_and_stand_where_pyproj_puts_them(new_tree: "Tree", published: dict, tmp_path: Path) -> None:
    corpus = new_tree.build(tmp_path / "c")
    for row, (_, lon, lat, _, epsg) in enumerate(SAMPLES):  # centred on the point: no tile
        np.testing.assert_allclose([corpus.index.lon[row], corpus.index.lat[row]], [lon, lat], atol=1e-6)
        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
        np.testing.assert_allclose([corpus.index.x[row], corpus.index.y[row]], [x - 1280, y + 1280], atol=1e-3)
    assert corpus.index.epsg.tolist() == [epsg for *_, epsg in SAMPLES]


def test_zones_one_to_nine_are_not_taken_for_the_projections_that_their_short_codes_name(pair: "Tree", tmp_path: Path) -> None:
    assert "Antarctic" in pyproj.CRS.from_epsg(3275).area_of_use.name  # the trap: EPSG:3275 exists
    pair.gee(12, -152.1, -17.5, crs_code="EPSG:3275")
    assert pair.build(tmp_path / "c").index.epsg.tolist() == [32632, 32632, 32705]


@pytest.mark.parametrize("code", ["EPSG:326", "EPSG:32661", "EPSG:3260", "EPSG:3857", "32632", None, 32632, "EPSG:32600"])
def test_other_codes_are_refused_by_file(pair: "Tree", tmp_path: Path, code: object) -> None:
    pair.edit_meta(7, crs_code=code)
    with pytest.raises(UsageError, match=r"7_GEE_2018-06-21_9.5_48.25_meta.json: CRS .*; legal: EPSG:326 or EPSG:327 and a UTM zone"):
        pair.build(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_wrong_zone_shows_because_the_point_is_not_in_the_patch(pair: "Tree", tmp_path: Path) -> None:
    pair.edit_meta(11, crs_code="EPSG:32633")
    with pytest.raises(UsageError, match=r"the point lon 9.75 lat 47.5 of its name lies .* m right of .* in EPSG:32633"):
        pair.build(tmp_path / "c")


def test_the_order_of_bands_is_what_the_metadata_says(pair: "Tree", published: dict, tmp_path: Path) -> None:
    order = ["B12", "B11", "B9", "B8A", "B8", "B7", "B6", "B5", "B4", "B3", "B2", "B1"]
    pair.edit(7, "S2arr", lambda x: x.__setitem__(slice(None), x[..., ::-1].copy()))
    pair.edit_meta(7, S2_bands=order, S1_bands=["VH", "VV"])
    corpus = pair.build(tmp_path / "c")
    at, row = channels(corpus), corpus.index.source.tolist().index("7/7_GEE_2018-06-21_9.5_48.25")
    with np.load(pair.folder / "7" / "7_GEE_2018-06-21_9.5_48.25_S2arr.npz") as file, \
            np.load(pair.folder / "7" / "7_GEE_2018-06-21_9.5_48.25_S1arr.npz") as s1:
        np.testing.assert_array_equal(corpus.read([row], "s2")[0, at["B02"]], file["arr"][..., 10])
        assert np.abs(corpus.read([row], "s1")[0, at["VH"]] * 0.01 - s1["arr"][..., 0]).max() <= 0.005 + 1e-5


def test_nodata_is_a_pixel_of_zeros_an_exact_zero_decibel_and_what_is_not_finite(pair: "Tree", tmp_path: Path) -> None:
    def spoil_s2(x: np.ndarray) -> None:
        x[0, 0, :], x[1, 1, 3], x[2, 2, 5] = 0, 0, np.nan

    def spoil_s1(x: np.ndarray) -> None:
        x[0, 0, 0], x[1, 1, 1], x[2, 2] = 0, np.nan, -np.inf

    pair.edit(7, "S2arr", spoil_s2)
    pair.edit(7, "S1arr", spoil_s1)
    corpus = pair.build(tmp_path / "c")
    s2, s1 = corpus.read([0], "s2")[0], corpus.read([0], "s1")[0]
    assert (s2[:, 0, 0] == NODATA).all() and s2[3, 1, 1] == 0 and s2[5, 2, 2] == NODATA and (s2 == NODATA).sum() == 13
    assert s1[0, 0, 0] == NODATA and s1[1, 1, 1] == NODATA and (s1[:, 2, 2] == NODATA).all() and (s1 == NODATA).sum() == 4
    assert len(corpus.attributes["faults"]) == 2 and corpus.index.nodata_fraction[0] == pytest.approx(17 / (14 * 65536))


def test_scenes_and_times_come_from_the_asset_ids(pair: "Tree", tmp_path: Path) -> None:
    corpus = pair.build(tmp_path / "c")
    assert corpus.index.time_s2[0] == np.datetime64("2018-06-21T10:50:31", "ns").astype(np.int64)
    assert corpus.index.time_s1[0] == np.datetime64("2018-06-20T05:34:45", "ns").astype(np.int64)


def test_descartes_labs_optical_is_read_by_colour_with_alpha_as_nodata(new_tree: "Tree", tmp_path: Path) -> None:
    arrays = new_tree.dl(5, 9.5, 48.25, epsg=32632), new_tree.dl(6, 9.75, 47.5, epsg=32632)
    corpus = new_tree.build(tmp_path / "c", "--sensors", "s2", "--cirrus")
    assert [b.name for b in corpus.bands] == list(DL_ORDER)
    s2, at = corpus.read(range(2), "s2"), channels(corpus)
    for row, published in enumerate(arrays):
        for position, band in enumerate(DL_ORDER):
            expected = np.where(published["S2"][..., 13] == 0, NODATA, published["S2"][..., position])
            np.testing.assert_array_equal(s2[row, at[band]], expected, err_msg=band)
    assert (corpus.index.time_s2 == np.datetime64("2018-06-21", "ns").astype(np.int64)).all() and (corpus.index.time_s1 == UNKNOWN_TIME).all()
    assert [b.name for b in new_tree.build(tmp_path / "d", "--sensors", "s2").bands] == list(S2_BANDS)


def test_descartes_labs_radar_is_refused_until_its_range_is_given(new_tree: "Tree", tmp_path: Path) -> None:
    arrays = new_tree.dl(5, 9.5, 48.25, epsg=32632), new_tree.dl(6, 9.75, 47.5, epsg=32632)
    with pytest.raises(UsageError, match=r"0..255 whose dB nobody has published: give --sensors s2, or --dl-s1-range LO,HI"):
        new_tree.build(tmp_path / "c")
    corpus = new_tree.build(tmp_path / "c", "--dl-s1-range=-40,11")
    expected = -40 + arrays[1]["S1"].astype(np.float64) / 5
    assert np.abs(corpus.read([1], "s1")[0] * 0.01 - expected.transpose(2, 0, 1)).max() <= 0.005 + 1e-9
    for text in ("=5,-5", "=a,b", "=-40"):
        with pytest.raises(UsageError, match="--dl-s1-range"):
            new_tree.build(tmp_path / "d", f"--dl-s1-range{text}")


def test_earth_engine_radar_in_other_units_than_decibels_is_refused(pair: "Tree", tmp_path: Path) -> None:
    pair.edit(7, "S1arr", lambda x: x.__setitem__(slice(None), 120.0))
    with pytest.raises(UsageError, match=r"7_GEE_.*S1arr.npz is not in dB"):
        pair.build(tmp_path / "c")


def test_tiles_json_places_samples_without_a_tile_of_their_own(new_tree: "Tree", tmp_path: Path) -> None:
    new_tree.dl(5, 9.5, 48.25, epsg=32632), new_tree.dl(6, 9.75, 47.5, epsg=32632)
    before = new_tree.build(tmp_path / "c", "--sensors", "s2").index
    own = next((new_tree.folder / "6").glob("*_tile.json"))
    content = own.read_text()
    own.unlink()
    with pytest.raises(UsageError, match="sample 6 has neither a _tile.json nor an entry in tiles.json"):
        new_tree.build(tmp_path / "d", "--sensors", "s2")
    (new_tree.folder / "tiles.json").write_text(f'{{"6": {content}, "5": null}}')
    after = new_tree.build(tmp_path / "d", "--sensors", "s2").index
    assert (after.x == before.x).all() and (after.y == before.y).all() and (after.epsg == before.epsg).all()


def test_the_side_table_names_the_scenes_of_descartes_labs_samples(new_tree: "Tree", tmp_path: Path) -> None:
    new_tree.dl(5, 9.5, 48.25, epsg=32632), new_tree.dl(6, 9.75, 47.5, epsg=32632)
    table = pyarrow.table({"lon": [9.75, 9.5], "GEE_S2": ["S2_SR/20180621T105031_20180621T105432_T32TPR", None],
                           "DL_S2": ["sentinel-2:L1C:2018-06-21_32TPR_99_S2A_v1", "sentinel-2:L1C:2018-06-21_32TPS_99_S2A_v1"],
                           "GEE_S1": ["S1_GRD/S1A_IW_GRDH_1SDV_20180620T053445_20180620T053510", None], "idx": [6, 5]})
    pyarrow.parquet.write_table(table, tmp_path / "DEMO.parquet")
    corpus = new_tree.build(tmp_path / "c", "--dl-s1-range=-40,11", "--pts", str(tmp_path / "DEMO.parquet"))
    day, exact, radar = (np.datetime64(t, "ns").astype(np.int64) for t in ("2018-06-21", "2018-06-21T10:50:31", "2018-06-20T05:34:45"))
    assert corpus.index.time_s2.tolist() == [day, exact] and corpus.index.time_s1.tolist() == [UNKNOWN_TIME, radar]
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="x.parquet cannot be read as Parquet"):
        new_tree.build(tmp_path / "d", "--sensors", "s2", "--pts", str(tmp_path / "x.parquet"))


def test_the_split_of_the_original_is_its_shuffle_of_sorted_records(new_tree: "Tree", tmp_path: Path) -> None:
    indices = [2, 3, 5, 8, 13, 21, 34, 55, 89, 144]
    for idx in indices:
        new_tree.gee(idx, 9.5 + idx / 1000, 48.25, crs_code="EPSG:32632")
    corpus = new_tree.build(tmp_path / "c", "--split", "given")
    random.seed(5)
    random.shuffle(indices)
    expected = {idx: ("train", "val", "test")[(n >= 7) + (n >= 9)] for n, idx in enumerate(indices)}
    assert {int(s.split("/")[0]): SPLITS[c] for s, c in zip(corpus.index.source, corpus.index.split, strict=True)} == expected
