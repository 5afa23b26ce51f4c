"""Source dfc2020 on trees in both published layouts, against rasterio and numpy, band by name; duplicates, classes and splits."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from scipy.ndimage import zoom

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import SPLITS
from dsengine.errors import RunError, UsageError

S2_FILE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
# DFC2020 baseline and SSLTransformerRS: place in the folder's name, scene in the file's name.
LAYOUTS = {"named": {"validation": ("validation", "0"), "test": ("0", "0")}, "numbered": {"validation": ("0", "0"), "test": ("0", "0")}}
IGBP_TO_DFC = {0: 255, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 2, 7: 2, 8: 3, 9: 3, 10: 4, 11: 5, 12: 6, 13: 7, 14: 6, 15: 8, 16: 9, 17: 10}


def write(root: Path, part: str, folder: str, place: str, scene: str, number: int, x: np.ndarray, left: float | None) -> Path:
    path = root / folder / f"{part}_{place}" / f"{folder}_{part}_{scene}_p{number}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {} if left is None else {"crs": "EPSG:32633", "transform": from_origin(left, 5000000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", height=256, width=256, count=len(x), dtype=x.dtype, **where) as file:
        file.write(x)
    return path


def pixels(seed: int) -> dict[str, np.ndarray]:
    """Smooth imagery and blocky labels; every class occurs."""
    rng = np.random.default_rng(seed)
    fields = np.stack([zoom(rng.uniform(0, 1, (9, 9)), 256 / 9, order=1) for _ in range(15)])
    blocks = {"lc": rng.permutation(np.arange(64) % 18), "dfc": rng.permutation(np.arange(64) % 11)}
    return {"s2": (100 + 5000 * fields[:13]).astype(np.uint16), "s1": (-25 + 20 * fields[13:]).astype(np.float32),
            "lc": np.repeat(zoom(blocks["lc"].reshape(8, 8), 32, order=0)[None], 4, axis=0).astype(np.uint16),
            "dfc": zoom(blocks["dfc"].reshape(8, 8), 32, order=0)[None].astype(np.uint8)}


def add(root: Path, folder: str, place: str, scene: str, number: int, seed: int, left: float | None = 500000) -> None:
    for part, x in pixels(seed).items():
        write(root, part, folder, place, scene, number, x, None if left is None else left + 2560 * seed)


def make_tree(root: Path, layout: str, left: float | None = 500000) -> Path:
    """validation p0 p1 (seeds 0, 1), test p0 p1 p10 (2, 3, 4)."""
    for name, numbers, first in (("validation", (0, 1), 0), ("test", (0, 1, 10), 2)):
        for i, number in enumerate(numbers):
            add(root, f"ROIs0000_{name}", *LAYOUTS[layout][name], number, first + i, left)
    return root


def build(root: Path, out: Path, *extra: str) -> Corpus:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "dfc2020", "--root", str(root), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With seasonal folders: p7 is validation p1 again, p8 differs from test p0 in one S1 pixel of the last row, p9 is its own."""
    root = make_tree(tmp_path_factory.mktemp("dfc") / "t", "named")
    add(root, "ROIs0000_autumn", "CapeTown", "CapeTown", 7, 1)
    add(root, "ROIs0000_autumn", "CapeTown", "CapeTown", 8, 2)
    x = pixels(2)["s1"]
    x[1, 255, 255] += 0.5
    write(root, "s1", "ROIs0000_autumn", "CapeTown", "CapeTown", 8, x, 500000 + 2560 * 2)
    add(root, "ROIs0001_spring", "BlackForest", "BlackForest", 9, 5)
    return root


@pytest.fixture(scope="module")
def corpus(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tree, tmp_path_factory.mktemp("dfc") / "c")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_give_the_values_that_rasterio_reads_by_name(tmp_path: Path, layout: str) -> None:
    root = make_tree(tmp_path / "t", layout)
    corpus = build(root, tmp_path / "c")
    assert len(corpus) == 5 and [b.name for b in corpus.bands] == [*S2_FILE_ORDER, "VV", "VH"]
    s2, s1, channel = corpus.read(range(5), "s2"), corpus.read(range(5), "s1"), {b.name: b.channel for b in corpus.bands}
    for row, source in enumerate(corpus.index.source):
        for part, bands, stored, unit, bound in (("s2", S2_FILE_ORDER, s2, 1, 0), ("s1", ("VV", "VH"), s1, 0.01, 0.005 + 1e-6)):
            with rasterio.open(root / source.replace("s2_", f"{part}_")) as file:
                for band, plane in zip(bands, file.read(), strict=True):
                    assert np.abs(stored[row, channel[band]] * unit - plane).max() <= bound, (source, band)
                assert (corpus.index.x[row], corpus.index.y[row], corpus.index.epsg[row]) == (file.transform.c, file.transform.f, 32633)


def test_duplicates_are_found_by_their_pixels_and_the_first_stays(corpus: Corpus) -> None:
    names = [Path(source).name for source in corpus.index.source]
    assert names == ["ROIs0000_validation_s2_0_p0.tif", "ROIs0000_validation_s2_0_p1.tif", "ROIs0000_test_s2_0_p0.tif", "ROIs0000_test_s2_0_p1.tif",
                     "ROIs0000_test_s2_0_p10.tif", "ROIs0000_autumn_s2_CapeTown_p8.tif", "ROIs0001_spring_s2_BlackForest_p9.tif"]
    assert corpus.attributes["made_by"]["left_out"] == {"a file is missing": 0, "same S1 and S2 pixels as an earlier patch": 1}


def test_duplicates_stay_when_asked_for(tree: Path, tmp_path: Path) -> None:
    corpus = build(tree, tmp_path / "c", "--keep-duplicates")
    assert len(corpus) == 8 and "same S1 and S2 pixels as an earlier patch" not in corpus.attributes["made_by"]["left_out"]


def test_ten_classes_keep_their_values_and_names(corpus: Corpus, tree: Path) -> None:
    for row, source in enumerate(corpus.index.source):
        with rasterio.open(tree / source.replace("s2_", "dfc_")) as file:
            expected = file.read(1)
        np.testing.assert_array_equal(corpus.labels["dfc"][row], np.where(expected == 0, 255, expected))
    attrs = dict(corpus.labels["dfc"].attrs)
    assert attrs["ignore"] == 255 and len(attrs["classes"]) == 10 and (attrs["classes"]["1"], attrs["classes"]["10"]) == ("forest", "water")


def test_eight_classes_ignore_savanna_and_snow(tree: Path, tmp_path: Path) -> None:
    corpus = build(tree, tmp_path / "c", "--classes", "8", "--lc", "dfc")
    for row, source in enumerate(corpus.index.source):
        with rasterio.open(tree / source.replace("s2_", "dfc_")) as dfc, rasterio.open(tree / source.replace("s2_", "lc_")) as lc:
            fine, coarse = dfc.read(1), np.vectorize(IGBP_TO_DFC.get)(lc.read(1))
        for name, x in (("dfc", fine), ("lc_dfc", coarse)):
            np.testing.assert_array_equal(corpus.labels[name][row], np.where(np.isin(x, (0, 3, 8)), 255, x), err_msg=name)
    for name in ("dfc", "lc_dfc"):
        assert sorted(map(int, corpus.labels[name].attrs["classes"])) == [1, 2, 4, 5, 6, 7, 9, 10]


def test_igbp_keeps_its_own_classes_by_default(corpus: Corpus, tree: Path) -> None:
    with rasterio.open(tree / corpus.index.source[0].replace("s2_", "lc_")) as file:
        expected = file.read(1)
    np.testing.assert_array_equal(corpus.labels["igbp"][0], np.where(expected == 0, 255, expected))
    assert len(corpus.labels["igbp"].attrs["classes"]) == 17


@pytest.mark.parametrize(("flags", "validation"), [((), "val"), (("--validation-as", "train"), "train")])
def test_official_splits_are_the_folders(tree: Path, tmp_path: Path, flags: tuple[str, ...], validation: str) -> None:
    corpus = build(tree, tmp_path / "c", "--split", "given", *flags)
    role = {"validation": validation, "test": "test", "autumn": "train", "spring": "train"}
    assert [SPLITS[code] for code in corpus.index.split] == [role[source.split("/")[0].split("_")[1]] for source in corpus.index.source]


def test_parts_can_be_chosen_and_files_without_a_place_have_official_splits_only(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "t", "numbered", left=None)
    with pytest.raises(UsageError, match=r"ROIs0000_test_s2_0_p0.tif has no CRS, so it cannot be split by place; legal: --split given"):
        build(root, tmp_path / "c", "--parts", "test")
    corpus = build(root, tmp_path / "c", "--parts", "test", "--split", "given")
    assert len(corpus) == 3 and np.isnan(corpus.index.lon).all() and (corpus.index.epsg == 0).all()
    with pytest.raises(UsageError, match="--parts tset: 'tset': did you mean test"):
        build(root, tmp_path / "d", "--parts", "tset")


def test_missing_files_and_strange_values_are_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "t", "numbered")
    x = pixels(0)["dfc"]
    x[0, 5, 5] = 11
    write(root, "dfc", "ROIs0000_validation", "0", "0", 0, x, 500000)
    with pytest.raises(RunError, match=r"dfc_0_p0.tif band 1 \(dfc\) has value 11; legal: 0, 1, 2"):
        build(root, tmp_path / "c")
    shutil.rmtree(root / "ROIs0000_test" / "lc_0")
    with pytest.raises(UsageError, match=r"3 of 5 patches lack a file; the first is .*ROIs0000_test_lc_0_p0.tif. .* or --lc none"):
        build(root, tmp_path / "d")
    (root / "ROIs0000_test" / "s1_0" / "ROIs0000_test_s1_0_p1.tif").write_bytes(b"II*\0")
    with pytest.raises(RunError, match=r"s1_0_p1.tif cannot be read"):
        build(root, tmp_path / "d", "--parts", "test", "--lc", "none")
    with pytest.raises(UsageError, match="holds no part of DFC2020"):
        build(tmp_path, tmp_path / "e")
