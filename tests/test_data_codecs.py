"""Arrays that zarr-python wrote, of any codec and shape, in shards or a file a chunk, read by the loader's reader and staged for a GPU."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dsengine.corpus.bitpack import BitpackCodec
from dsengine.data.layout import ChunkLayout, chunk_layout
from dsengine.data.patches import PatchReader
from dsengine.errors import RunError

FILL = -32768
KINDS = ("random", "constant", "smooth", "fill", "nearly fill")
BLOSC = st.builds(BloscCodec, cname=st.sampled_from(["lz4", "lz4hc", "zstd", "zlib"]), shuffle=st.sampled_from(["shuffle", "bitshuffle", "noshuffle"]),
                  typesize=st.sampled_from([1, 2, 4]), blocksize=st.sampled_from([0, 256, 1000, 4096, 65536]), clevel=st.integers(0, 9))
BITPACK = st.builds(BitpackCodec, predictor=st.sampled_from(["none", "lorenzo"]), nodata=st.sampled_from([None, FILL]))
CODECS = st.one_of(st.just([]), st.builds(lambda codec: [codec], BITPACK), st.builds(lambda level: [ZstdCodec(level=level)], st.integers(-5, 5)), st.builds(lambda codec: [codec], BLOSC))


def content(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "random":
        return rng.integers(-(2**15), 2**15, shape, dtype=np.int16)
    if kind == "smooth":
        return np.cumsum(rng.integers(-3, 4, shape), axis=-1).astype(np.int16)
    x = np.full(shape, 77 if kind == "constant" else FILL, dtype=np.int16)
    if kind == "nearly fill":
        x[..., -1] = 5
    return x


def read(layout: ChunkLayout, ids: np.ndarray, num_threads: int) -> np.ndarray:
    reader = PatchReader([layout], num_threads=num_threads)
    out = np.full((len(ids), *layout.patch_shape), 99, dtype=np.int16)
    try:
        reader.read(ids, [out])
    finally:
        reader.close()
    return out


@settings(max_examples=120, deadline=None)
@given(codecs=CODECS, checked=st.booleans(), shard=st.integers(0, 4), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
       shape=st.tuples(st.integers(1, 14), st.integers(1, 33), st.integers(1, 33)), separator=st.sampled_from("/."), seed=st.integers(0, 2**20), threads=st.integers(1, 3))
def test_whatever_zarr_python_wrote_reads_back_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, codecs: list, checked: bool, shard: int, kinds: list[str],
                                                             shape: tuple[int, ...], separator: str, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    want = np.stack([content(rng, kind, shape) for kind in kinds])
    if shard:  # zarr-python writes no file for a shard that is all fill value; to the loader one that is not there is lost
        want[::shard, 0, 0, 0] = 1
    root = tmp_path_factory.mktemp("codecs")
    packs, others = [[codec for codec in codecs if isinstance(codec, BitpackCodec) == packed] for packed in (True, False)]
    array = zarr.create_array(root / "a", shape=want.shape, chunks=(1, *shape), shards=(shard, *shape) if shard else None, dtype="int16", fill_value=FILL,
                              serializer=(packs or ["auto"])[0], compressors=[*others, *[Crc32cCodec()] * checked],
                              chunk_key_encoding={"name": "default", "separator": separator})
    array[:] = want
    ids = rng.integers(0, len(want), 9)
    np.testing.assert_array_equal(read(chunk_layout(array, root=root / "a"), ids, threads), zarr.open_array(root / "a", mode="r")[:][ids])
    shutil.rmtree(root)


@pytest.mark.parametrize("how, words", [("flip", "fails its crc32c"), ("empty", "the file is empty"), ("short", "crc32c|truncated|header")])
def test_damage_to_a_file_that_is_one_chunk_is_named(tmp_path: Path, how: str, words: str) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(3, 2, 16, 16), chunks=(1, 2, 16, 16), dtype="int16", fill_value=0,
                              compressors=[BloscCodec(cname="lz4", typesize=2), Crc32cCodec()])
    array[:] = np.random.default_rng(0).integers(0, 99, array.shape)
    file = tmp_path / "a" / "c" / "1" / "0" / "0" / "0"
    body = bytearray(file.read_bytes())
    body[40] ^= 1
    file.write_bytes({"flip": body, "empty": b"", "short": body[:3]}[how])
    with pytest.raises(RunError, match=f"c/1/0/0/0: array .*, patch 1: .*({words})"):
        read(chunk_layout(array, root=tmp_path / "a"), np.arange(3), 1)
