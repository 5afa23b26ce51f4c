"""A corpus from a stranger: what it says of paths, sizes and codecs is refused by name before anything is allocated, read or run."""

import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from dsengine.corpus import open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.manifest import MANIFEST, manifest_bytes
from dsengine.corpus.schema import ArraySpec, LabelSpec, Layout
from dsengine.corpus.seal import seal
from dsengine.corpus.shards import shard_bytes
from dsengine.corpus.verify import verify, verify_path
from dsengine.data.layout import chunk_layout
from dsengine.data.patches import PatchReader
from dsengine.errors import RunError, UsageError

NUM, SIDE, GB = 6, 8, 1 << 30
MOST_BYTES = 32 << 20  # that a refusal may need; what is declared is hundreds of times that


@contextmanager
def no_memory_spike() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def write(path: Path, codec: str) -> Path:
    layout = Layout(arrays=(ArraySpec(name="s1", sensor="s1", bands=("VV", "VH"), units="dB", scale_factor=0.01),), patch_size=SIDE, resolution_m=10.0,
                    labels=(LabelSpec(name="crop", kind="multilabel", classes={0: "rye", 1: "oat"}),), codec=codec, shard_patches=NUM)
    with CorpusWriter(path, layout=layout, num_patches=NUM, made_by={}) as writer:
        pixels = np.random.default_rng(0).integers(-2000, 0, (NUM, 2, SIDE, SIDE)).astype(np.int16)
        writer.append(Block({"s1": pixels}, {"lon": np.arange(NUM), "lat": np.arange(NUM)}, {"crop": np.ones((NUM, 2), np.uint8)}))
        return writer.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {codec: write(tmp_path_factory.mktemp("mine") / codec, codec) for codec in ("lz4", "zstd", "none", "bitpack")}


@pytest.fixture
def path(made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made["lz4"], tmp_path / "theirs")


def edit(path: Path, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a zarr.json; `seal` afterwards, because a stranger's corpus is sealed too."""
    node = json.loads((path / key).read_text())
    change(node)
    (path / key).write_text(json.dumps(node))


def root(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda node: node["attributes"]["dsengine"].update(values)


def array(name: str) -> Callable[[dict[str, Any]], None]:
    """Every band in another array."""
    return lambda node: [band.update(array=name) for band in node["attributes"]["dsengine"]["bands"]]


@pytest.mark.parametrize("name", ["../outside", "/etc", "s1/../../outside", ".hidden", "", "a b", "s1\\..", "s1\0"])
def test_an_array_name_that_is_no_name_is_refused_by_name(path: Path, name: str) -> None:
    edit(path, "zarr.json", array(name))
    seal(path)
    with pytest.raises(UsageError, match="the band table: array .* is not legal"):
        open_corpus(path)


@pytest.mark.parametrize("folder", ["index", "labels"])
def test_a_column_or_label_whose_name_is_no_name_is_refused(path: Path, folder: str) -> None:
    for name, words in (("a b", "is not legal: letters, digits"), ("..\\x", "damaged metadata .*is invalid")):
        shutil.copytree(path / "index/lon", path / folder / name)
        seal(path)
        with pytest.raises((UsageError, RunError), match=words):
            open_corpus(path)
        shutil.rmtree(path / folder / name)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ""])
def test_nothing_is_written_under_a_name_that_leaves_the_corpus(name: str) -> None:
    with pytest.raises(UsageError, match="is not legal: letters, digits"):
        LabelSpec(name=name, kind="class", classes={})
    with pytest.raises(UsageError, match="is not legal: letters, digits"):
        Layout(arrays=(ArraySpec(name=name, sensor="s1", bands=("VV",), units="dB", scale_factor=1.0),), patch_size=8, resolution_m=10.0)


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "index/../../secret", "a\\b"])
def test_a_manifest_that_lists_files_elsewhere_is_refused(path: Path, key: str) -> None:
    files = json.loads((path / MANIFEST).read_text())["attributes"]["files"]
    (path / MANIFEST).write_bytes(manifest_bytes({**files, key: "0" * 64}))
    with pytest.raises(RunError, match="leaves the corpus"):
        open_corpus(path)


def test_chunk_keys_cannot_be_made_to_leave_the_corpus(path: Path) -> None:
    edit(path, "s1/zarr.json", lambda node: node["chunk_key_encoding"]["configuration"].update(separator="/../../"))
    seal(path)
    with pytest.raises(RunError, match="s1/zarr.json: damaged metadata"):
        open_corpus(path)


def huge_rows(path: Path) -> None:
    """Every shape says the same number of patches, which no file backs."""
    edit(path, "zarr.json", root(num_patches=20_000_000))
    for file in [*path.glob("index/*/zarr.json"), *path.glob("labels/*/zarr.json"), path / "s1/zarr.json"]:
        edit(path, str(file.relative_to(path)), lambda node: node["shape"].__setitem__(0, 20_000_000))


def huge_patch(path: Path) -> None:
    """A patch of 52,000 x 52,000 pixels, 10 GB, in root and array alike."""
    side = 52_000
    edit(path, "zarr.json", root(patch_size=side))

    def change(node: dict[str, Any]) -> None:
        node["shape"][2:] = node["chunk_grid"]["configuration"]["chunk_shape"][2:] = node["codecs"][0]["configuration"]["chunk_shape"][2:] = [side, side]
    edit(path, "s1/zarr.json", change)


def huge_shard(path: Path) -> None:
    edit(path, "s1/zarr.json", lambda node: node["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 10 * GB))


def huge_labels(path: Path) -> None:
    def change(node: dict[str, Any]) -> None:
        node["shape"][1] = node["chunk_grid"]["configuration"]["chunk_shape"][1] = 10 * GB
    edit(path, "labels/crop/zarr.json", change)


def huge_column(path: Path) -> None:
    edit(path, "index/lon/zarr.json", lambda node: node["chunk_grid"]["configuration"].update(chunk_shape=[10 * GB]))


def other_rows(path: Path) -> None:
    edit(path, "index/lat/zarr.json", lambda node: node.update(shape=[10 * GB]))


def zstd_column(path: Path) -> None:
    """A frame of 22 bytes that says it becomes 10 GB, its crc32c right."""
    frame = bytes.fromhex("28b52ffd") + bytes([0xE0]) + (10 * GB).to_bytes(8, "little") + bytes.fromhex("0300") + bytes(4)
    (path / "index/lat/c/0").write_bytes(frame + google_crc32c.value(frame).to_bytes(4, "little"))


def zstd_text(path: Path) -> None:
    """A text column that says it has 4 billion values."""
    from numcodecs import Zstd

    frame = bytes(Zstd().encode(b"\xff\xff\xff\xff" + bytes(20)))
    (path / "index/source/c").mkdir(exist_ok=True)
    (path / "index/source/c/0").write_bytes(frame + google_crc32c.value(frame).to_bytes(4, "little"))


def gzip_column(path: Path) -> None:
    edit(path, "index/lat/zarr.json", lambda node: node["codecs"].__setitem__(1, {"name": "gzip", "configuration": {"level": 1}}))


def nested_json(path: Path) -> None:
    (path / "s1/zarr.json").write_text("[" * 200_000)


DECLARED = {
    huge_rows: "index/id/zarr.json: damaged metadata: 20,000,000 rows in", huge_patch: r"s1/zarr.json: damaged metadata: chunks of .* bytes; legal",
    huge_shard: "chunks a shard; legal", huge_labels: r"labels/crop/zarr.json: damaged metadata: shape",
    huge_column: "index/lon/zarr.json: damaged metadata: chunks of 10,737,418,240 rows", other_rows: "index/lat/zarr.json: damaged metadata: shape",
    zstd_column: "index/lat/c/0: damaged column .*say they become 10,737,418,240", zstd_text: "index/source/c/0: damaged metadata: 4,294,967,295 strings",
    gzip_column: "index/lat/zarr.json: codecs bytes, gzip, crc32c; legal", nested_json: "damaged metadata"}


@pytest.mark.parametrize("attack", DECLARED, ids=lambda attack: attack.__name__)
def test_what_is_declared_and_not_there_is_refused_by_name_without_a_memory_spike(path: Path, attack: Callable[[Path], None]) -> None:
    attack(path)
    if attack is not nested_json:
        seal(path)
    with no_memory_spike():
        with pytest.raises((RunError, UsageError), match=DECLARED[attack] if attack is not nested_json else "zarr.json"):
            open_corpus(path)
        problems = verify_path(path).problems
        assert problems and all(str(path) in str(problem.file) for problem in problems)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none", "bitpack"])
def test_a_chunk_that_says_it_becomes_gigabytes_is_refused_by_the_loader_and_by_verify(made: dict[str, Path], tmp_path: Path, codec: str) -> None:
    path = shutil.copytree(made[codec], tmp_path / "theirs")
    frame = {"lz4": bytes([2, 1, 33, 2]) + (2 * GB - 1).to_bytes(4, "little") + (65536).to_bytes(4, "little") + (40).to_bytes(4, "little") + bytes(24),
             "zstd": bytes.fromhex("28b52ffd") + bytes([0xE0]) + (10 * GB).to_bytes(8, "little") + bytes(10), "none": bytes(1000),
             "bitpack": b"dsb1" + bytes([2, 8, 0, 0]) + 3 * (60_000).to_bytes(4, "little") + bytes(1000)}[codec]
    bomb = frame + google_crc32c.value(frame).to_bytes(4, "little")
    (path / "s1/c/0/0/0/0").write_bytes(b"".join(shard_bytes([bomb] * NUM, NUM)))
    corpus = open_corpus(path)
    with no_memory_spike():
        problems = verify(corpus).problems
        assert [problem.patch for problem in problems] == list(range(NUM)) and "becomes" in problems[0].what
        layout = chunk_layout(corpus.arrays["s1"], root=path)
        reader = PatchReader([layout], num_threads=1)
        try:
            with pytest.raises(RunError, match=r"s1/c/0/0/0/0: array s1, patch \d"):
                reader.read(np.arange(NUM), [np.empty((NUM, *layout.patch_shape), np.int16)])
        finally:
            reader.close()


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("codec", ["pickle", "numcodecs.pickle", "json2", "numcodecs.json2"])
def test_a_codec_that_could_run_code_is_refused(path: Path, tmp_path: Path, codec: str) -> None:
    edit(path, "index/source/zarr.json", lambda node: node.update(codecs=[{"name": codec, "configuration": {}}]))
    (path / "index/source/c").mkdir(exist_ok=True)
    (path / "index/source/c/0").write_bytes(pickle.dumps([Evil(tmp_path / "made")]))
    seal(path)
    with pytest.raises(RunError, match="index.*damaged metadata|codecs"):
        open_corpus(path)
    assert not (tmp_path / "made").exists()


def test_an_array_of_the_older_format_with_pickled_objects_is_not_opened(path: Path, tmp_path: Path) -> None:
    (path / "labels/evil").mkdir()
    (path / "labels/evil/.zarray").write_text(json.dumps({"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None,
                                                          "fill_value": None, "order": "C", "filters": [{"id": "pickle", "protocol": 5}]}))
    (path / "labels/evil/0").write_bytes(pickle.dumps([Evil(tmp_path / "made")]))
    assert list(open_corpus(path).labels) == ["crop"] and not verify(open_corpus(path)).problems
    assert not (tmp_path / "made").exists()


def test_the_process_that_opens_all_of_them_stays_small(path: Path, tmp_path: Path) -> None:
    """What tracemalloc does not see, memory of the decompressors, counts here: the high-water mark of a process of its own."""
    for attack in DECLARED:
        theirs = shutil.copytree(path, tmp_path / attack.__name__)
        attack(theirs)
        if attack is not nested_json:
            seal(theirs)
    code = ("import resource, sys\nfrom pathlib import Path\nfrom dsengine.corpus.verify import verify_path\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "verify_path(Path(sys.argv[1]))\nbefore = peak()\n"
            "for path in sys.argv[2:]:\n    assert verify_path(Path(path)).problems, path\nprint(peak() - before)")
    argv = [str(path), *(str(tmp_path / attack.__name__) for attack in DECLARED)]
    grown = subprocess.run([sys.executable, "-P", "-c", code, *argv], capture_output=True, text=True, check=True)
    assert int(grown.stdout) * 1024 < MOST_BYTES
