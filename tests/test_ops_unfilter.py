"""ops.unfilter against what Blosc itself wrote, its definition in torch, and its CUDA source run on the host."""

import ctypes
import struct

import numcodecs
import numpy as np
import pytest
import torch

from dsengine import ops
from dsengine.errors import UsageError
from dsengine.ops import library
from dsengine.ops.unfilter_op import FILTERS, unfilter_reference

SIZES = [0, 1, 7, 8, 63, 100, 257, 1000, 70000]


def inflated(frame: bytes) -> tuple[np.ndarray, int]:
    """(filtered bytes (n,), block size) of a Blosc LZ4 frame, by the layout of its header and LZ4 alone."""
    _, _, flags, _, num_bytes, block_bytes, _ = struct.unpack("<BBBBIII", frame[:16])
    assert not flags & 0x2, "stored whole"
    blocks = -(-num_bytes // block_bytes)
    starts = np.frombuffer(frame, "<i4", blocks, 16)
    out = b""
    for k, start in enumerate(starts.tolist()):
        room = min(block_bytes, num_bytes - k * block_bytes)
        target = len(out) + room
        streams = 1 if flags & 0x10 or room < block_bytes else frame[3]
        for _ in range(streams):
            (length,) = struct.unpack_from("<i", frame, start)
            body = frame[start + 4:start + 4 + length]
            part = room // streams
            out += body if length == part else numcodecs.LZ4().decode(struct.pack("<I", part) + body)
            start += 4 + length
        assert len(out) == target
    return np.frombuffer(out, np.uint8), block_bytes


@pytest.mark.parametrize("shuffle, name", [(numcodecs.Blosc.SHUFFLE, "shuffle"), (numcodecs.Blosc.BITSHUFFLE, "bitshuffle"),
                                           (numcodecs.Blosc.NOSHUFFLE, "none")])
@pytest.mark.parametrize("dtype", ["<i2", "<i4", "<f8", "u1"])
@pytest.mark.parametrize("num", [4096, 14 * 128 * 128, 65536 + 24])
def test_a_blosc_frame_inflated_by_hand_becomes_the_numbers_again(shuffle: int, name: str, dtype: str, num: int) -> None:
    numbers = (np.cumsum(np.random.default_rng(0).integers(0, 3, num)) // 16).astype(dtype)  # repeats enough to be compressed unfiltered
    frame = numcodecs.Blosc("lz4", clevel=5, shuffle=shuffle, blocksize=65536).encode(numbers)
    raw, block_bytes = inflated(bytes(frame))
    out = ops.unfilter(torch.from_numpy(raw.copy())[None], name, numbers.itemsize, block_bytes)
    np.testing.assert_array_equal(out.numpy()[0].view(dtype), numbers)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("typesize", [1, 2, 3, 4, 8, 17])
@pytest.mark.parametrize("num_bytes", SIZES)
def test_every_size_and_tail_equals_the_definition(filter: str, typesize: int, num_bytes: int) -> None:
    raw = torch.randint(0, 256, (3, num_bytes), dtype=torch.uint8)
    for block_bytes in (64, 100, 65536):
        assert torch.equal(ops.unfilter(raw, filter, typesize, block_bytes), unfilter_reference(raw, filter, typesize, block_bytes))


def test_no_chunks_at_all_give_none() -> None:
    assert ops.unfilter(torch.zeros(0, 12, dtype=torch.uint8), "shuffle", 2, 64).shape == (0, 12)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("typesize, num_bytes, block_bytes", [(2, 1000, 1 << 20), (2, 1024, 256), (2, 1001, 77), (4, 515, 128), (3, 99, 24)])
def test_the_cuda_source_run_on_the_host_equals_the_cpu_op(host_cuda, filter: str, typesize: int, num_bytes: int, block_bytes: int) -> None:
    raw = torch.randint(0, 256, (3, num_bytes), dtype=torch.uint8)
    out = torch.full_like(raw, 0xAB)
    args = library.UnfilterArgs(in_=raw.data_ptr(), out=out.data_ptr(), num_chunks=3, chunk_bytes=num_bytes, block_bytes=block_bytes,
                                typesize=typesize, filter=FILTERS.index(filter))
    assert host_cuda("unfilter").dse_unfilter_cuda(ctypes.byref(args), None) == 0
    assert torch.equal(out, ops.unfilter(raw, filter, typesize, block_bytes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("typesize, num_bytes", [(2, 14 * 128 * 128 * 2), (2, 1001), (4, 70000), (3, 99)])
def test_the_cuda_op_equals_the_cpu_op(filter: str, typesize: int, num_bytes: int) -> None:
    if not ops.build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    raw = torch.randint(0, 256, (5, num_bytes), dtype=torch.uint8)
    assert torch.equal(ops.unfilter(raw.cuda(), filter, typesize, 65536).cpu(), ops.unfilter(raw, filter, typesize, 65536))


def test_the_op_passes_torchs_own_checks_and_compiles_whole() -> None:
    raw = torch.randint(0, 256, (2, 100), dtype=torch.uint8)
    torch.library.opcheck(ops.unfilter, (raw, "shuffle", 2, 64))
    compiled = torch.compile(lambda x: ops.unfilter(x, "shuffle", 2, 64) ^ 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(raw), ops.unfilter(raw, "shuffle", 2, 64) ^ 1)


@pytest.mark.parametrize("raw, filter, typesize, block_bytes, words", [
    (torch.zeros(2, 8), "shuffle", 2, 8, "raw is torch.float32"),
    (torch.zeros(8, dtype=torch.uint8), "shuffle", 2, 8, "must be (B, n)"),
    (torch.zeros(8, 2, dtype=torch.uint8).T, "shuffle", 2, 8, "contiguous"),
    (torch.zeros(2, 8, dtype=torch.uint8), "delta", 2, 8, "legal: none, shuffle, bitshuffle"),
    (torch.zeros(2, 8, dtype=torch.uint8), "shuffle", 0, 8, "typesize is 0"),
    (torch.zeros(2, 8, dtype=torch.uint8), "shuffle", 2, 0, "block_bytes is 0"),
])
def test_illegal_arguments_are_named(raw: torch.Tensor, filter: str, typesize: int, block_bytes: int, words: str) -> None:
    with pytest.raises(UsageError) as error:
        ops.unfilter(raw, filter, typesize, block_bytes)
    assert words in str(error.value)
