"""`verify --quarantine`, `--release` and `--seal`, and the edits of a corpus that they stand on: whole or not at all."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.columns import write_column, write_columns
from dsengine.corpus.seal import CHANGE, seal, staged
from dsengine.corpus.shards import read_table, write_file
from dsengine.corpus.verify import verify
from dsengine.data.loader import Loader
from dsengine.data.sample import View
from dsengine.errors import RunError, UsageError


@pytest.fixture
def path(small_corpus: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_corpus, tmp_path / "c")


def flip(path: Path, row: int, array: str = "s2") -> None:
    """One bit of the chunk of a patch; again mends it."""
    file = path / array / "c" / str(row // 64) / "0" / "0" / "0"
    offset, length = map(int, read_table(file, 64)[row % 64])
    data = bytearray(file.read_bytes())
    data[offset + length // 2] ^= 4
    file.write_bytes(data)


def epoch(path: Path) -> set[int]:
    """Ids that an epoch of training reads."""
    corpus = open_corpus(path)
    with Loader(corpus, [View(size=16)], batch_size=1, num_threads=1) as loader:
        return {int(next(loader).sample_id[0]) for _ in range(loader.steps_per_epoch)}


def test_a_damaged_patch_stops_training_until_it_is_set_aside_and_comes_back_when_it_is_mended(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = set(open_corpus(path).rows("train").tolist())
    row = sorted(train)[5]
    flip(path, row)
    with pytest.raises(RunError, match=rf"s2/c/0/0/0/0: array s2, patch {row}: .*crc32c.*`dsengine corpus verify --quarantine {path}`"):
        epoch(path)
    assert cli.main(["corpus", "verify", str(path)]) == 1
    assert f"--quarantine {path}` leaves damaged patches out of every split" in capsys.readouterr().out

    assert cli.main(["corpus", "verify", "--quarantine", str(path)]) == 0
    assert "1 problems; 1 patches put in quarantine; 1 patches in quarantine" in capsys.readouterr().out
    assert epoch(path) == train - {row}
    assert cli.main(["corpus", "verify", str(path)]) == 0  # what is damaged is out of use
    assert cli.main(["corpus", "verify", "--release", str(path)]) == 0
    assert open_corpus(path).index.quarantine[row] == 1  # it is damaged still

    flip(path, row)
    assert cli.main(["corpus", "verify", "--release", str(path)]) == 0
    assert "1 patches let back in" in capsys.readouterr().out
    assert epoch(path) == train


def test_commands_say_how_to_go_on_with_the_rest_and_quality_passes_over_what_is_set_aside(path: Path, tmp_path: Path,
                                                                                             capsys: pytest.CaptureFixture[str]) -> None:
    flip(path, 7)
    write_column(open_corpus(path), "cloud_fraction", np.full(96, np.nan))
    assert cli.main(["corpus", "quality", str(path)]) == 1 and "patches 0 to 63 cannot be read" in capsys.readouterr().err
    assert cli.main(["corpus", "verify", "--quarantine", str(path)]) == 0
    assert cli.main(["corpus", "convert", str(path), str(tmp_path / "all")]) == 1
    assert f"`dsengine corpus convert {path} OUT --where 'id >= 0'` copies the rest" in capsys.readouterr().err
    assert cli.main(["corpus", "convert", str(path), str(tmp_path / "rest"), "--where", "id >= 0"]) == 0
    assert len(open_corpus(tmp_path / "rest")) == 95
    assert cli.main(["corpus", "quality", str(path)]) == 0
    np.testing.assert_array_equal(np.isnan(open_corpus(path).index.cloud_fraction), np.arange(96) == 7)


def test_a_lost_shard_sets_all_its_patches_aside_and_other_marks_stay(path: Path) -> None:
    write_column(open_corpus(path), "quarantine", np.where(np.arange(96) == 2, 7, 0))
    (path / "s1/c/1/0/0/0").unlink()
    assert cli.main(["corpus", "verify", "--quarantine", str(path)]) == 0
    expected = np.zeros(96, np.uint8)
    expected[64:], expected[2] = 1, 7
    np.testing.assert_array_equal(open_corpus(path).index.quarantine, expected)
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["index/quarantine"][...], expected)


def test_a_corpus_without_the_column_or_a_manifest_gets_the_column(path: Path) -> None:
    for folder in ("manifest", "index/quarantine"):
        shutil.rmtree(path / folder)
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"]["dsengine"]["sealed"]
    (path / "zarr.json").write_text(json.dumps(root))
    flip(path, 70)
    assert cli.main(["corpus", "verify", "--quarantine", str(path)]) == 0
    assert np.flatnonzero(open_corpus(path).index.quarantine).tolist() == [70]
    assert not (path / "manifest").exists()


def test_damage_that_is_of_no_patch_cannot_be_set_aside(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path / "index/lat/c/0").write_bytes((path / "index/lat/c/0").read_bytes()[:-1])
    assert cli.main(["corpus", "verify", "--quarantine", str(path)]) == 1
    out = capsys.readouterr().out
    assert "index/lat/c/0" in out and "cannot be opened, so its patches were not checked" in out


def test_a_change_on_purpose_is_refused_until_it_is_sealed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr.open_group(path, mode="r+")["index/cloud_fraction"][4] = 0.25
    code = cli.main(["corpus", "info", str(path)])
    assert code == 1 and "verify --seal" in capsys.readouterr().err
    assert cli.main(["corpus", "verify", "--seal", str(path)]) == 0
    assert open_corpus(path).index.cloud_fraction[4] == 0.25
    zarr.open_group(path, mode="r+")["index/cloud_fraction"][4] = 0.5
    seal(path, "labels")  # another folder: the index stays as the manifest has it
    with pytest.raises(RunError, match="index/cloud_fraction/c/0"):
        open_corpus(path)
    seal(path, "index/cloud_fraction")
    assert verify(open_corpus(path)).problems == []


def test_new_columns_and_root_attributes_appear_together_and_are_sealed(path: Path) -> None:
    corpus = open_corpus(path)
    names = np.array([f"zone {row % 3} \N{SNOWMAN}" for row in range(96)], object)
    write_columns(corpus, {"zone": names, "split": np.full(96, 2)}, root={"splits": {"by": "hand"}})
    again = open_corpus(path)
    assert again.columns["zone"][...].tolist() == names.tolist() and len(again.rows("test")) == 96
    assert again.attributes["splits"] == {"by": "hand"} and verify(again).problems == []
    write_column(again, "zone", np.arange(96, dtype=np.int16))
    assert zarr.open_group(path, mode="r")["index/zone"].dtype == "int16" and verify(open_corpus(path)).problems == []


@pytest.mark.parametrize("name, values, words", [
    ("split", np.zeros(95), "shape"), ("split", np.full(96, 0.5), "do not fit uint8"), ("split", np.full(96, -1), "do not fit uint8"),
    ("id", np.arange(96), "cannot be written"), ("../x", np.arange(96), "cannot be written")])
def test_a_column_that_does_not_fit_is_refused_and_nothing_changes(path: Path, name: str, values: np.ndarray, words: str) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(UsageError, match=words):
        write_column(open_corpus(path), name, values)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


class Crash(BaseException):
    """Stands for the process's end."""


@pytest.mark.parametrize("call", range(14))
def test_an_edit_killed_at_any_call_is_whole_or_not_there(path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The process ends at the call-th rename, removal or removal of a folder; what is on disk then is what a kill leaves."""
    old, new = open_corpus(path).index.split.copy(), np.full(96, 2, np.uint8)
    calls = iter(range(1000))

    def dying(function: object) -> object:
        def run(*arguments: object, **options: object) -> object:
            if next(calls) >= call:
                raise Crash
            return function(*arguments, **options)
        return run

    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            write_columns(open_corpus(path), {"split": new, "zone": np.arange(96)}, root={"splits": {"by": "hand"}})
        except Crash:
            pass
    counted = (path / CHANGE / "remove.json").exists()
    if counted:
        with pytest.raises(RunError, match="interrupted; `dsengine corpus verify .*` completes it"):
            open_corpus(path)
    assert cli.main(["corpus", "verify", str(path)]) == 0
    corpus = open_corpus(path)
    done = "zone" in corpus.columns
    assert done >= counted
    np.testing.assert_array_equal(corpus.index.split, new if done else old)
    assert (corpus.attributes["splits"] == {"by": "hand"}) == done
    write_column(corpus, "zone", np.arange(96))  # and the next edit is not in the way of what is left
    assert not list(path.glob(".change*"))


def test_two_edits_at_once_are_refused(path: Path) -> None:
    with staged(path) as folder:
        write_file(folder / "index/x/zarr.json", [b"{}"])
        with pytest.raises(UsageError, match="another process is changing this corpus"):
            write_column(open_corpus(path), "split", np.zeros(96))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "index/../../outside"])
def test_an_edit_left_by_someone_else_cannot_reach_out_of_the_corpus(path: Path, name: str) -> None:
    outside = path.parent / "outside"
    outside.write_text("mine")
    (path / CHANGE).mkdir()
    (path / CHANGE / "remove.json").write_text(json.dumps([name]))
    with pytest.raises(RunError, match="leaves the corpus"):
        cli_verify(path)
    assert outside.read_text() == "mine"


def test_an_edit_left_by_someone_else_cannot_write_through_a_link(path: Path) -> None:
    outside = path.parent / "elsewhere"
    outside.mkdir()
    (path / "link").symlink_to(outside)
    (path / CHANGE / "link").mkdir(parents=True)
    (path / CHANGE / "link/file").write_text("theirs")
    (path / CHANGE / "remove.json").write_text("[]")
    with pytest.raises(RunError, match="leaves the corpus"):
        cli_verify(path)
    assert not list(outside.iterdir())


def cli_verify(path: Path) -> None:
    """`corpus verify` without the catching of errors that the command line does."""
    from dsengine.corpus.verify import verify_path

    verify_path(path)
