"""Source ssl4eo_s12, release 1.0: the published sample against rasterio and json, band by name; pairing, seasons, splits; and what it refuses."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr

sys.path.insert(0, str(Path(__file__).parent))
from archives import unpack  # noqa: E402

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.errors import RunError, UsageError

LOCATION = "0000200"
RADAR = ("S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457", "S1A_IW_GRDH_1SDV_20200903T131212_20200903T131237_034195_03F8F5_AC1C")
# Level, its folder, S2 products in time, and the S1 product nearest to each.
L2A = ("l2a", "s2a", ("20200604T054639_20200604T054831_T43RCP", "20200813T054639_20200813T054952_T43RCP"))
L1C = ("l1c", "s2c", ("20200604T054639_20200604T054831_T43RCP", "20200823T054639_20200823T055618_T43RCP"))
PIXELS = {"B1": 44, "B9": 44, "B10": 44, "B5": 132, "B6": 132, "B7": 132, "B8A": 132, "B11": 132, "B12": 132, "B2": 264, "B3": 264, "B4": 264, "B8": 264}


def build(root: Path, out: Path, *extra: str) -> Corpus:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "ssl4eo_s12", "--root", str(root), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


@pytest.fixture(scope="module")
def release(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, read only."""
    root = tmp_path_factory.mktemp("ssl4eo")
    unpack(sample_data / "pairs" / "ssl4eo_s12" / "0000200.tar.gz", root)
    return root


@pytest.fixture
def tree(release: Path, tmp_path: Path) -> Path:
    """The sample, to be changed."""
    return Path(shutil.copytree(release, tmp_path / "release"))


def stored(corpus: Corpus, band: str) -> np.ndarray:
    """(N, h, w) of one band, found by its name in zarr-python's view; B2 and B02 are one name."""
    group = zarr.open_group(corpus.path, mode="r")
    full = band if len(band) > 2 or band in ("VV", "VH") else f"B0{band[1:]}"
    name = next(name for name in group.array_keys() if full in group[name].attrs["bands"])
    return group[name][:, group[name].attrs["bands"].index(full)]


@pytest.mark.parametrize(("level", "folder", "products"), [L2A, L1C])
def test_every_value_of_every_band_is_the_file_at_its_own_resolution(release: Path, tmp_path: Path, level: str, folder: str, products: tuple[str, ...]) -> None:
    corpus = build(release, tmp_path / "c", "--level", level)
    bands = [band for band in PIXELS if level == "l1c" or band != "B10"]
    for band in bands:
        for row, product in enumerate(products):
            with rasterio.open(release / folder / LOCATION / product / f"{band}.tif") as file:
                assert file.shape == (PIXELS[band], PIXELS[band])
                np.testing.assert_array_equal(stored(corpus, band)[row], file.read(1), err_msg=f"{product} {band}")
    for band in ("VV", "VH"):
        for row, product in enumerate(RADAR):
            with rasterio.open(release / "s1" / LOCATION / product / f"{band}.tif") as file:
                assert np.abs(stored(corpus, band)[row] * 0.01 - file.read(1)).max() <= 0.005 + 1e-6
    assert len(corpus.bands) == len(bands) + 2
    units = {corpus.arrays[b.array].attrs["units"] for b in corpus.bands if b.sensor == "s2"}
    assert units == {"reflectance" if level == "l2a" else "TOA reflectance"}


def test_times_place_and_scene_cloud_come_from_the_published_files(release: Path, tmp_path: Path) -> None:
    corpus = build(release, tmp_path / "c")
    for row, product in enumerate(L2A[2]):
        meta = json.loads((release / "s2a" / LOCATION / product / "metadata.json").read_text())
        with rasterio.open(release / "s2a" / LOCATION / product / "B2.tif") as file:
            left, bottom, right, top = file.bounds  # degrees
        np.testing.assert_allclose([corpus.index.lon[row], corpus.index.lat[row]], [(left + right) / 2, (bottom + top) / 2], atol=1e-9)
        assert corpus.columns["scene_cloud"][row] == np.float32(meta["CLOUDY_PIXEL_PERCENTAGE"] / 100)
        # The name gives the start of the datatake, Earth Engine the time of the tile within it.
        assert 0 <= meta["system:time_start"] * 10**6 - corpus.index.time_s2[row] < 3600e9
    stamps = np.array(["2020-06-07T01:08:00", "2020-09-03T13:12:12"], "datetime64[ns]").astype(np.int64)
    assert corpus.index.time_s1.tolist() == stamps.tolist()
    assert np.isnan(corpus.index.x).all() and (corpus.index.epsg == 0).all()  # the files are in degrees
    assert corpus.columns["location"][...].tolist() == [LOCATION] * 2 and corpus.columns["season"][...].tolist() == [0, 1]


def test_each_s2_image_takes_the_s1_image_nearest_in_time(tree: Path, tmp_path: Path) -> None:
    # June 4 and August 13 against July 25 alone, then against July 25 and August 20: the second image changes its partner.
    folder = tree / "s1" / LOCATION
    early = RADAR[0].replace("20200607", "20200725")
    (folder / RADAR[0]).rename(folder / early)
    (folder / RADAR[1]).rename(tmp_path / "away")
    assert len(set(build(tree, tmp_path / "c").index.time_s1.tolist())) == 1
    (tmp_path / "away").rename(folder / RADAR[1].replace("20200903", "20200820"))
    days = build(tree, tmp_path / "d").index.time_s1.astype("datetime64[ns]").astype("datetime64[D]")
    assert days.tolist() == [np.datetime64("2020-07-25").item(), np.datetime64("2020-08-20").item()]


def test_seasons_limits_the_rows_of_a_location(tree: Path, tmp_path: Path) -> None:
    assert len(build(tree, tmp_path / "c", "--seasons", "first")) == len(build(tree, tmp_path / "d", "--seasons", "1")) == 1
    assert len(build(tree, tmp_path / "e", "--seasons", "3")) == 2
    for text in ("0", "spring"):
        with pytest.raises(UsageError, match=f"--seasons {text}: legal: all, first or a number"):
            build(tree, tmp_path / "f", "--seasons", text)


def test_seasons_of_a_location_are_in_one_split_though_their_grids_straddle_a_block(tree: Path, tmp_path: Path) -> None:
    """Move the second season by 600 m over the edge of a block, and keep the first; then add far locations so that all splits are used."""
    with rasterio.open(tree / "s2a" / LOCATION / L2A[2][0] / "B2.tif") as file:
        lat = (file.bounds.bottom + file.bounds.top) / 2
    edge = np.ceil(lat / 0.25) * 0.25 - lat  # degrees to the next block
    for number in range(1, 9):
        for sensor in ("s1", "s2a"):
            shutil.copytree(tree / sensor / LOCATION, tree / sensor / f"{number:07d}")
    for folder in sorted((tree / "s2a").iterdir()):
        move = edge + 3.0 * int(folder.name) if folder.name != LOCATION else edge
        for season, product in enumerate(sorted(folder.iterdir())):
            for path in [*product.glob("*.tif"), *((tree / "s1" / folder.name / RADAR[season]).glob("*.tif"))]:
                with rasterio.open(path, "r+") as file:
                    t = file.transform
                    file.transform = rasterio.Affine(t.a, t.b, t.c, t.d, t.e, t.f + move + (0.0027 if season else -0.0027))
    corpus = build(tree, tmp_path / "c")
    split = corpus.index.split.reshape(9, 2)
    blocks = np.floor(corpus.index.lat.reshape(9, 2) / 0.25)
    assert (blocks[:, 0] != blocks[:, 1]).all() and (split[:, 0] == split[:, 1]).all() and len(set(split[:, 0].tolist())) == 3


def test_the_offset_is_decided_for_each_product_by_its_baseline(tree: Path, tmp_path: Path) -> None:
    plain = build(tree, tmp_path / "b")
    product = tree / "s2a" / LOCATION / L2A[2][1]
    meta = json.loads((product / "metadata.json").read_text())
    (product / "metadata.json").write_text(json.dumps({**meta, "PROCESSING_BASELINE": "04.00"}))
    with pytest.raises(UsageError, match="--s2-offset auto cannot tell.*04.00 says -1000, but pixels"):
        build(tree, tmp_path / "c")
    for path in product.glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.write(file.read(1) + np.uint16(1000), 1)
    corpus = build(tree, tmp_path / "d")
    np.testing.assert_array_equal(stored(corpus, "B8A"), stored(plain, "B8A"))
    offsets = corpus.attributes["made_by"]["s2_offset"]
    assert [offsets[f"{LOCATION}/{name}"]["offset"] for name in L2A[2]] == [0, -1000]


def damage(tree: Path, what: str) -> str:
    """Damage the second season; returns what the error must say."""
    s2, s1 = tree / "s2a" / LOCATION, tree / "s1" / LOCATION
    product = s2 / L2A[2][1]
    if what == "missing band":
        (product / "B8A.tif").unlink()
        return f"{product.name}/B8A.tif is missing"
    if what == "truncated file":
        (product / "B8A.tif").write_bytes((product / "B8A.tif").read_bytes()[:3000])
        return f"{product.name}/B8A.tif cannot be read"
    if what == "wrong shape":
        shutil.copyfile(product / "B2.tif", product / "B8A.tif")
        return "B8A.tif has 1 bands of 264 x 264 pixels; legal: 1 of 132 x 132"
    if what == "no metadata":
        (product / "metadata.json").write_text("{")
        return f"{product.name}/metadata.json cannot be read"
    if what == "foreign folder":
        (s2 / "thumbs").mkdir()
        return f"{LOCATION} holds thumbs; legal: folders named by S2 products"
    if what == "no radar":
        s1.rename(tree / "away")
        return f"1 locations are in one sensor's folder only, such as .*s2a/{LOCATION}"
    for path in (s1 / RADAR[1]).glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            t = file.transform
            file.transform = rasterio.Affine(t.a, t.b, t.c + 1, t.d, t.e, t.f)
    return f"{RADAR[1]}: centre"


@pytest.mark.parametrize("what", ["missing band", "truncated file", "wrong shape", "no metadata", "foreign folder", "no radar", "elsewhere"])
def test_damage_is_an_error_that_names_the_file(tree: Path, tmp_path: Path, what: str) -> None:
    message = damage(tree, what)
    with pytest.raises((UsageError, RunError), match=message):
        build(tree, tmp_path / "c")


def test_radar_that_is_not_finite_is_no_data_and_reported(tree: Path, tmp_path: Path) -> None:
    with rasterio.open(tree / "s1" / LOCATION / RADAR[1] / "VH.tif", "r+") as file:
        x = file.read(1)
        x[:, 9] = -np.inf
        file.write(x, 1)
    corpus = build(tree, tmp_path / "c")
    assert np.argwhere(stored(corpus, "VH") == -32768).tolist() == [[1, y, 9] for y in range(264)]
    assert any(RADAR[1] in fault and "264 of" in fault for fault in corpus.attributes["faults"])


def test_a_root_without_the_release_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither s1, s2a, s2c .*nor S1GRD, S2L2A, S2L1C"):
        build(tmp_path, tmp_path / "c")
