"""Source bigearthnet, release 1.0: the published sample against rasterio and json, band by name; and what it refuses."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr

sys.path.insert(0, str(Path(__file__).parent))
import archives  # noqa: E402

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import SPLITS
from dsengine.errors import RunError, UsageError

# S2 patch, S1 patch, S2 tile: read off the sample's metadata.
PAIRS = [("S2A_MSIL2A_20170613T101031_87_48", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48", "33UUP"),
         ("S2A_MSIL2A_20170617T113321_36_85", "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_36_85", "29UPU"),
         ("S2A_MSIL2A_20170617T113321_4_55", "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55", "29UPU"),
         ("S2A_MSIL2A_20171221T112501_56_35", "S1A_IW_GRDH_1SDV_20171221T064238_29SND_56_35", "29SND"),
         ("S2B_MSIL2A_20170924T93020_69_24", "S1A_IW_GRDH_1SDV_20170925T043256_35VPK_69_24", "35VPK"),
         ("S2B_MSIL2A_20180204T94161_57_38", "S1A_IW_GRDH_1SDV_20180204T043253_35VPK_57_38", "35VPK")]
PIXELS = {"B01": 20, "B09": 20, "B05": 60, "B06": 60, "B07": 60, "B8A": 60, "B11": 60, "B12": 60, "B02": 120, "B03": 120, "B04": 120, "B08": 120}


def build(root: Path, out: Path, *extra: str) -> Corpus:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "bigearthnet", "--root", str(root), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


def unpack(data: Path, root: Path) -> Path:
    for sensor, name in (("S1", "BigEarthNet-S1-v1.0"), ("S2", "BigEarthNet-v1.0")):
        archives.unpack(data / f"BigEarthNet-{sensor}-Example.tar.bz2", root)
        (root / f"BigEarthNet-{sensor}-Example").rename(root / name)
    return root


@pytest.fixture
def tree(sample_data: Path, tmp_path: Path) -> Path:
    """The sample in the folders of the release, writable."""
    return unpack(sample_data / "pairs" / "bigearthnet", tmp_path / "release")


@pytest.fixture(scope="module")
def release(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(sample_data / "pairs" / "bigearthnet", tmp_path_factory.mktemp("bigearthnet") / "release")


@pytest.fixture(scope="module")
def corpus(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(release, tmp_path_factory.mktemp("out") / "corpus", "--classes", "43")


def stored(corpus: Corpus, band: str) -> np.ndarray:
    """(N, h, w) of one band, found by its name in zarr-python's view."""
    group = zarr.open_group(corpus.path, mode="r")
    name = next(name for name in group.array_keys() if band in group[name].attrs["bands"])
    return group[name][:, group[name].attrs["bands"].index(band)]


def s2_file(root: Path, patch: str, end: str) -> Path:
    return root / "BigEarthNet-v1.0" / patch / f"{patch}_{end}"


def test_every_s2_value_of_every_band_is_the_file_at_its_own_resolution(corpus: Corpus, release: Path) -> None:
    for band, side in PIXELS.items():
        x = stored(corpus, band)
        assert x.shape == (6, side, side)
        for row, (patch, _, _) in enumerate(PAIRS):
            with rasterio.open(s2_file(release, patch, f"{band}.tif")) as file:
                np.testing.assert_array_equal(x[row], file.read(1), err_msg=f"{patch} {band}")
    assert {band.name: 120 // PIXELS[band.name] for band in corpus.bands if band.sensor == "s2"} == \
        {band.name: band.factor for band in corpus.bands if band.sensor == "s2"}


def test_every_s1_value_is_the_partner_patch_in_decibels(corpus: Corpus, release: Path) -> None:
    for band in ("VV", "VH"):
        for row, (_, patch, _) in enumerate(PAIRS):
            with rasterio.open(release / "BigEarthNet-S1-v1.0" / patch / f"{patch}_{band}.tif") as file:
                assert np.abs(stored(corpus, band)[row] * 0.01 - file.read(1)).max() <= 0.005 + 1e-6, patch


def test_labels_are_the_names_in_the_json_file(corpus: Corpus, release: Path) -> None:
    names = corpus.labels["land_cover"].attrs["classes"]
    assert len(names) == 43
    for row, (patch, _, _) in enumerate(PAIRS):
        expected = json.loads(s2_file(release, patch, "labels_metadata.json").read_text())["labels"]
        assert {names[str(i)] for i in np.flatnonzero(corpus.labels["land_cover"][row])} == set(expected)


def test_nineteen_classes_group_the_forty_three(release: Path, tmp_path: Path) -> None:
    corpus = build(release, tmp_path / "c")
    names = corpus.labels["land_cover"].attrs["classes"]
    assert len(names) == 19
    got = {patch: {names[str(i)] for i in np.flatnonzero(corpus.labels["land_cover"][row])} for row, (patch, _, _) in enumerate(PAIRS)}
    # By hand from the sample's lists: peat bogs are inland wetlands, water bodies inland waters, arable land keeps neither irrigation nor its negation.
    assert got["S2B_MSIL2A_20170924T93020_69_24"] == {"Coniferous forest", "Mixed forest", "Transitional woodland, shrub", "Inland wetlands", "Inland waters"}
    assert got["S2A_MSIL2A_20170617T113321_36_85"] == {"Arable land", "Pastures"}


def test_times_come_from_metadata_where_the_patch_name_is_not_zero_padded(corpus: Corpus, release: Path) -> None:
    # The trap: T94161 in the last name is 09:41:56, and no clock reads 41:61.
    for row, (patch, radar, _) in enumerate(PAIRS):
        stated = json.loads(s2_file(release, patch, "labels_metadata.json").read_text())["acquisition_date"]
        assert corpus.index.time_s2[row] == np.datetime64(stated.replace(" ", "T"), "ns").astype(np.int64)
        stated = json.loads((release / "BigEarthNet-S1-v1.0" / radar / f"{radar}_labels_metadata.json").read_text())["acquisition_time"]
        assert corpus.index.time_s1[row] == np.datetime64(stated, "ns").astype(np.int64)


def test_place_is_that_of_the_json_file_and_the_centre_is_pyprojs(corpus: Corpus, release: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    for row, (patch, _, tile) in enumerate(PAIRS):
        meta = json.loads(s2_file(release, patch, "labels_metadata.json").read_text())
        corners = meta["coordinates"]
        assert (corpus.index.x[row], corpus.index.y[row]) == (corners["ulx"], corners["uly"])
        crs = pyproj.CRS.from_wkt(meta["projection"])
        assert corpus.index.epsg[row] == crs.to_epsg() and corpus.columns["tile"][row] == tile
        lon, lat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(corners["ulx"] + 600, corners["uly"] - 600)
        np.testing.assert_allclose([corpus.index.lon[row], corpus.index.lat[row]], [lon, lat], atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_patches_of_one_tile_are_in_one_split_though_they_lie_in_different_blocks(release: Path, tmp_path: Path, seed: int) -> None:
    split = build(release, tmp_path / "c", "--seed", str(seed), "--sensors", "s2").index.split
    # 38 km apart, far more than a block; tile centres decide.
    assert split[1] == split[2] and split[4] == split[5]


def test_split_tables_give_pairs_and_the_official_split_and_no_json_is_needed_for_pairing(tree: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, rows in (("train", PAIRS[3:]), ("val", PAIRS[:1]), ("test", PAIRS[2:3])):
        (lists / f"{name}.csv").write_text("".join(f"{s2},{s1}\n" for s2, s1, _ in rows))
    for path in (tree / "BigEarthNet-S1-v1.0").glob("*/*.json"):
        path.unlink()
    corpus = build(tree, tmp_path / "c", "--splits", str(lists))
    assert [s for s in corpus.index.source] == [s2 for s2, _, _ in (*PAIRS[3:], PAIRS[0], PAIRS[2])]
    assert [SPLITS[code] for code in corpus.index.split] == ["train"] * 3 + ["val", "test"]
    assert corpus.attributes["splits"] == {"by": "given"}
    assert build(tree, tmp_path / "b", "--splits", str(lists), "--split", "block").attributes["splits"]["by"] == "block"


def test_excluded_patches_are_left_out(release: Path, tmp_path: Path) -> None:
    (tmp_path / "snow.csv").write_text(PAIRS[5][0] + "\n")
    assert build(release, tmp_path / "c", "--exclude", str(tmp_path / "snow.csv")).index.source.tolist() == [s2 for s2, _, _ in PAIRS[:5]]


def test_one_sensor_alone_needs_nothing_of_the_other(tree: Path, tmp_path: Path) -> None:
    assert {b.sensor for b in build(tree, tmp_path / "c", "--sensors", "s1").bands} == {"s1"}
    (tree / "BigEarthNet-S1-v1.0").rename(tmp_path / "elsewhere")
    corpus = build(tree, tmp_path / "d", "--sensors", "s2")
    assert {b.sensor for b in corpus.bands} == {"s2"} and corpus.columns["tile"][...].tolist() == [tile for _, _, tile in PAIRS]
    with pytest.raises(UsageError, match="no folder of s1; legal: --sensors s2"):
        build(tree, tmp_path / "e")


def test_a_missing_partner_is_named_before_anything_is_written(tree: Path, tmp_path: Path) -> None:
    (tree / "BigEarthNet-S1-v1.0" / PAIRS[0][1]).rename(tmp_path / "away")
    with pytest.raises(UsageError, match=f"1 of 6 S2 patches have no S1 patch .*{PAIRS[0][0]}.*--partial"):
        build(tree, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert len(build(tree, tmp_path / "c", "--partial")) == 5


def damage(tree: Path, what: str) -> str:
    """Damage the fourth patch; returns what the error must say."""
    patch, radar, _ = PAIRS[3]
    band = s2_file(tree, patch, "B05.tif")
    if what == "missing band":
        band.unlink()
        return f"{patch}_B05.tif is missing"
    if what == "truncated file":
        band.write_bytes(band.read_bytes()[:2000])
        return f"{patch}_B05.tif cannot be read"
    if what == "wrong shape":
        band.write_bytes(s2_file(tree, patch, "B02.tif").read_bytes())
        return f"{patch}_B05.tif has 1 bands of 120 x 120 pixels; legal: 1 of 60 x 60"
    if what == "other ground":
        for name in ("VV", "VH"):
            other = tree / "BigEarthNet-S1-v1.0" / PAIRS[0][1] / f"{PAIRS[0][1]}_{name}.tif"
            (tree / "BigEarthNet-S1-v1.0" / radar / f"{radar}_{name}.tif").write_bytes(other.read_bytes())
        return f"{radar}.* does not cover the ground"
    path = s2_file(tree, patch, "labels_metadata.json")
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "labels": ["Mixed forrest"]}) if what == "unknown class" else json.dumps(meta)[:-40])
    return "unknown class 'Mixed forrest'; did you mean .*Mixed forest" if what == "unknown class" else "cannot be read"


@pytest.mark.parametrize("what", ["missing band", "truncated file", "wrong shape", "other ground", "unknown class", "truncated json"])
def test_damage_is_an_error_that_names_the_file(tree: Path, tmp_path: Path, what: str) -> None:
    with pytest.raises((UsageError, RunError), match=damage(tree, what)):
        build(tree, tmp_path / "c")


def rewrite(path: Path, change: object) -> None:
    """Give a raster other values."""
    with rasterio.open(path) as file:
        profile, x = file.profile, file.read(1)
    path.unlink()
    with rasterio.open(path, "w", **profile) as file:
        file.write(change(x), 1)


def test_a_radar_pixel_that_is_not_finite_is_no_data_and_reported(tree: Path, tmp_path: Path) -> None:
    radar = PAIRS[3][1]
    rewrite(tree / "BigEarthNet-S1-v1.0" / radar / f"{radar}_VH.tif", lambda x: np.where(np.arange(120) == 7, np.nan, x).astype(x.dtype))
    corpus = build(tree, tmp_path / "c")
    bad = stored(corpus, "VH")[3] == -32768
    assert bad[:, 7].all() and bad.sum() == 120 and (stored(corpus, "VV")[3] != -32768).all()
    assert any(radar in fault and "120 of 28800" in fault for fault in corpus.attributes["faults"])


def test_radar_in_linear_power_is_refused(tree: Path, tmp_path: Path) -> None:
    for path in (tree / "BigEarthNet-S1-v1.0").glob("*/*.tif"):
        rewrite(path, lambda x: (10 ** (x / 10)).astype(x.dtype))
    with pytest.raises(UsageError, match="is not in dB"):
        build(tree, tmp_path / "c")


def test_numbers_with_the_offset_of_newer_baselines_are_refused_and_taken_out_on_request(tree: Path, tmp_path: Path) -> None:
    before = build(tree, tmp_path / "b", "--sensors", "s2")
    for path in (tree / "BigEarthNet-v1.0").glob("*/*.tif"):
        rewrite(path, lambda x: x + np.uint16(1000))
    with pytest.raises(UsageError, match="--s2-offset auto.*release 1.0.*legal: 0 or -1000"):
        build(tree, tmp_path / "c", "--sensors", "s2")
    corpus = build(tree, tmp_path / "c", "--sensors", "s2", "--s2-offset", "-1000")
    np.testing.assert_array_equal(stored(corpus, "B8A"), stored(before, "B8A"))
