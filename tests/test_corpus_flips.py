"""One flipped bit anywhere in a corpus: `verify` names the file, and reading refuses or gives exactly what it gave before."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.neighbours import write_neighbours
from dsengine.corpus.schema import ArraySpec, LabelSpec, Layout
from dsengine.corpus.verify import verify_path
from dsengine.data.layout import chunk_layout
from dsengine.data.patches import PatchReader
from dsengine.errors import RunError, UsageError

NUM, SHARD, SIDE = 12, 8, 8
FLIPS = 200
ARRAYS = (ArraySpec(name="s2", sensor="s2", bands=("B02", "B03"), units="reflectance", scale_factor=1e-4),
          ArraySpec(name="s2_20m", sensor="s2", bands=("B05",), units="reflectance", scale_factor=1e-4, factor=2),
          ArraySpec(name="s1", sensor="s1", bands=("VV", "VH"), units="dB", scale_factor=0.01))
LABELS = (LabelSpec(name="cover", kind="classmap", classes={0: "none", 1: "some"}),
          LabelSpec(name="crop", kind="class", classes={k: str(k) for k in range(NUM)}))
LAYOUT = Layout(arrays=ARRAYS, patch_size=SIDE, resolution_m=10.0, labels=LABELS, shard_patches=SHARD)
TABLE_BYTES = 16 * SHARD + 4

# Every kind of file, by its path in the corpus: a pattern, and the part of the file that is meant (None: all of it).
KINDS: dict[str, tuple[str, Callable[[int], range] | None]] = {
    "root": ("zarr.json", None),
    "manifest": ("manifest/zarr.json", None),
    "metadata of an image array": ("s*/zarr.json", None),
    "metadata of an index column": ("index/*/zarr.json", None),
    "metadata of a label": ("labels/*/zarr.json", None),
    "metadata of a group": ("[iln]*/zarr.json", None),
    "chunks of a shard": ("s*/c/*/0/0/0", lambda size: range(size - TABLE_BYTES)),
    "table of a shard": ("s*/c/*/0/0/0", lambda size: range(size - TABLE_BYTES, size)),
    "class map": ("labels/cover/c/*/0/0", None),
    "label vector": ("labels/crop/c/0", None),
    "index column": ("index/*/c/0", None),
    "neighbour table": ("neighbours/*/c/0", None),
    "metadata of the neighbour table": ("neighbours/*/zarr.json", None),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    with CorpusWriter(tmp_path_factory.mktemp("flips") / "c", layout=LAYOUT, num_patches=NUM, made_by={"by": "test"}, columns={"fold": "int32"}) as writer:
        while writer.next_row < NUM:
            n, rows = writer.next_count, np.arange(writer.next_row, writer.next_row + writer.next_count)
            arrays = {spec.name: rng.integers(-900, 900, (n, len(spec.bands), *[LAYOUT.side(spec)] * 2)).astype(np.int16) for spec in ARRAYS}
            index = {"lon": rows / 7, "lat": rows / 9, "fold": rows, "source": np.array([f"site{row}.tif" for row in rows], object),
                     "quarantine": rows == 3}
            labels = {"cover": rng.integers(0, 2, (n, SIDE, SIDE)).astype(np.uint8), "crop": rows.astype(np.uint8)}
            writer.append(Block(arrays, index, labels))
        writer.finish()
    made = tmp_path_factory.getbasetemp() / "flipped"
    shutil.copytree(writer.path, made)
    write_neighbours(open_corpus(made), radius_km=500)
    return made


def content(path: Path) -> list[object]:
    """All that training reads: index, contract, and every patch through the loader's own reader. Raises where that is refused."""
    corpus = open_corpus(path)
    assert isinstance(corpus, Corpus)
    layouts = [chunk_layout(array, root=path) for array in corpus.arrays.values()]
    outs = [np.empty((len(corpus), *layout.patch_shape), np.int16) for layout in layouts]
    reader = PatchReader(layouts, num_threads=1)
    try:
        reader.read(np.arange(len(corpus)), outs)
    finally:
        reader.close()
    return [*outs, *corpus.index, *(np.asarray(column) for column in corpus.columns.values()), corpus.contract().to_json(), corpus.rows("train")]


def same(ours: list[object], theirs: list[object]) -> bool:
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b for a, b in zip(ours, theirs, strict=True))


def places(path: Path) -> list[tuple[str, Path, int]]:
    """(kind, file, bit) of each flip: the kinds in turn, file and bit at random."""
    draw = random.Random(3)
    found = []
    for number in range(FLIPS):
        kind = list(KINDS)[number % len(KINDS)]
        pattern, part = KINDS[kind]
        file = draw.choice(sorted(path.glob(pattern)))
        size = file.stat().st_size
        found.append((kind, file, 8 * draw.choice(part(size) if part else range(size)) + draw.randrange(8)))
    return found


def test_no_flipped_bit_is_silent(path: Path) -> None:
    whole = content(path)
    assert verify_path(path).problems == []
    silent, refused = [], 0
    for kind, file, bit in places(path):
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            named = {problem.file for problem in verify_path(path).problems}
        except (UsageError, RunError) as error:
            named = {file} if str(file) in str(error) else set()
        try:
            harmless = same(content(path), whole)
        except (UsageError, RunError):
            harmless, refused = True, refused + 1
        file.write_bytes(data)
        if file not in named or not harmless:
            silent.append((kind, file.relative_to(path), bit, file in named, harmless))
    assert silent == []
    assert refused > FLIPS / 2  # the rest are labels and neighbours, which this reading does not touch
    assert verify_path(path).problems == [] and same(content(path), whole)


def test_the_kinds_that_are_flipped_are_all_the_files_that_there_are(path: Path) -> None:
    known = {file for pattern, _ in KINDS.values() for file in path.glob(pattern)}
    assert known == {file for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("pattern", sorted({pattern for pattern, _ in KINDS.values()}))
def test_a_missing_file_of_each_kind_is_named_and_never_read_as_fill_value(path: Path, pattern: str) -> None:
    whole = content(path)
    file = sorted(path.glob(pattern))[0]
    data = file.read_bytes()
    file.unlink()
    try:
        try:
            assert file in {problem.file for problem in verify_path(path).problems}
        except UsageError as error:
            assert "it has no zarr.json" in str(error)
        try:
            assert same(content(path), whole)
        except (UsageError, RunError):
            pass
    finally:
        file.write_bytes(data)


def test_plain_zarr_lists_a_sealed_corpus_without_a_warning(path: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert {"s2", "index", "labels", "manifest"} <= {name for name, _ in zarr.open_group(path, mode="r").members(max_depth=None)}
    assert not recwarn.list
