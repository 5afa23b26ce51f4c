"""What source deepsentinel refuses: each refusal names file or flag, and nothing is written; and that a cut depends on its rows alone."""

import argparse
import io
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dsengine.corpus.commands import add_parser
from dsengine.corpus.sources import deepsentinel
from dsengine.errors import RunError, UsageError


def refused(tree: "Tree", out: Path, match: str, *extra: str) -> None:
    """The build is refused before anything is written."""
    with pytest.raises(UsageError, match=match):
        tree.build(out, *extra)
    assert not out.exists()


def test_a_sample_that_lacks_a_file_is_named_or_left_out_and_counted(pair: "Tree", tmp_path: Path) -> None:
    next((pair.folder / "11").glob("*_S1arr.npz")).unlink()
    refused(pair, tmp_path / "c", r"1 of 2 samples of .* lack a file; the first is DEMO_EU_labelled/11/11_[*]_S1arr.npz")
    corpus = pair.build(tmp_path / "c", "--skip-incomplete")
    assert len(corpus) == 1 and corpus.attributes["made_by"]["left_out"] == {"a file is missing": 1}
    assert len(pair.build(tmp_path / "d", "--sensors", "s2")) == 2


def test_a_root_with_several_data_sets_or_providers_asks_which(pair: "Tree", tmp_path: Path) -> None:
    pair.dl(11, 9.75, 47.5, epsg=32632)
    refused(pair, tmp_path / "c", r"has imagery of GEE and DL: choose with --provider GEE\|DL")
    assert len(pair.build(tmp_path / "c", "--provider", "GEE")) == 2
    shutil.copytree(pair.folder, pair.root / "DEMO_unlabelled")
    (pair.root / "pts").mkdir()
    refused(pair, tmp_path / "d", r"holds 2 data sets, choose with --dataset NAME; .*legal: DEMO_EU_labelled, DEMO_unlabelled")
    refused(pair, tmp_path / "d", r"--dataset DEMO_unlabeled: did you mean DEMO_unlabelled", "--dataset", "DEMO_unlabeled")


def test_names_that_contradict_their_folder_are_refused(pair: "Tree", tmp_path: Path) -> None:
    stray = pair.folder / "7" / "8_GEE_2018-06-21_9.5_48.25_S2arr.npz"
    stray.touch()
    refused(pair, tmp_path / "c", r"8_GEE_.* is sample 8 by its name, but lies in the folder of sample 7")
    stray.rename(pair.folder / "7" / "7_GEE_2018-06-24_9.5_48.25_S2arr.npz")
    refused(pair, tmp_path / "c", r"has two samples of GEE: 7_GEE_2018-06-21_9.5_48.25 and 7_GEE_2018-06-24_9.5_48.25")
    (pair.folder / "7" / "7_GEE_2018-06-24_9.5_48.25_S2arr.npz").rename(pair.folder / "7" / "7_GEE_2018-06-21_9.5_148.25_S2arr.npz")
    refused(pair, tmp_path / "c", r"longitude 9.5, latitude 148.25; legal: -180..180, -90..90")


@pytest.mark.parametrize(("changes", "match"), [
    ({"patch_size": 128}, "patch_size 128; the patches have 256 pixels"), ({"x_off": "left"}, r"the upper left corner is \(left, "),
    ({"y_off": float("nan")}, "the upper left corner is"), ({"S2_bands": ["B1", "B2"]}, r"bands \['B1', 'B2'\]; legal: each of B01, B02"),
    ({"S1_bands": ["VV", "VV"]}, r"bands \['VV', 'VV'\]; legal: each of VV, VH once"),
    ({"tile": {"properties": {"geotrans": [0, 20, 0, 0, 0, -20]}}}, "geotrans of the tile is")])
def test_metadata_that_makes_no_sense_is_named(pair: "Tree", tmp_path: Path, changes: dict, match: str) -> None:
    pair.edit_meta(7, **changes)
    refused(pair, tmp_path / "c", rf"7_GEE_2018-06-21_9.5_48.25_\w+.\w+: {match}")


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a":' * 100_000])
def test_metadata_that_is_no_object_is_named(pair: "Tree", tmp_path: Path, content: str) -> None:
    next((pair.folder / "7").glob("*_meta.json")).write_text(content)
    refused(pair, tmp_path / "c", r"7_GEE_2018-06-21_9.5_48.25_meta.json")


@pytest.mark.parametrize(("shape", "dtype"), [((256, 256, 13), "float32"), ((12, 256, 256), "float32"), ((255, 256, 12), "float32"),
                                              ((256, 256, 12), "complex64")])
def test_arrays_of_another_form_are_named(pair: "Tree", tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    np.savez(next((pair.folder / "11").glob("*_S2arr.npz")), arr=np.ones(shape, dtype))
    refused(pair, tmp_path / "c", r"11_GEE_.*_S2arr.npz: arr has shape .* legal: \(256, 256, 12\) float32 or")


def test_an_array_of_objects_runs_no_code(pair: "Tree", tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (tmp_path / "made").mkdir, ()

    path = next((pair.folder / "7").glob("*_S1arr.npz"))
    np.savez(path, arr=np.array([[Evil()]], object))
    refused(pair, tmp_path / "c", r"7_GEE_.*_S1arr.npz is refused: its array holds Python objects")
    assert not (tmp_path / "made").exists()


def test_a_giant_array_and_an_archive_that_reaches_outside_are_refused(pair: "Tree", tmp_path: Path) -> None:
    path = next((pair.folder / "7").glob("*_S2arr.npz"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (50000, 50000, 1)})
    for member, match in (("arr.npy", r"has an array of shape \(50000, 50000, 1\)"), ("../../arr.npy", "points outside the archive")):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(member, header.getvalue())
        refused(pair, tmp_path / "c", match)


def test_damage_that_only_reading_shows_is_a_run_error(pair: "Tree", tmp_path: Path) -> None:
    for idx in range(100, 140):  # a plan reads 16 of them
        shutil.copytree(pair.folder / "7", pair.folder / str(idx))
        for path in list((pair.folder / str(idx)).iterdir()):
            path.rename(path.with_name(path.name.replace("7_", f"{idx}_", 1)))
    path = next((pair.folder / "101").glob("*_S1arr.npz"))
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    with pytest.raises((RunError, UsageError), match=r"101_GEE_.*_S1arr.npz cannot be read as an .npz: Bad CRC-32"):
        pair.build(tmp_path / "c", "--sensors", "s1")


@pytest.mark.parametrize("flags", [("--sensors", "s3"), ("--dl-s1-range=-40,0",), ("--cirrus",), ("--clc", "9"), ("--osm", "/none.yaml"),
                                   ("--s2-offset", "minus"), ("--pts", "/none.parquet")])
def test_flags_that_make_no_sense_are_refused(pair: "Tree", tmp_path: Path, flags: tuple[str, ...]) -> None:
    refused(pair, tmp_path / "c", "none" if "none" in flags[-1] else flags[0].partition("=")[0], *flags)


def test_numbers_that_show_the_offset_of_later_baselines_are_refused_and_can_be_corrected(pair: "Tree", tmp_path: Path) -> None:
    plain = pair.build(tmp_path / "a").read(range(2), "s2")
    for idx in (7, 11):
        # Water and shadow bring every band down to one floor, here at 1000 and above.
        pair.edit(idx, "S2arr", lambda x: x.__setitem__((slice(None), slice(0, 32)), 20 + x[:, :32] / 100))
        pair.edit(idx, "S2arr", lambda x: x.__iadd__(1000))
    refused(pair, tmp_path / "c", "--s2-offset auto: 0 by all dates up to 2018-06-21, before baseline 04.00.* but -1000")
    fixed = pair.build(tmp_path / "c", "--s2-offset", "-1000").read(range(2), "s2")
    np.testing.assert_array_equal(fixed[..., 32:], plain[..., 32:])


def test_a_plan_pickles_and_cuts_the_same_bytes_in_any_grouping(pair: "Tree", tmp_path: Path) -> None:
    pair.features(7, 9.5, 48.25, [])
    pair.features(11, 9.75, 47.5, [])
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(tmp_path / "c"), "--source", "deepsentinel", "--root", str(pair.root), "--osm", "default"]
    add_parser(parser.add_subparsers(), argv)
    plan = deepsentinel.plan(parser.parse_args(argv))
    cut = pickle.loads(pickle.dumps(plan)).cut
    whole, first, second = cut(range(2)), cut(range(1)), cut(range(1, 2))
    for part, names in (("arrays", ("s2", "s1")), ("labels", ("osm",)), ("index", tuple(whole.index))):
        for name in names:
            np.testing.assert_array_equal(getattr(whole, part)[name], np.concatenate([getattr(first, part)[name], getattr(second, part)[name]]))
