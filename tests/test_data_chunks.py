"""Chunk reader, decode and the DALI pipeline against plain zarr-python, on whole and on damaged corpora."""

import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import ArraySpec, Layout
from dsengine.data.chunks import Located, ShardIndex, coalesce
from dsengine.data.layout import ChunkLayout, chunk_layout
from dsengine.data.patches import PatchReader, windows
from dsengine.data.pipeline import RawPipeline
from dsengine.errors import RunError, UsageError

ARRAYS = (ArraySpec(name="s2", sensor="s2", bands=("B02", "B03", "B04"), units="reflectance", scale_factor=1e-4),
          ArraySpec(name="s2_20m", sensor="s2", bands=("B05", "B06"), units="reflectance", scale_factor=1e-4, factor=2),
          ArraySpec(name="s1", sensor="s1", bands=("VV", "VH"), units="dB", scale_factor=0.01))
SHARD, NUM = 8, 21


def patches(rng: np.random.Generator, n: int, c: int, side: int) -> np.ndarray:
    """Rows that drift, so that blosc and zstd have something to compress."""
    return np.cumsum(rng.integers(-9, 10, (n, c, side, side)), axis=-1).astype(np.int16)


def write_corpus(path: Path, *, codec: str = "lz4") -> Corpus:
    layout = Layout(arrays=ARRAYS, patch_size=32, resolution_m=10.0, codec=codec, shard_patches=SHARD)
    rng = np.random.default_rng(0)
    with CorpusWriter(path, layout=layout, num_patches=NUM, made_by={"test": 1}, threads=1) as writer:
        while writer.next_row < NUM:
            n = writer.next_count
            arrays = {spec.name: patches(rng, n, len(spec.bands), layout.side(spec)) for spec in ARRAYS}
            writer.append(Block(arrays=arrays, index={"lon": np.zeros(n), "lat": np.zeros(n)}))
        writer.finish()
    return open_corpus(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


def layouts(corpus: Corpus, *names: str) -> list[ChunkLayout]:
    return [chunk_layout(corpus.arrays[name], root=corpus.path) for name in names or corpus.arrays]


def read(layout: ChunkLayout, ids: np.ndarray, *, num_threads: int = 2) -> np.ndarray:
    reader = PatchReader([layout], num_threads=num_threads)
    out = np.full((len(ids), *layout.patch_shape), 77, dtype=np.int16)
    try:
        reader.read(ids, [out])
    finally:
        reader.close()
    return out


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, NUM - 1), min_size=1, max_size=40), num_threads=st.integers(1, 5))
def test_any_patches_in_any_order_equal_zarr_python(corpus: Corpus, ids: list[int], num_threads: int) -> None:
    rows = np.array(ids)
    for array in corpus.arrays.values():
        found = read(chunk_layout(array, root=corpus.path), rows, num_threads=num_threads)
        np.testing.assert_array_equal(found, array.oindex[rows])


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none", "bitpack", "bitpack-lorenzo"])
def test_each_codec_of_the_corpus_reads_back(tmp_path: Path, codec: str) -> None:
    corpus = write_corpus(tmp_path / "c", codec=codec)
    rows = np.arange(NUM)[::-1]
    for array in corpus.arrays.values():
        np.testing.assert_array_equal(read(chunk_layout(array, root=corpus.path), rows), array[:][::-1])


@pytest.mark.parametrize("codecs", [
    [BloscCodec(cname="lz4", shuffle="shuffle", typesize=2, blocksize=65536), Crc32cCodec()],
    [BloscCodec(cname="zstd", shuffle="bitshuffle", typesize=2)], [ZstdCodec(level=1)], [Crc32cCodec()], []])
def test_shards_written_by_zarr_python_read_back_with_absent_chunks_as_fill_value(tmp_path: Path, codecs: list) -> None:
    want = patches(np.random.default_rng(1), 10, 2, 16)
    want[[2, 9]] = -32768  # zarr-python does not store chunks that are all fill value
    array = zarr.create_array(tmp_path / "a", shape=want.shape, chunks=(1, 2, 16, 16), shards=(4, 2, 16, 16),
                              dtype="int16", fill_value=-32768, compressors=codecs)
    array[:] = want
    np.testing.assert_array_equal(read(chunk_layout(array, root=tmp_path / "a"), np.arange(10)), want)


def located(shard: list[int], offset: list[int], size: list[int]) -> Located:
    return Located(np.arange(len(size)), np.arange(len(size)) + 100, np.array(shard), np.array(offset), np.array(size))


def test_neighbouring_chunks_are_read_at_once_and_others_apart() -> None:
    found = coalesce(located([0, 0, 0, 1, 1], [0, 10, 20, 23, 0], [10, 7, 3, 4, 0]))
    assert [(e.shard, e.offset, e.size, e.patch) for e in found] == [(0, 0, 17, 100), (0, 20, 3, 102), (1, 23, 4, 103)]


def test_windows_hold_every_chunk_in_order_and_never_more_than_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsengine.data.patches.WINDOW_BYTES", 10)
    sizes = [4, 6, 1, 30, 0, 9, 2]
    found = [w.size.tolist() for w in windows(located([0] * 7, [0] * 7, sizes))]
    assert found == [[4, 6], [1], [30], [0, 9], [2]]


def test_a_chunk_larger_than_a_window_is_read_whole(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsengine.data.patches.WINDOW_BYTES", 100)
    rows = np.array([4, 19, 3])
    np.testing.assert_array_equal(read(chunk_layout(corpus.arrays["s2"], root=corpus.path), rows), corpus.arrays["s2"].oindex[rows])


def test_the_pipeline_gives_the_integers_of_zarr_python_for_batches_of_changing_size(corpus: Corpus) -> None:
    before = threading.active_count()
    with RawPipeline(layouts(corpus), max_batch=8, num_threads=2) as pipeline:
        for ids in (np.array([20, 0, 13]), np.arange(8), np.array([4]), np.array([7, 7, 1, 20, 19, 2, 3, 5])):
            with pipeline.lease(ids) as raw:
                for tensor, array in zip(raw, corpus.arrays.values(), strict=True):
                    np.testing.assert_array_equal(tensor.numpy(), array.oindex[ids])
    assert threading.active_count() == before


def shard(corpus: Corpus, number: int) -> Path:
    return corpus.path / "s2" / "c" / str(number) / "0" / "0" / "0"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def failure(corpus: Corpus, ids: list[int]) -> str:
    with RawPipeline(layouts(corpus, "s1", "s2"), max_batch=8, num_threads=2) as pipeline:
        with pytest.raises(RunError) as caught, pipeline.lease(np.array(ids)):
            pass
        with pipeline.lease(np.array([0])) as raw:  # what is whole still reads after the failure
            np.testing.assert_array_equal(raw[1].numpy(), corpus.arrays["s2"].oindex[[0]])
    return str(caught.value)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none", "bitpack-lorenzo"])
def test_a_flipped_byte_is_an_error_that_names_file_array_and_patch(tmp_path: Path, codec: str) -> None:
    corpus = write_corpus(tmp_path / "c", codec=codec)
    where = ShardIndex(chunk_layout(corpus.arrays["s2"], root=corpus.path)).locate(np.array([11]))
    flip(shard(corpus, 1), int(where.offset[0]) + 200)
    text = failure(corpus, [0, 20, 11])
    assert str(shard(corpus, 1)) in text and "array s2, patch 11" in text and "crc32c" in text and "\n" not in text


@pytest.mark.parametrize("keep", [0.9, 0.0])
def test_a_truncated_shard_is_an_error_that_names_file_array_and_patch(tmp_path: Path, keep: float) -> None:
    corpus = write_corpus(tmp_path / "c")
    data = shard(corpus, 2).read_bytes()
    shard(corpus, 2).write_bytes(data[:int(keep * len(data))])
    text = failure(corpus, [0, 17, 3])
    assert str(shard(corpus, 2)) in text and "array s2, patch 17" in text and "\n" not in text


def test_a_shard_truncated_after_its_table_was_read_is_the_same_error(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c")
    with RawPipeline(layouts(corpus, "s2"), max_batch=8, num_threads=2) as pipeline:
        with pipeline.lease(np.array([9])):
            pass
        data = shard(corpus, 1).read_bytes()
        shard(corpus, 1).write_bytes(data[:len(data) // 8])
        with pytest.raises(RunError, match=r"array s2, patch 15: .*truncated"), pipeline.lease(np.array([15])):
            pass


def test_a_missing_shard_is_an_error_that_names_file_array_and_patch(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c")
    shard(corpus, 1).unlink()
    text = failure(corpus, [1, 12])
    assert str(shard(corpus, 1)) in text and "array s2, patch 12" in text and "missing" in text and "\n" not in text


def test_a_frame_that_does_not_hold_one_patch_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """Without a crc32c the header is all there is: blosc would write past the patch or read past the frame."""
    array = zarr.create_array(tmp_path / "a", shape=(1, 2, 16, 16), chunks=(1, 2, 16, 16), shards=(1, 2, 16, 16),
                              dtype="int16", fill_value=-32768, compressors=[BloscCodec(cname="lz4", typesize=2)])
    array[:] = patches(np.random.default_rng(2), 1, 2, 16)
    flip(tmp_path / "a" / "c" / "0" / "0" / "0" / "0", 6)
    with pytest.raises(RunError, match="array .*patch 0: its blosc header says"):
        read(chunk_layout(array, root=tmp_path / "a"), np.arange(1))


@pytest.mark.parametrize(("options", "wrong"), [
    ({"chunks": (1, 2, 8, 8), "shards": (2, 2, 16, 16)}, "chunks"),
    ({"chunks": (2, 2, 16, 16)}, "chunks"),
    ({"chunks": (1, 2, 16, 8)}, "chunks"),
    ({"chunks": (1, 2, 16, 16), "filters": [zarr.codecs.TransposeCodec(order=(0, 2, 3, 1))]}, "codecs"),
    ({"chunks": (1, 2, 16, 16), "shards": (2, 2, 16, 16), "dtype": "uint16"}, "uint16"),
    ({"chunks": (1, 2, 16, 16), "shards": (2, 2, 16, 16), "dtype": ">i2"}, "legal"),
    ({"chunks": (1, 2, 16, 16), "shards": (2, 2, 16, 16), "compressors": [zarr.codecs.GzipCodec()]}, "codecs")])
def test_an_array_of_another_layout_is_refused_with_what_is_legal(tmp_path: Path, options: dict, wrong: str) -> None:
    options = {"dtype": "int16", **options}
    array = zarr.create_array(tmp_path / "a", shape=(4, 2, 16, 16), fill_value=0, **options)
    with pytest.raises(UsageError, match=wrong) as caught:
        chunk_layout(array, root=tmp_path)
    assert "legal: " in str(caught.value) and "\n" not in str(caught.value)
