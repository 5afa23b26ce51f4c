"""Source eurosat_ms: the published sample and a tree in the archive's layout against rasterio, band by name; splits; and what it refuses."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import SPLITS, UNKNOWN_TIME
from dsengine.errors import RunError, UsageError

# The order of bands in a file, as published: B8A is the last.
FILE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
SAMPLE = ("AnnualCrop_1", "Pasture_300", "SeaLake_3000")
NESTED = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"


def build(root: Path, out: Path, *extra: str) -> Corpus:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "eurosat_ms", "--root", str(root), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


@pytest.fixture(scope="module")
def flat(sample_data: Path) -> Path:
    return sample_data / "s2" / "eurosat_ms"


@pytest.fixture
def tree(flat: Path, tmp_path: Path) -> Path:
    """The sample as the original archive nests it, with two copies under other numbers."""
    for name, source in [*((name, name) for name in SAMPLE), ("Pasture_2", "Pasture_300"), ("SeaLake_10", "SeaLake_3000")]:
        folder = tmp_path / "root" / NESTED / name.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(flat / f"{source}.tif", folder / f"{name}.tif")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def corpus(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(flat, tmp_path_factory.mktemp("eurosat") / "corpus")


def band(corpus: Corpus, name: str) -> np.ndarray:
    """(N, 64, 64) of one band, found by its name in zarr-python's view."""
    array = zarr.open_group(corpus.path, mode="r")["s2"]
    return array[:, array.attrs["bands"].index(name)]


def rewrite(path: Path, change: object) -> None:
    """Give a raster other values."""
    with rasterio.open(path) as file:
        profile, x = file.profile, file.read()
    path.unlink()
    with rasterio.open(path, "w", **profile) as file:
        file.write(change(x))


def test_every_value_of_every_band_is_the_file_in_its_published_order(corpus: Corpus, flat: Path) -> None:
    for row, name in enumerate(SAMPLE):
        with rasterio.open(flat / f"{name}.tif") as file:
            for index, known in enumerate(FILE_ORDER, start=1):
                np.testing.assert_array_equal(band(corpus, known)[row], file.read(index), err_msg=f"{name} {known}")
    assert [b.name for b in corpus.bands] == sorted(FILE_ORDER, key=lambda name: (name.replace("B8A", "B08A"), name))


def test_b8a_looks_like_its_spectral_neighbour_and_the_cirrus_band_is_dark(corpus: Corpus) -> None:
    # Fails when files are read as B01..B08, B8A, B09...: B8A would then be the water vapour band and B10 the short-wave infrared.
    land = slice(0, 2)
    near = np.corrcoef(band(corpus, "B8A")[land].ravel(), band(corpus, "B07")[land].ravel())[0, 1]
    assert near > 0.95
    assert abs(np.median(band(corpus, "B8A")[land]) / np.median(band(corpus, "B07")[land]) - 1) < 0.3
    assert band(corpus, "B10").max() < 100 < np.median(band(corpus, "B09"))


def test_class_place_and_unknown_time(corpus: Corpus, flat: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    names = corpus.labels["scene"].attrs["classes"]
    assert [names[str(value)] for value in corpus.labels["scene"][...]] == ["AnnualCrop", "Pasture", "SeaLake"]
    assert list(names.values()) == sorted(names.values()) and len(names) == 10
    for row, name in enumerate(SAMPLE):
        with rasterio.open(flat / f"{name}.tif") as file:
            left, bottom, right, top = file.bounds
            lon, lat = pyproj.Transformer.from_crs(file.crs.to_epsg(), 4326, always_xy=True).transform((left + right) / 2, (bottom + top) / 2)
        np.testing.assert_allclose([corpus.index.lon[row], corpus.index.lat[row]], [lon, lat], atol=1e-8)
        assert (corpus.index.x[row], corpus.index.y[row]) == (left, top)
    assert (corpus.index.time_s2 == UNKNOWN_TIME).all()


def test_no_offset_is_found_by_pixels_and_recorded_with_the_reason(corpus: Corpus) -> None:
    (decision,) = corpus.attributes["made_by"]["s2_offset"].values()
    assert decision["offset"] == 0 and "darkest 1 % of B10" in decision["reason"]


def test_a_nested_root_is_found_and_rows_go_by_class_and_number(tree: Path, tmp_path: Path, corpus: Corpus) -> None:
    nested = build(tree, tmp_path / "c")
    assert [Path(s).stem for s in nested.index.source] == ["AnnualCrop_1", "Pasture_2", "Pasture_300", "SeaLake_10", "SeaLake_3000"]
    np.testing.assert_array_equal(nested.read([0, 2, 4], "s2"), corpus.read([0, 1, 2], "s2"))


def write_lists(folder: Path, rows: dict[str, list[str]], prefix: str = "eurosat") -> None:
    folder.mkdir(exist_ok=True)
    for name in SPLITS:
        (folder / f"{prefix}-{name}.txt").write_text("".join(f"{stem}.jpg\n" for stem in rows.get(name, [])))


OFFICIAL = {"train": ["SeaLake_10", "AnnualCrop_1"], "val": ["Pasture_2"], "test": ["Pasture_300", "SeaLake_3000"]}


def test_official_lists_give_the_split_though_they_name_jpg_files(tree: Path, tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", OFFICIAL)
    corpus = build(tree, tmp_path / "c", "--splits", str(tmp_path / "lists"))
    assert {name: sorted(Path(s).stem for s in corpus.index.source[corpus.index.split == code]) for code, name in enumerate(SPLITS)} == \
        {name: sorted(rows) for name, rows in OFFICIAL.items()}
    write_lists(tmp_path / "lists", {**OFFICIAL, "train": OFFICIAL["test"], "test": OFFICIAL["train"]}, "eurosat-spatial")
    with pytest.raises(UsageError, match="both eurosat-.*eurosat-spatial"):
        build(tree, tmp_path / "d", "--splits", str(tmp_path / "lists"))
    spatial = build(tree, tmp_path / "d", "--splits", str(tmp_path / "lists" / "eurosat-spatial"))
    assert (spatial.index.split != corpus.index.split).sum() == 4


def test_by_default_patches_of_one_place_are_in_one_split(tree: Path, tmp_path: Path) -> None:
    for seed in range(4):
        split = build(tree, tmp_path / str(seed), "--seed", str(seed)).index.split
        assert split[1] == split[2] and split[3] == split[4]  # copies of one file lie at one place


@pytest.mark.parametrize(("change", "message"), [
    ({"train": ["SeaLake_10"]}, "1 patches are in no list, such as AnnualCrop_1"),
    ({"val": ["Pasture_2", "Forest_7"]}, "1 patches are not on disk, such as Forest_7"),
    ({"val": ["Pasture_2", "SeaLake_10"]}, "SeaLake_10.jpg is in the train list too"),
])
def test_lists_that_do_not_fit_the_files_are_refused(tree: Path, tmp_path: Path, change: dict[str, list[str]], message: str) -> None:
    write_lists(tmp_path / "lists", {**OFFICIAL, **change})
    with pytest.raises(UsageError, match=message):
        build(tree, tmp_path / "c", "--splits", str(tmp_path / "lists"))


def test_partial_lists_and_files_give_what_both_have(tree: Path, tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", {"train": ["SeaLake_10"], "val": ["Forest_7", "Pasture_2"]})
    corpus = build(tree, tmp_path / "c", "--splits", str(tmp_path / "lists"), "--partial")
    assert [Path(s).stem for s in corpus.index.source] == ["Pasture_2", "SeaLake_10"] and corpus.index.split.tolist() == [1, 0]


def damage(tree: Path, what: str) -> str:
    """Damage the tree; returns what the error must say."""
    folder = tree / NESTED
    crop = folder / "AnnualCrop" / "AnnualCrop_1.tif"
    if what == "unknown class":
        (folder / "Forests").mkdir()
        shutil.copyfile(crop, folder / "Forests" / "Forests_1.tif")
        return "'?Forests'? is not a class; did you mean .*Forest"
    if what == "other folder":
        crop.rename(folder / "Pasture" / crop.name)
        return "AnnualCrop_1.tif lies in the folder of Pasture; legal: AnnualCrop"
    if what == "truncated file":
        crop.write_bytes(crop.read_bytes()[:5000])
        return "AnnualCrop_1.tif cannot be read"
    if what == "three bands":
        with rasterio.open(crop) as file:
            profile, x = file.profile, file.read([4, 3, 2])
        crop.unlink()
        with rasterio.open(crop, "w", **{**profile, "count": 3}) as file:
            file.write(x)
        return "AnnualCrop_1.tif has 3 bands of 64 x 64 pixels; legal: 13 of 64 x 64"
    with rasterio.open(crop) as file:
        profile, x = file.profile, file.read()
    crop.unlink()
    with rasterio.open(crop, "w", **{**profile, "crs": None}) as file:
        file.write(x)
    return "AnnualCrop_1.tif has no CRS"


@pytest.mark.parametrize("what", ["unknown class", "other folder", "truncated file", "three bands", "no crs"])
def test_damage_is_an_error_that_names_the_file(tree: Path, tmp_path: Path, what: str) -> None:
    message = damage(tree, what)
    with pytest.raises((UsageError, RunError), match=message):
        build(tree, tmp_path / "c")


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither class folders such as AnnualCrop nor files"):
        build(tmp_path, tmp_path / "c")


def test_files_with_the_offset_of_newer_baselines_lose_it(tree: Path, tmp_path: Path, corpus: Corpus) -> None:
    for path in tree.rglob("*.tif"):
        rewrite(path, lambda x: x + np.uint16(1000))
    shifted = build(tree, tmp_path / "c")
    (decision,) = shifted.attributes["made_by"]["s2_offset"].values()
    assert decision["offset"] == -1000
    np.testing.assert_array_equal(shifted.read([0, 2, 4], "s2"), corpus.read([0, 1, 2], "s2"))


def test_one_file_without_the_offset_among_others_with_it_is_refused(tree: Path, tmp_path: Path) -> None:
    for path in sorted(tree.rglob("*.tif"))[1:]:
        rewrite(path, lambda x: x + np.uint16(1000))
    with pytest.raises(UsageError, match="--s2-offset auto"):
        build(tree, tmp_path / "c")
