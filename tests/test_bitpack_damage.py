"""Damaged and hostile chunks of the fixed-width codec, its instruction sets, and the loader's reader: nothing outside a buffer is touched, errors name the patch."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec

from dsengine.corpus import bitpack
from dsengine.corpus.bitpack import BitpackCodec
from dsengine.corpus.shards import shard_bytes
from dsengine.data.chunks import ShardIndex
from dsengine.data.layout import chunk_layout
from dsengine.data.native import NativeReader, can_read
from dsengine.data.patches import PatchReader
from dsengine.errors import RunError
from dsengine.ops import library

ISAS = {"portable": 1, "avx2": 2, "avx512": 3}


def scene(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = (np.cumsum(rng.normal(0, 9, shape), axis=-1) + 700).astype("int16")
    x[..., shape[-2] // 2:, :shape[-1] // 3] = -32768
    return x


def sanitized(folder: Path, checkout: Path) -> Path:
    """The fuzzer of tests/fuzz with address and undefined-behaviour sanitizers, or a skip."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++20", "-O1", "-g", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=alignment",
             f"-I{checkout / 'csrc'}", f"-I{checkout / 'tests/cuda_on_host'}"]
    built = subprocess.run([compiler, *flags, str(checkout / "tests/fuzz/bitpack.cpp"), "-o", str(folder / "fuzz")], capture_output=True, text=True)
    if built.returncode and "asan" in built.stderr:
        pytest.skip("the compiler has no sanitizer library")
    assert built.returncode == 0, built.stderr
    return folder / "fuzz"


def test_no_damaged_chunk_makes_the_decoder_leave_its_buffers(tmp_path: Path, checkout: Path) -> None:
    found = subprocess.run([sanitized(tmp_path, checkout), "4000", "200"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    whole, taken, run = map(int, found.stdout.split())
    assert whole == 4000 and taken > 4000 and run == 200  # damage that leaves a window legal is met too


def test_a_chunk_cut_anywhere_or_longer_than_it_says_is_refused() -> None:
    chunk, out = bitpack.encode(scene((2, 11, 19)), predictor="lorenzo", nodata=-32768), np.empty((2, 11, 19), "int16")
    for size in range(len(chunk)):
        with pytest.raises(ValueError, match=r"no dsengine.bitpack chunk of \(2, 11, 19\) int16"):
            bitpack.decode(chunk[:size], out)
    with pytest.raises(ValueError):
        bitpack.decode(chunk + b"\0", out)


@pytest.mark.parametrize("shape, dtype", [((2, 19, 11), "int16"), ((1, 22, 19), "int16"), ((2, 11, 19), "uint8"), ((2, 11, 20), "int16")])
def test_a_chunk_of_another_shape_or_type_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError):
        bitpack.decode(bitpack.encode(scene((2, 11, 19)), predictor="none"), np.empty(shape, dtype))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(20, 10_000), value=st.integers(0, 255), seed=st.integers(0, 3))
def test_one_changed_byte_is_refused_or_changes_its_own_segment_alone(at: int, value: int, seed: int) -> None:
    """Without a crc32c; bytes of offsets may point anywhere, and then a segment does not end where the next begins."""
    x = scene((1, 16, 260), seed)
    chunk = bytearray(bitpack.encode(x, predictor="lorenzo", nodata=-32768))
    offsets = np.frombuffer(bytes(chunk[20:20 + 4 * 7]), "<u4")
    at = 20 + (at - 20) % (len(chunk) - 20)
    before, chunk[at] = chunk[at], value
    out = np.full_like(x, 77)
    try:
        bitpack.decode(bytes(chunk), out)
    except ValueError:
        return
    assert at >= offsets[0] or value == before
    row, across = divmod(int(np.searchsorted(offsets, at, side="right")) - 1, 3) if at >= offsets[0] else (0, 0)
    same = np.ones(x.shape, bool)
    same[:, 8 * row:8 * row + 8, 128 * across:128 * across + 128] = False
    np.testing.assert_array_equal(out[same], x[same])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("predictor", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 23, 29), (2, 64, 256)], ids=str)
def test_every_instruction_set_writes_the_same_bytes_and_reads_them(isa: str, predictor: int, shape: tuple[int, ...]) -> None:
    x = scene(shape)
    lib = bitpack._library()
    room = np.empty(lib.dse_bitpack_bound(*shape, 2), np.uint8)
    size = lib.dse_bitpack_encode(x.ctypes.data, room.ctypes.data, *shape, 2, 1, predictor, -32768, ISAS[isa])
    if size < 0:
        pytest.skip(f"this CPU has no {isa}")
    assert room[:size].tobytes() == bitpack.encode(x, predictor=bitpack.PREDICTORS[predictor], nodata=-32768)
    out, chunks = np.empty_like(x), np.array([0, size, 0, 0, 0])
    args = bitpack.Args(in_=room.ctypes.data, out=out.ctypes.data, chunks=chunks.ctypes.data, in_bytes=size, out_bytes=out.nbytes, num_chunks=1, planes=shape[0],
                        height=shape[1], width=shape[2], itemsize=2, window_height=shape[1], window_width=shape[2])
    assert lib.dse_bitpack_cpu(ctypes.byref(args), 1, ISAS[isa]) == 0
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("sizes", [(0, 5, 5, 2), (1, 0, 5, 2), (1, 5, 5, 3), (1, 1 << 15, 1 << 15, 2), (1 << 40, 1 << 40, 1, 1), (1, -1, 5, 1)], ids=str)
def test_sizes_out_of_range_have_no_bound(sizes: tuple[int, int, int, int]) -> None:
    planes, height, width, itemsize = sizes
    assert bitpack._library().dse_bitpack_bound(planes, height, width, itemsize) == -1


def array_at(path: Path, x: np.ndarray, *, checked: bool) -> zarr.Array:
    array = zarr.create_array(path, shape=x.shape, chunks=(1, *x.shape[1:]), shards=(4, *x.shape[1:]), dtype="int16", fill_value=-5,
                              serializer=BitpackCodec(predictor="lorenzo", nodata=-32768), compressors=[Crc32cCodec()] * checked)
    array[:] = x
    return array


@pytest.mark.parametrize("checked", [True, False])
def test_the_readers_one_call_takes_it_with_and_without_a_crc32c(tmp_path: Path, checked: bool) -> None:
    x = scene((11, 3, 17, 29))
    x[[2, 9]] = -5  # not stored
    layout = chunk_layout(array_at(tmp_path / "a", x, checked=checked), root=tmp_path / "a")
    rows = np.array([10, 2, 0, 7, 7, 9, 3, 10])
    assert can_read(layout)
    out = np.full((len(rows), 3, 17, 29), 77, dtype=np.int16)
    assert NativeReader([layout], num_threads=3).read([ShardIndex(layout).locate(rows)], [out]) == []
    np.testing.assert_array_equal(out, x[rows])


@pytest.mark.parametrize("body, words", [(bitpack.encode(scene((3, 29, 17)), predictor="none"), "no dsengine.bitpack chunk"),
                                         (bitpack.encode(scene((3, 17, 29)), predictor="none")[:-1], "no dsengine.bitpack chunk"), (b"", "no dsengine.bitpack chunk")],
                         ids=["another shape", "cut", "empty"])
def test_a_chunk_that_is_wrong_under_a_right_crc32c_names_file_array_and_patch(tmp_path: Path, body: bytes, words: str) -> None:
    x = scene((4, 3, 17, 29))
    layout = chunk_layout(array_at(tmp_path / "a", x, checked=True), root=tmp_path / "a")
    good, bad = (part + google_crc32c.value(part).to_bytes(4, "little") for part in (bitpack.encode(x[0], predictor="none"), body))
    Path(layout.shard_path(0)).write_bytes(b"".join(shard_bytes([good, good, bad, good], 4)))
    reader, out = PatchReader([layout], num_threads=1), np.empty((2, 3, 17, 29), dtype=np.int16)
    with pytest.raises(RunError, match=rf"c/0/0/0/0: array \S*, patch 2: .*{words}"):
        reader.read(np.array([0, 2]), [out])
    reader.read(np.array([0, 3]), [out])
    np.testing.assert_array_equal(out[0], x[0])
    reader.close()


def test_an_array_whose_patches_are_no_multiple_of_its_rows_is_refused_by_the_library() -> None:
    out = np.zeros(64, np.uint8)
    for height, width in ((5, 3), (0, 8), (8, 0), (-8, -4), (2**30, 2**30)):
        arrays = (library.ReadArray * 1)(library.ReadArray(out=out.ctypes.data, num_patches=1, patch_bytes=64, compressor=3, height=height, width=width))
        args = library.ReadArgs(arrays=ctypes.addressof(arrays), num_arrays=1)
        assert library.library().dse_read_cpu(ctypes.byref(args), 1, 0) == 1
