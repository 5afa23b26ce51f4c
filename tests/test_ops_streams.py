"""ops.unfilter_streams against its definition in torch, hostile tables, and its CUDA source run on the host. Frames of Blosc: test_gpu_plan.py."""

import ctypes
from collections.abc import Callable

import pytest
import torch

from dsengine import ops
from dsengine.errors import UsageError
from dsengine.ops import library
from dsengine.ops.streams_op import stream_arguments, unfilter_streams_reference
from dsengine.ops.unfilter_op import FILTERS, unfilter_reference

Case = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, int, int]


def scattered(sizes: list[int], typesize: int, filter: str, *, split: bool, gap: int = 3) -> Case:
    """Random blocks of `sizes`, their streams at odd places of three buffers, their outputs back to back but in reverse order."""
    generator = torch.Generator().manual_seed(1)
    room = [0, 0, 0]
    blocks, streams = [], []
    target = sum(sizes)
    for k, size in enumerate(sizes):
        target -= size
        n = size // typesize
        whole = filter != "none" and size % typesize == 0 and (filter == "shuffle" or n % 8 == 0)
        count = typesize if split and whole and size else 1
        blocks.append([target, size, len(streams), count, typesize, FILTERS.index(filter)])
        for j in range(count):
            source = (k + j) % 3
            streams.append([source, room[source] + gap])
            room[source] += gap + size // count
    sources = [torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for size in room]
    table = torch.tensor(blocks, dtype=torch.int64).reshape(-1, 6)
    return sources, table, torch.tensor(streams, dtype=torch.int64).reshape(-1, 2), sum(sizes), max([1, *sizes])


@pytest.fixture(scope="module")
def host_kernel(host_cuda) -> Callable[..., int]:
    """dse_unfilter_streams_cuda compiled as C++."""
    return host_cuda("streams").dse_unfilter_streams_cuda


SIZES = [[], [0], [1], [64, 64, 17], [2048, 1024, 999, 8], [4096, 7, 16, 100]]


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("typesize", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("split", [False, True])
def test_every_size_and_split_equals_the_definition(filter: str, typesize: int, sizes: list[int], split: bool) -> None:
    case = scattered(sizes, typesize, filter, split=split)
    assert torch.equal(ops.unfilter_streams(*case), unfilter_streams_reference(*case))


@pytest.mark.parametrize("filter", FILTERS)
def test_blocks_in_one_piece_side_by_side_are_what_unfilter_takes(filter: str) -> None:
    raw = torch.randint(0, 256, (1, 3000), dtype=torch.uint8)
    blocks = torch.tensor([[at, min(1024, 3000 - at), k, 1, 2, FILTERS.index(filter)] for k, at in enumerate(range(0, 3000, 1024))])
    streams = torch.tensor([[0, at] for at in range(0, 3000, 1024)])
    assert torch.equal(ops.unfilter_streams([raw[0]], blocks, streams, 3000, 1024), unfilter_reference(raw, filter, 2, 1024)[0])


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("typesize", [1, 2, 3, 16])
@pytest.mark.parametrize("gap", [0, 3, 8])
@pytest.mark.parametrize("block_bytes", [1, 1 << 12])
def test_the_cuda_source_run_on_the_host_equals_the_definition(host_kernel, filter: str, typesize: int, gap: int, block_bytes: int) -> None:
    for split in (False, True):
        sources, blocks, streams, out_bytes, _ = scattered([2048, 1000, 7, 64], typesize, filter, split=split, gap=gap)
        out = torch.full((out_bytes,), 0xAB, dtype=torch.uint8)
        args = stream_arguments(sources, blocks, streams, out=out, block_bytes=block_bytes)
        assert host_kernel(ctypes.byref(args), None) == 0
        assert torch.equal(out, unfilter_streams_reference(sources, blocks, streams, out_bytes, block_bytes))


FAR = 2**62
HOSTILE = {
    "before the output": ("blocks", 0, 0, -1), "past the output": ("blocks", 0, 0, 129), "past it by overflow": ("blocks", 0, 0, 2**63 - 1),
    "negative size": ("blocks", 0, 1, -2), "large size": ("blocks", 0, 1, FAR), "first stream negative": ("blocks", 0, 2, -1),
    "first stream past the table": ("blocks", 0, 2, 5), "no stream": ("blocks", 0, 3, 0), "streams past the table": ("blocks", 1, 2, 3),
    "three streams of two-byte elements": ("blocks", 0, 3, 3), "typesize 0": ("blocks", 0, 4, 0), "typesize 256": ("blocks", 0, 4, 256),
    "no such filter": ("blocks", 0, 5, 3), "split but not filtered": ("blocks", 0, 5, 0), "source -1": ("streams", 0, 0, -1),
    "source 3": ("streams", 0, 0, 3), "offset -1": ("streams", 0, 1, -1), "offset past its source": ("streams", 0, 1, 4000),
    "offset by overflow": ("streams", 0, 1, 2**63 - 1)}


def hostile(name: str) -> Case:
    """Two good split blocks of 64 bytes, with one number of a table changed."""
    sources, blocks, streams, out_bytes, block_bytes = scattered([64, 64], 2, "shuffle", split=True)
    table, row, column, value = HOSTILE[name]
    {"blocks": blocks, "streams": streams}[table][row, column] = value
    return sources, blocks, streams, out_bytes, block_bytes


@pytest.mark.parametrize("name", HOSTILE)
def test_a_row_that_leaves_its_buffer_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unfilter_streams: a block or one of its streams leaves its buffer"):
        ops.unfilter_streams(*hostile(name))


@pytest.mark.parametrize("name", HOSTILE)
def test_the_cuda_source_skips_a_row_that_leaves_its_buffer_and_does_the_others(host_kernel, name: str) -> None:
    sources, blocks, streams, out_bytes, block_bytes = hostile(name)
    bad = HOSTILE[name][1] if HOSTILE[name][0] == "blocks" else 0
    good = 1 - bad
    out = torch.full((out_bytes,), 0xAB, dtype=torch.uint8)
    args = stream_arguments(sources, blocks, streams, out=out, block_bytes=block_bytes)
    assert host_kernel(ctypes.byref(args), None) == 0
    expected = unfilter_streams_reference(sources, blocks[good:good + 1], streams, out_bytes, block_bytes)
    at = int(blocks[good, 0])
    expected[64 - at:128 - at] = 0xAB
    assert torch.equal(out, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("typesize", [1, 2, 3, 16])
@pytest.mark.parametrize("split", [False, True])
def test_the_cuda_op_equals_the_cpu_op(filter: str, typesize: int, split: bool) -> None:
    if not ops.build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    sources, blocks, streams, out_bytes, block_bytes = scattered([131072, 131072, 65540, 7], typesize, filter, split=split)
    moved = ops.unfilter_streams([source.cuda() for source in sources], blocks.cuda(), streams.cuda(), out_bytes, block_bytes)
    assert torch.equal(moved.cpu(), ops.unfilter_streams(sources, blocks, streams, out_bytes, block_bytes))


def test_the_op_passes_torchs_own_checks_and_compiles_whole() -> None:
    sources, blocks, streams, out_bytes, block_bytes = scattered([64, 17], 2, "shuffle", split=True)
    torch.library.opcheck(ops.unfilter_streams, (sources, blocks, streams, out_bytes, block_bytes))
    compiled = torch.compile(lambda b, s: ops.unfilter_streams(sources, b, s, 81, 64) ^ 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(blocks, streams), ops.unfilter_streams(sources, blocks, streams, 81, 64) ^ 1)


@pytest.mark.parametrize("change, words", [
    ({"sources": [torch.zeros(4)]}, "sources[0] is torch.float32"),
    ({"sources": [torch.zeros(4, dtype=torch.uint8)] * 33}, "sources are 33, legal: at most 32"),
    ({"blocks": torch.zeros(1, 5, dtype=torch.int64)}, "blocks is torch.int64 (1, 5)"),
    ({"streams": torch.zeros(1, 2, dtype=torch.int32)}, "streams is torch.int32"),
    ({"streams": torch.zeros(2, 3, dtype=torch.int64).T[:2]}, "streams is torch.int64 (2, 2)"),
    ({"out_bytes": -1}, "out_bytes is -1"), ({"block_bytes": 0}, "block_bytes is 0")])
def test_illegal_arguments_are_named(change: dict, words: str) -> None:
    names = ("sources", "blocks", "streams", "out_bytes", "block_bytes")
    given = dict(zip(names, scattered([64], 2, "none", split=False), strict=True)) | change
    with pytest.raises(UsageError) as error:
        ops.unfilter_streams(*(given[name] for name in names))
    assert words in str(error.value)
