"""`unfilter_streams`: `unfilter` for blocks whose streams lie anywhere in several buffers, inflated or stored raw, each to its own place.

The definition in C++ is csrc/unfilter/streams.h; in torch, `unfilter_streams_reference` here. `data.frames` makes the tables.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from dsengine.errors import UsageError
from dsengine.ops import library
from dsengine.ops.unfilter_op import FILTERS, unfilter_reference

BLOCK_COLUMNS = ("offset in the output", "bytes", "first stream", "streams (1 or typesize)", "typesize", "position in FILTERS")
STREAM_COLUMNS = ("source", "offset in it")


@torch.library.custom_op("dsengine::unfilter_streams", mutates_args=())
def unfilter_streams(sources: Sequence[Tensor], blocks: Tensor, streams: Tensor, out_bytes: int, block_bytes: int) -> Tensor:
    """(out_bytes,) uint8: every block as it was before filtering, at its place; bytes of no block are left undefined.

    sources: up to 32 tensors (n,) uint8, contiguous. blocks: (K, 6) int64, columns BLOCK_COLUMNS; a block of `typesize` streams has
    bytes / typesize of each and must be filtered, one of a single stream has all its bytes there. streams: (S, 2) int64, columns
    STREAM_COLUMNS. block_bytes: size of the usual block, 1 or more; it decides only how many threads of a GPU a block gets.
    Filters are those of `unfilter`. Raises UsageError; a block that leaves a buffer raises it on the CPU and is skipped on a GPU.
    """
    _check(sources, blocks, streams, out_bytes, block_bytes)
    if not blocks.is_cpu and not (blocks.is_cuda and library.build_info()["cuda"]):
        library.warn_slow("unfilter_streams", blocks.device.type)
        return unfilter_streams_reference(sources, blocks, streams, out_bytes, block_bytes)
    out = torch.empty(out_bytes, dtype=torch.uint8, device=blocks.device)
    args = stream_arguments(sources, blocks, streams, out=out, block_bytes=block_bytes)
    lib = library.library()
    if blocks.is_cuda:
        with torch.cuda.device(blocks.device):
            status = lib.dse_unfilter_streams_cuda(ctypes.byref(args), torch.cuda.current_stream().cuda_stream)
    else:
        status = lib.dse_unfilter_streams_cpu(ctypes.byref(args), torch.get_num_threads())
    library.check_status("unfilter_streams", status)
    return out


@unfilter_streams.register_fake
def _(sources: Sequence[Tensor], blocks: Tensor, streams: Tensor, out_bytes: int, block_bytes: int) -> Tensor:
    _check(sources, blocks, streams, out_bytes, block_bytes)
    return torch.empty(out_bytes, dtype=torch.uint8, device=blocks.device)


def unfilter_streams_reference(sources: Sequence[Tensor], blocks: Tensor, streams: Tensor, out_bytes: int, block_bytes: int) -> Tensor:
    """What `unfilter_streams` computes, block by block in plain torch; bytes of no block are 0."""
    out = torch.zeros(out_bytes, dtype=torch.uint8, device=blocks.device)
    pieces = streams.tolist()
    for target, size, first, count, typesize, filter in blocks.tolist():
        part = size // count
        raw = torch.cat([sources[source][offset:offset + part] for source, offset in pieces[first:first + count]])
        out[target:target + size] = unfilter_reference(raw[None], FILTERS[filter], typesize, max(1, size))[0]
    return out


def stream_arguments(sources: Sequence[Tensor], blocks: Tensor, streams: Tensor, *, out: Tensor, block_bytes: int) -> library.UnfilterStreamsArgs:
    """The arguments of the C call; they hold no reference to the tensors."""
    args = library.UnfilterStreamsArgs(
        out=out.data_ptr(), blocks=blocks.data_ptr(), streams=streams.data_ptr(), out_bytes=out.numel(), num_blocks=len(blocks),
        num_streams=len(streams), block_bytes=block_bytes, num_sources=len(sources))
    for k, source in enumerate(sources):
        args.source[k], args.source_bytes[k] = source.data_ptr(), source.numel()
    return args


def _check(sources: Sequence[Tensor], blocks: Tensor, streams: Tensor, out_bytes: int, block_bytes: int) -> None:
    if len(sources) > library.MAX_STREAM_SOURCES:
        raise UsageError(f"unfilter_streams: sources are {len(sources)}, legal: at most {library.MAX_STREAM_SOURCES}")
    for k, source in enumerate(sources):
        _check_tensor(f"sources[{k}]", source, dtype=torch.uint8, columns=None, device=blocks.device)
    for name, table, columns in (("blocks", blocks, len(BLOCK_COLUMNS)), ("streams", streams, len(STREAM_COLUMNS))):
        _check_tensor(name, table, dtype=torch.int64, columns=columns, device=blocks.device)
    if out_bytes < 0:
        raise UsageError(f"unfilter_streams: out_bytes is {out_bytes}, it must be 0 or more")
    if block_bytes < 1:
        raise UsageError(f"unfilter_streams: block_bytes is {block_bytes}, it must be 1 or more")


def _check_tensor(name: str, tensor: Tensor, *, dtype: torch.dtype, columns: int | None, device: torch.device) -> None:
    shape = "(n,)" if columns is None else f"(n, {columns})"
    fits = tensor.ndim == 1 if columns is None else tensor.ndim == 2 and tensor.shape[1] == columns
    if tensor.dtype != dtype or not fits or not tensor.is_contiguous() or tensor.device != device:
        raise UsageError(f"unfilter_streams: {name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} with strides {tensor.stride()}, "
                         f"it must be {shape} {dtype} on {device}, contiguous")
