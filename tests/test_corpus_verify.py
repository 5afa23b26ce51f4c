"""`corpus verify`, `stats` and `info`: any damage is found and named by file, array and patch."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from dsengine.corpus import open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import NODATA, LabelSpec, standard_layout
from dsengine.corpus.seal import seal
from dsengine.corpus.shards import read_table
from dsengine.corpus.verify import verify
from dsengine.errors import RunError, UsageError

N, SIZE = 70, 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 70 patches in two shards, with a class map and a class."""
    rng = np.random.default_rng(0)
    labels = (LabelSpec(name="cover", kind="classmap", classes={0: "none", 1: "some"}), LabelSpec(name="crop", kind="class", classes={0: "rye"}))
    arrays = {"s2": rng.integers(0, 4000, (N, 12, SIZE, SIZE)).astype(np.int16), "s1": rng.integers(-2000, 0, (N, 2, SIZE, SIZE)).astype(np.int16)}
    arrays["s1"][3, 0, :4] = NODATA
    with CorpusWriter(tmp_path_factory.mktemp("verify") / "c", layout=standard_layout(SIZE, labels=labels), num_patches=N, made_by={}) as writer:
        while writer.next_row < N:
            rows = slice(writer.next_row, writer.next_row + writer.next_count)
            count = writer.next_count
            writer.append(Block({k: v[rows] for k, v in arrays.items()}, {"lon": np.arange(N)[rows], "lat": np.zeros(count)},
                                {"cover": np.ones((count, SIZE, SIZE), np.uint8), "crop": np.zeros(count, np.uint8)}))
        return writer.finish()


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "c")


def command(*words: str) -> int:
    """Exit code of `dsengine corpus WORDS`."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), ["corpus", *words])
    args = parser.parse_args(["corpus", *words])
    return args.run(args)


def flip(file: Path, position: int) -> None:
    """Invert one bit."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_a_whole_corpus_has_no_problems(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", str(path)) == 0
    # 70 of s2, s1 and cover, one of crop and of each index column but those that are all fill value: epsg, source, quarantine and others
    assert "221 chunks of 70 patches checked, 0 problems" in capsys.readouterr().out


def test_a_flipped_byte_is_found_in_whatever_chunk_it_is(path: Path) -> None:
    file = path / "s2/c/0/0/0/0"
    table = read_table(file, 64)
    for row in (0, 17, 63):
        flip(file, int(table[row, 0] + table[row, 1] // 2))
    flip(path / "labels/cover/c/1/0/0", 3)
    found = {(str(p.file.relative_to(path)), p.array, p.patch, p.what) for p in verify(open_corpus(path)).problems}
    assert found == {*(("s2/c/0/0/0/0", "s2", row, "crc32c does not match") for row in (0, 17, 63)),
                     ("labels/cover/c/1/0/0", "labels/cover", 64, "crc32c does not match")}


def test_damage_gives_exit_code_1_and_a_table_with_the_patch(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(path / "s1/c/1/0/0/0", 5)
    assert command("verify", str(path)) == 1
    out = capsys.readouterr().out
    assert "s1" in out and " 64 " in out and "crc32c does not match" in out


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_shard_names_each_of_its_patches(path: Path, keep: int) -> None:
    file = path / "s2/c/1/0/0/0"
    file.write_bytes(file.read_bytes()[:keep])
    problems = verify(open_corpus(path)).problems
    assert [(p.file, p.array, p.patch) for p in problems] == [(file, "s2", row) for row in range(64, N)]


def test_a_flipped_byte_in_the_table_of_a_shard_is_found(path: Path) -> None:
    flip(path / "s2/c/0/0/0/0", -20)
    assert {p.what for p in verify(open_corpus(path)).problems} == {"crc32c of the chunk table does not match (truncated or damaged file)"}


def test_a_missing_shard_is_damage_and_not_nodata(path: Path) -> None:
    (path / "s1/c/0/0/0/0").unlink()
    problems = verify(open_corpus(path)).problems
    assert {p.what for p in problems} == {"missing file"} and [p.patch for p in problems] == list(range(64))


def test_a_chunk_left_out_by_another_writer_is_damage(path: Path) -> None:
    array = zarr.open_group(path, mode="r+")["s1"]
    array[20] = NODATA  # zarr-python leaves out chunks that equal the fill value
    assert [(p.array, p.patch, p.what) for p in verify(open_corpus(path)).problems] == [("s1", 20, "missing chunk")]


def edit(path: Path, file: str, change: Callable[[dict], None]) -> None:
    """Change the attributes in a zarr.json on purpose."""
    metadata = json.loads((path / file).read_bytes())
    change(metadata["attributes"])
    (path / file).write_text(json.dumps(metadata))
    seal(path)


def unsealed(path: Path) -> Path:
    """As a corpus of the time before manifests."""
    shutil.rmtree(path / "manifest")
    metadata = json.loads((path / "zarr.json").read_bytes())
    del metadata["attributes"]["dsengine"]["sealed"]
    (path / "zarr.json").write_text(json.dumps(metadata))
    return path


def test_statistics_that_do_not_fit_the_pixels_are_found_and_stats_mends_them(path: Path) -> None:
    contract = open_corpus(path).contract()
    edit(path, "s1/zarr.json", lambda a: a["mean"].__setitem__(1, a["mean"][1] + 0.001))
    problems = verify(open_corpus(path)).problems
    assert [p.array for p in problems] == ["s1"] and problems[0].what.startswith("mean of VH is")
    assert command("stats", str(path)) == 0
    assert verify(open_corpus(path)).problems == [] and open_corpus(path).contract() == contract


def test_without_statistics_the_command_that_makes_them_is_named(path: Path) -> None:
    before = open_corpus(path).contract()
    for name in ("s2", "s1"):
        edit(path, f"{name}/zarr.json", lambda a: [a.pop(k) for k in ("mean", "std", "count")])
    with pytest.raises(UsageError, match=f"no statistics: run `dsengine corpus stats {path}`"):
        open_corpus(path).contract()
    assert command("info", str(path)) == 0 and command("verify", str(path)) == 1 and command("stats", str(path)) == 0
    assert open_corpus(path).contract() == before


def test_illegal_index_values_name_column_and_row(path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    group["index/split"][7], group["index/lat"][9], group["index/nodata_fraction"][3] = 5, np.nan, 0.5
    seal(path)
    assert {(p.file.name, p.patch) for p in verify(open_corpus(path)).problems} == {("split", 7), ("lat", 9), ("nodata_fraction", 3)}
    group["index/split"][7], group["index/lat"][9] = 0, 0
    seal(path)
    assert {(p.file.name, p.patch) for p in verify(open_corpus(path)).problems} == {("nodata_fraction", 3)}


def test_a_patch_without_any_place_is_legal_and_half_a_place_is_not(path: Path, capsys: pytest.CaptureFixture) -> None:
    group = zarr.open_group(path, mode="r+")
    group["index/lon"][4:6], group["index/lat"][5:7] = np.nan, np.nan
    seal(path)
    assert {(p.file.name, p.patch) for p in verify(open_corpus(path)).problems} == {("lon", 4), ("lat", 6)}
    assert command("preview", str(path), "--rows", "3,5", "--out", str(path.parent / "sheet.png")) == 0
    assert command("info", str(path)) == 0


def test_a_damaged_index_column_is_a_run_error_naming_it(path: Path) -> None:
    flip(path / "index/lon/c/0", 20)
    with pytest.raises(RunError, match="index/lon/c/0: does not have the sha256 that the manifest states; restore the file .*verify --seal"):
        open_corpus(path)
    unsealed(path)
    with pytest.raises(RunError, match="index/lon: damaged column"):
        open_corpus(path)


def test_label_values_without_a_class_are_found(path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    group["labels/cover"][12, 0, 0] = 9
    assert [(p.array, p.patch, p.what) for p in verify(open_corpus(path)).problems] == [
        ("labels/cover", 12, "value 9 is not in the class table")]


def test_a_corpus_written_by_plain_zarr_verifies_too(path: Path) -> None:
    x, attributes = open_corpus(path).read(range(N), "s1"), dict(open_corpus(path).arrays["s1"].attrs)
    shutil.rmtree(path / "s1")
    zarr.create_array(path, name="s1", data=x, chunks=(7, 2, SIZE, SIZE), fill_value=NODATA, compressors=[Crc32cCodec()], attributes=attributes)
    seal(path)
    assert verify(open_corpus(path)).problems == []
    flip(path / "s1/c/2/0/0/0", 100)
    assert [(p.array, p.patch, p.num_patches) for p in verify(open_corpus(path, checked=False)).problems] == [("s1", 14, 7)]


def test_info_prints_bands_splits_and_labels(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("info", str(path)) == 0
    out = capsys.readouterr().out
    for word in ("B8A", "VH", "reflectance", "train", "classmap", "70 of 16 x 16 pixels, 10 m"):
        assert word in out


def test_statistics_of_a_damaged_array_name_it(path: Path) -> None:
    flip(path / "s1/c/1/0/0/0", 5)
    with pytest.raises(RunError, match="array s1, patch 64: cannot be read"):
        command("stats", str(path))


@pytest.mark.parametrize("file, content", [("s1/zarr.json", "{"), ("zarr.json", None)])
def test_damaged_metadata_is_named(path: Path, file: str, content: str | None) -> None:
    if content is None:
        root = json.loads((path / file).read_text())
        del root["attributes"]["dsengine"]["bands"]
        content = json.dumps(root)
    (path / file).write_text(content)
    with pytest.raises(RunError, match=f"{file}: does not have the sha256"):
        open_corpus(path)
    with pytest.raises(RunError, match="damaged metadata"):
        open_corpus(path, checked=False)


@pytest.mark.parametrize("ids", [[0.7], [True], ["0"]])
def test_ids_that_are_not_whole_numbers_are_refused(path: Path, ids: list) -> None:
    with pytest.raises(UsageError, match="ids must be whole numbers"):
        open_corpus(path).read(ids, "s2")
