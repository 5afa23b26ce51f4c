"""The plan for a GPU run whole on the CPU: only the inflater is another one, given the very offsets and sizes that a GPU's would get.

Oracle: zarr-python's own reading of the same array.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from dsengine.data import frames
from dsengine.data.layout import ChunkLayout, chunk_layout
from dsengine.data.staging import VOID, Group, Slab, Stager, expand
from dsengine.errors import RunError


def independent_inflate(buffer: torch.Tensor, groups: Sequence[Group], void: int) -> list[torch.Tensor]:
    """What a GPU's inflater gives, by numcodecs: raw LZ4 blocks with the size it wants in front, or zstd frames."""
    data = buffer.numpy().tobytes()
    assert data[void:void + 2] == VOID and numcodecs.LZ4().decode(struct.pack("<I", 1) + VOID) == b"\0"
    out = []
    for group in groups:
        pieces = [data[at:at + size] for at, size in zip(group.offset.tolist(), group.size.tolist(), strict=True)]
        codec = numcodecs.LZ4() if group.codec == frames.LZ4 else numcodecs.Zstd()
        head = struct.pack("<I", group.decoded) if group.codec == frames.LZ4 else b""
        inflated = [np.frombuffer(codec.decode(head + piece), np.uint8) for piece in pieces]
        assert {len(x) for x in inflated} == {group.decoded}
        out.append(torch.from_numpy(np.stack(inflated)))
    return out


def imagery(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """int16 patches that compress, do not, are one value, or are all of these."""
    if kind == "random":
        return rng.integers(-32768, 32768, shape).astype("<i2")
    if kind == "constant":
        return np.full(shape, 1234, "<i2")
    smooth = (np.cumsum(rng.normal(0, 8, shape), axis=-1) + 900).astype("<i2")
    if kind == "mixed":
        smooth[::3] = rng.integers(-32768, 32768, smooth[::3].shape)
        smooth[1::4] = -32768
        smooth[:, -1] = 7
    return smooth


def write(root: Path, name: str, x_NCHW: np.ndarray, compressors: list, *, per_shard: int = 4, fill_value: int = -32768) -> ChunkLayout:
    """The layout of a new sharded array `name` of the group at `root`; patches that are all fill value are not stored."""
    group = zarr.open_group(root, mode="a")
    codec = ShardingCodec(chunk_shape=(1, *x_NCHW.shape[1:]), codecs=[BytesCodec(), *compressors], index_codecs=[BytesCodec(), Crc32cCodec()])
    array = group.create_array(name, shape=x_NCHW.shape, chunks=(per_shard, *x_NCHW.shape[1:]), dtype="int16", fill_value=fill_value,
                               serializer=codec, compressors=None, filters=None)
    array[:] = x_NCHW
    return chunk_layout(group[name], root=root)


def staged_patches(layouts: Sequence[ChunkLayout], ids: np.ndarray, *, zstd: bool = True, threads: int = 2) -> tuple[torch.Tensor, ...]:
    """What the plan makes of patches `ids`."""
    stager, slab = Stager(layouts, num_threads=threads, zstd=zstd), Slab(pinned=False)
    try:
        staged = stager.stage(ids, slab)
    finally:
        stager.close()
    return expand(slab.tensor[:staged.num_bytes].clone(), staged, independent_inflate)


def blosc(shuffle: str, blocksize: int, *, typesize: int = 2, cname: str = "lz4") -> BloscCodec:
    return BloscCodec(cname=cname, shuffle=shuffle, blocksize=blocksize, typesize=typesize)


@pytest.mark.parametrize("shuffle", ["shuffle", "bitshuffle", "noshuffle"])
@pytest.mark.parametrize("blocksize", [0, 512, 1000, 4096, 65536])
@pytest.mark.parametrize("kind", ["smooth", "random", "constant", "mixed"])
def test_every_filter_block_size_and_kind_of_data_equals_zarr_python(tmp_path: Path, shuffle: str, blocksize: int, kind: str) -> None:
    x = imagery(np.random.default_rng(0), kind, (7, 3, 31, 37))
    layout = write(tmp_path, "s2", x, [blosc(shuffle, blocksize), Crc32cCodec()])
    ids = np.array([5, 0, 6, 3, 3, 1, 2, 4])
    np.testing.assert_array_equal(staged_patches([layout], ids)[0].numpy(), zarr.open_array(tmp_path / "s2")[:][ids])


@pytest.mark.parametrize("typesize", [1, 2, 3, 4, 8, 14, 16, 17, 32])
@pytest.mark.parametrize("shuffle", ["shuffle", "bitshuffle", "noshuffle"])
def test_every_type_size_equals_zarr_python(tmp_path: Path, typesize: int, shuffle: str) -> None:
    x = imagery(np.random.default_rng(1), "mixed", (5, 2, 61, 64))
    layout = write(tmp_path, "s2", x, [blosc(shuffle, typesize * 256, typesize=typesize)])
    np.testing.assert_array_equal(staged_patches([layout], np.arange(5))[0].numpy(), zarr.open_array(tmp_path / "s2")[:])


@pytest.mark.parametrize("channels", [1, 2, 3, 10, 14])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_every_number_of_channels_and_odd_sides_equal_zarr_python(tmp_path: Path, channels: int, size: int) -> None:
    x = imagery(np.random.default_rng(2), "mixed", (6, channels, size, size))
    layout = write(tmp_path, "s2", x, [blosc("shuffle", 4096), Crc32cCodec()])
    np.testing.assert_array_equal(staged_patches([layout], np.arange(6)[::-1])[0].numpy(), x[::-1])


@pytest.mark.parametrize("zstd", [False, True])
def test_arrays_of_every_codec_and_resolution_in_one_batch_equal_zarr_python(tmp_path: Path, zstd: bool) -> None:
    rng, chains = np.random.default_rng(3), {
        "lz4": [blosc("shuffle", 65536), Crc32cCodec()], "lz4hc": [blosc("bitshuffle", 0, cname="lz4hc")], "zstd": [ZstdCodec(), Crc32cCodec()],
        "none": [Crc32cCodec()], "bare": [], "blosc_zstd": [blosc("shuffle", 0, cname="zstd")]}
    arrays, layouts = {}, []
    for k, (name, chain) in enumerate(chains.items()):
        x = imagery(rng, "mixed", (9, 1 + k, 120 // (1 + k), 120 // (1 + k)))
        x[2], x[8 - k] = 55, 55
        arrays[name] = x
        layouts.append(write(tmp_path, name, x, chain, per_shard=3, fill_value=55))
    ids = np.array([8, 2, 0, 0, 5, 1, 7, 6, 3, 4])
    for name, out in zip(arrays, staged_patches(layouts, ids, zstd=zstd), strict=True):
        np.testing.assert_array_equal(out.numpy(), zarr.open_array(tmp_path / name)[:][ids], err_msg=name)


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)), blocksize=st.integers(0, 3000),
       typesize=st.integers(1, 20), shuffle=st.sampled_from(["shuffle", "bitshuffle", "noshuffle"]), seed=st.integers(0, 99),
       kind=st.sampled_from(["smooth", "random", "constant", "mixed"]), threads=st.integers(1, 7))
def test_any_array_equals_what_was_written(tmp_path_factory: pytest.TempPathFactory, shape, blocksize, typesize, shuffle, seed, kind, threads) -> None:
    x = imagery(np.random.default_rng(seed), kind, shape)
    layout = write(tmp_path_factory.mktemp("any"), "s2", x, [blosc(shuffle, blocksize, typesize=typesize)], per_shard=3)
    np.testing.assert_array_equal(staged_patches([layout], np.arange(len(x)), threads=threads)[0].numpy(), x)


def test_a_frame_of_another_codec_than_its_array_says_is_decoded_on_the_cpu(tmp_path: Path) -> None:
    x = imagery(np.random.default_rng(4), "mixed", (4, 2, 32, 32))
    layout = write(tmp_path, "s2", x, [blosc("shuffle", 0, cname="zstd")])
    lying = ChunkLayout(**{name: getattr(layout, name) for name in layout.__dataclass_fields__} | {"cname": "lz4"})
    np.testing.assert_array_equal(staged_patches([lying], np.array([3, 1, 0]))[0].numpy(), x[[3, 1, 0]])


def test_a_slab_used_again_for_larger_and_smaller_batches_gives_the_same(tmp_path: Path) -> None:
    x = imagery(np.random.default_rng(5), "mixed", (16, 3, 64, 64))
    layout = write(tmp_path, "s2", x, [blosc("shuffle", 8192), Crc32cCodec()])
    stager, slab = Stager([layout], num_threads=2), Slab(pinned=False)
    for ids in ([3], list(range(16)), [1, 2], list(range(15, -1, -1))):
        staged = stager.stage(np.array(ids), slab)
        np.testing.assert_array_equal(expand(slab.tensor[:staged.num_bytes], staged, independent_inflate)[0].numpy(), x[ids])
    stager.close()


def test_full_blocks_of_the_default_codec_are_two_streams_of_64_kib(tmp_path: Path) -> None:
    x = imagery(np.random.default_rng(6), "smooth", (2, 14, 128, 128))
    layout = write(tmp_path, "s2", x, [blosc("shuffle", 65536), Crc32cCodec()])
    stager = Stager([layout], num_threads=1)
    staged = stager.stage(np.arange(2), Slab(pinned=False))
    stager.close()
    assert [(group.codec, group.decoded) for group in staged.groups] == [(frames.LZ4, 65536)]
    assert staged.num_blocks == 8 and staged.num_streams == 14 and staged.block_bytes == 131072


@pytest.mark.parametrize("damage, words", [("flip", "fails its crc32c"), ("cut", "truncated"), ("missing", "missing")])
def test_damage_names_file_and_patch(tmp_path: Path, damage: str, words: str) -> None:
    x = imagery(np.random.default_rng(7), "smooth", (4, 2, 64, 64))
    layout = write(tmp_path, "s2", x, [blosc("shuffle", 0), Crc32cCodec()])
    path = Path(layout.shard_path(0))
    raw = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw if damage == "flip" else raw[:100] + raw[-68:])
    with pytest.raises(RunError, match=r"c/0/0/0/0: array s2, patch \d: ") as error:
        staged_patches([layout], np.arange(4))
    assert words in str(error.value) or damage == "cut"
