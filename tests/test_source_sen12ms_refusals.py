"""What source sen12ms refuses: each refusal names the file or flag, and nothing is written."""

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from dsengine.corpus import open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.sources import sen12ms
from dsengine.errors import RunError, UsageError

FOLDER = "ROIs1158_spring"


def write(root: Path, part: str, number: int, x: np.ndarray, *, epsg: int | None = 32632, left: float = 400000) -> Path:
    path = root / FOLDER / f"{part}_1" / f"{FOLDER}_{part}_1_p{number}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {} if epsg is None else {"crs": f"EPSG:{epsg}", "transform": from_origin(left, 5300000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", height=x.shape[1], width=x.shape[2], count=len(x), dtype=x.dtype, **place) as file:
        file.write(x)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two whole patches of one scene."""
    for number in (1, 2):
        write(tmp_path / "t", "s2", number, np.full((13, 256, 256), 500, np.uint16))
        write(tmp_path / "t", "s1", number, np.full((2, 256, 256), -9.5, np.float32))
        write(tmp_path / "t", "lc", number, np.full((4, 256, 256), 3, np.uint16))
    return tmp_path / "t"


def build(tree: Path, *extra: str) -> None:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(tree.parent / "c"), "--source", "sen12ms", "--root", str(tree), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    args.run(args)


def refused(tree: Path, match: str, *extra: str) -> None:
    """The build is refused before anything is written."""
    with pytest.raises(UsageError, match=match):
        build(tree, *extra)
    assert not (tree.parent / "c").exists()


def test_a_patch_that_lacks_a_file_is_named_or_left_out_and_counted(tree: Path) -> None:
    (tree / FOLDER / "lc_1" / f"{FOLDER}_lc_1_p2.tif").unlink()
    refused(tree, r"1 of 2 patches lack a file; the first is .*lc_1_p2.tif. Give --skip-incomplete")
    build(tree, "--skip-incomplete")
    corpus = open_corpus(tree.parent / "c")
    assert len(corpus) == 1 and corpus.attributes["made_by"]["left_out"]["a file is missing"] == 1


def test_a_whole_missing_folder_is_a_missing_file(tree: Path) -> None:
    (tree / FOLDER / "s1_1").rename(tree / FOLDER / "s1_2")
    refused(tree, r"2 of 2 patches lack a file; the first is .*s1_1/ROIs1158_spring_s1_1_p1.tif")


def test_integer_backscatter_is_refused_because_its_decibels_were_cut_off(tree: Path) -> None:
    write(tree, "s1", 1, np.full((2, 256, 256), -9, np.int16))
    refused(tree, r"s1_1_p1.tif has 256 x 256 pixels, 2 bands of int16; legal: .*floating-point dB")


def test_linear_backscatter_is_refused(tree: Path) -> None:
    write(tree, "s1", 1, np.full((2, 256, 256), 0.12, np.float32))
    refused(tree, r"s1_1_p1.tif is not in dB")


@pytest.mark.parametrize(("part", "x"), [("s2", np.zeros((12, 256, 256), np.uint16)), ("s2", np.zeros((13, 128, 128), np.uint16)),
                                         ("s2", np.zeros((13, 256, 256), np.float32)), ("lc", np.zeros((3, 256, 256), np.uint16))])
def test_files_of_another_form_are_named_with_what_they_are(tree: Path, part: str, x: np.ndarray) -> None:
    path = write(tree, part, 1, x)
    refused(tree, rf"{path.name} has {x.shape[2]} x {x.shape[1]} pixels, {len(x)} bands of {x.dtype}; legal: 256 x 256")


def test_a_declared_giant_is_refused_before_it_is_read(tree: Path) -> None:
    path = tree / FOLDER / "s2_1" / f"{FOLDER}_s2_1_p1.tif"
    with rasterio.open(path, "w", driver="GTiff", height=60000, width=60000, count=13, dtype="uint16", sparse_ok=True, bigtiff="yes", tiled=True):
        pass  # 94 GB declared, a few kB on disk
    refused(tree, r"s2_1_p1.tif has 60000 x 60000 pixels")


def test_a_file_of_another_kind_is_not_opened_as_what_it_says(tree: Path) -> None:
    path = tree / FOLDER / "s1_1" / f"{FOLDER}_s1_1_p1.tif"
    other = path.with_name(f"{FOLDER}_s1_1_p2.tif")
    path.write_text(f'<VRTDataset rasterXSize="256" rasterYSize="256">' + "".join(
        f'<VRTRasterBand dataType="Float32" band="{band}"><SimpleSource><SourceFilename>{other}</SourceFilename><SourceBand>{band}</SourceBand>'
        "</SimpleSource></VRTRasterBand>" for band in (1, 2)) + "</VRTDataset>")
    refused(tree, r"s1_1_p1.tif cannot be read")


def test_files_that_lie_elsewhere_than_their_s2_file_are_named(tree: Path) -> None:
    write(tree, "s1", 1, np.full((2, 256, 256), -9.5, np.float32), left=400010)
    refused(tree, r"s1_1_p1.tif is not on the grid of its s2 file")


def test_a_truncated_file_found_while_writing_is_a_run_error_that_names_it(tree: Path) -> None:
    path = tree / FOLDER / "s1_1" / f"{FOLDER}_s1_1_p2.tif"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RunError, match=r"s1_1_p2.tif cannot be read"):
        build(tree)


def test_files_without_a_place_are_refused(tree: Path) -> None:
    write(tree, "s2", 1, np.full((13, 256, 256), 500, np.uint16), epsg=None)
    write(tree, "s1", 1, np.full((2, 256, 256), -9.5, np.float32), epsg=None)
    write(tree, "lc", 1, np.ones((4, 256, 256), np.uint16), epsg=None)
    refused(tree, r"s2_1_p1.tif has no CRS")


def test_strange_names_and_empty_roots_are_named(tree: Path, tmp_path: Path) -> None:
    (tree / FOLDER / "s2_1" / "ROIs1158_spring_s2_1_p03.tif").touch()
    refused(tree, r"p03.tif: legal in this folder: ROIs1158_spring_s2_<scene>_p<number>.tif")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"holds no season of SEN12MS; legal: a folder with ROIs1158_spring")


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_malicious_list_is_refused_by_name_and_runs_nothing(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "train_list.pkl"
    path.write_bytes(pickle.dumps([f"{FOLDER}_s2_1_p1.tif", Evil(tmp_path / "made")]))
    refused(tree, r"train_list.pkl is refused: it names posix.mkdir", "--list", f"train={path}")
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "made").exists()  # it would have


@pytest.mark.parametrize(("content", "match"), [
    ("ROIs1158_spring_s2_1_p7.tif", "names ROIs1158_spring_[*]_1_p7, which is not there"),
    ("ROIs1158_spring/s1_9", "of which no patch is there"),
    ("../../etc/passwd", "is neither a patch"), ("ROIs1158_spring_s2_1_p1.png", "is neither a patch"),
    ("", "no patch of ROIs1158_spring is in a list")])
def test_entries_that_are_no_patch_of_the_tree_are_named(tree: Path, tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "l.txt").write_text(content)
    refused(tree, match, "--list", f"train={tmp_path}/l.txt")


def test_a_patch_in_two_lists_is_refused(tree: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{FOLDER}_s2_1_p1.tif")
    refused(tree, r"ROIs1158_spring_[*]_1_p1 is in a list of train, too", "--list", f"train={tmp_path}/a.txt", "--list", f"test={tmp_path}/b.txt")


@pytest.mark.parametrize("flags", [("--list", "train"), ("--list", "holdout=x.txt"), ("--list", "train=/none.txt"), ("--val-share", "0.1"),
                                   ("--rest", "train"), ("--val-share", "1.5")])
def test_flags_without_a_meaning_are_refused(tree: Path, flags: tuple[str, str]) -> None:
    refused(tree, flags[0] if "none" not in flags[1] else "none.txt cannot be read", *flags)


def test_a_plan_pickles_and_cuts_the_same_bytes_in_any_grouping(tree: Path) -> None:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(tree.parent / "c"), "--source", "sen12ms", "--root", str(tree)]
    add_parser(parser.add_subparsers(), argv)
    cut = pickle.loads(pickle.dumps(sen12ms.plan(parser.parse_args(argv)))).cut
    whole, first, second = cut(range(2)), cut(range(1)), cut(range(1, 2))
    for part in ("arrays", "labels", "index"):
        for name, values in getattr(whole, part).items():
            np.testing.assert_array_equal(values, np.concatenate([getattr(first, part)[name], getattr(second, part)[name]]))
