"""`bitpack_decode`: chunks of the fixed-width codec, whole or a window of each, on the device where their bytes are.

The format is described in dsengine/corpus/bitpack.py; in numpy it is `ops.bitpack_reference`, in C++ csrc/bitpack/bitpack.h.
"""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsengine.errors import UsageError
from dsengine.ops import library

ITEM_BYTES = {torch.uint8: 1, torch.int8: 1, torch.int16: 2, torch.uint16: 2}
WINDOW_COLUMNS = ("offset in the buffer", "bytes", "first row", "first column")
TARGET_COLUMNS = ("offset in the buffer", "bytes", "offset in the output", "first row", "first column")


@torch.library.custom_op("dsengine::bitpack_decode", mutates_args=())
def bitpack_decode(buffer: Tensor, chunks: Tensor, shape: Sequence[int], window: Sequence[int], dtype: torch.dtype) -> Tensor:
    """(K, C, h, w) `dtype`: of each chunk the window that it names, all planes; only tiles that the window touches are decoded.

    buffer: (n,) uint8, contiguous, that holds the chunks without their crc32c. chunks: (K, 4) int64, columns WINDOW_COLUMNS. shape: (C, H, W) of
    every chunk. window: (h, w) of every window; (H, W) at row and column 0 is the whole chunk. dtype: that of the chunks, 1 or 2 bytes of any sign.
    Raises UsageError; a chunk or window that leaves its buffer or chunk, or that is damaged, raises it on the CPU. On a GPU such a chunk's pixels are
    undefined, and no other's.
    """
    _check_sizes(shape, window, dtype)
    _check_table("chunks", chunks, columns=WINDOW_COLUMNS, device=buffer.device)
    out = torch.empty((len(chunks), shape[0], *window), dtype=dtype, device=buffer.device)
    step = out.element_size() * math.prod(out.shape[1:])
    target = torch.arange(len(chunks), device=buffer.device)[:, None] * step
    table = torch.cat((chunks[:, :2], target, chunks[:, 2:]), dim=1)
    _decode(buffer, table, out.reshape(-1).view(torch.uint8), shape, window, ITEM_BYTES[dtype])
    return out


@bitpack_decode.register_fake
def _(buffer: Tensor, chunks: Tensor, shape: Sequence[int], window: Sequence[int], dtype: torch.dtype) -> Tensor:
    _check_sizes(shape, window, dtype)
    return torch.empty((len(chunks), shape[0], *window), dtype=dtype, device=buffer.device)


@torch.library.custom_op("dsengine::bitpack_decode_into", mutates_args=("out",))
def bitpack_decode_into(buffer: Tensor, chunks: Tensor, out: Tensor, shape: Sequence[int], window: Sequence[int], dtype: torch.dtype) -> None:
    """`bitpack_decode` into memory that is there, each window to its own place: out (n,) uint8; chunks (K, 5) int64, columns TARGET_COLUMNS."""
    _check_sizes(shape, window, dtype)
    _check_table("chunks", chunks, columns=TARGET_COLUMNS, device=buffer.device)
    _decode(buffer, chunks, out, shape, window, ITEM_BYTES[dtype])


@bitpack_decode_into.register_fake
def _(buffer: Tensor, chunks: Tensor, out: Tensor, shape: Sequence[int], window: Sequence[int], dtype: torch.dtype) -> None:
    _check_sizes(shape, window, dtype)


def bitpack_arguments(buffer: Tensor, chunks: Tensor, out: Tensor, *, shape: Sequence[int], window: Sequence[int],
                      itemsize: int) -> library.BitpackArgs:
    """The arguments of the C call; they hold no reference to the tensors."""
    return library.BitpackArgs(
        in_=buffer.data_ptr(), out=out.data_ptr(), chunks=chunks.data_ptr(), in_bytes=buffer.numel(), out_bytes=out.numel(), num_chunks=len(chunks),
        planes=shape[0], height=shape[1], width=shape[2], itemsize=itemsize, window_height=window[0], window_width=window[1])


def _decode(buffer: Tensor, chunks: Tensor, out: Tensor, shape: Sequence[int], window: Sequence[int], itemsize: int) -> None:
    """Chunks (K, 5) to `out` (n,) uint8, on the CPU where the device has no kernel."""
    for name, tensor in (("buffer", buffer), ("out", out)):
        if tensor.dtype != torch.uint8 or tensor.ndim != 1 or not tensor.is_contiguous() or tensor.device != buffer.device:
            raise UsageError(f"bitpack_decode: {name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} with strides {tensor.stride()}, "
                             f"it must be (n,) torch.uint8 on {buffer.device}, contiguous")
    if not buffer.is_cpu and not (buffer.is_cuda and library.build_info()["cuda"]):
        library.warn_slow("bitpack_decode", buffer.device.type)
        local = out.cpu()
        _decode(buffer.cpu(), chunks.cpu(), local, shape, window, itemsize)
        out.copy_(local)
        return
    args = bitpack_arguments(buffer, chunks, out, shape=shape, window=window, itemsize=itemsize)
    lib = library.library()
    if buffer.is_cuda:
        with torch.cuda.device(buffer.device):
            status = lib.dse_bitpack_cuda(ctypes.byref(args), torch.cuda.current_stream().cuda_stream)
    else:
        status = lib.dse_bitpack_cpu(ctypes.byref(args), torch.get_num_threads(), library.BEST_ISA)
    library.check_status("bitpack_decode", status)


def _check_sizes(shape: Sequence[int], window: Sequence[int], dtype: torch.dtype) -> None:
    if dtype not in ITEM_BYTES:
        raise UsageError(f"bitpack_decode: dtype is {dtype}, legal: {', '.join(map(str, ITEM_BYTES))}")
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) >= 1 << 28:
        raise UsageError(f"bitpack_decode: shape is {tuple(shape)}, it must be (C, H, W) of 1 to {2**28 - 1} pixels")
    if len(window) != 2 or not (1 <= window[0] <= shape[1] and 1 <= window[1] <= shape[2]):
        raise UsageError(f"bitpack_decode: window is {tuple(window)}, it must be (h, w), from (1, 1) to {tuple(shape[1:])}")


def _check_table(name: str, table: Tensor, *, columns: Sequence[str], device: torch.device) -> None:
    if table.dtype != torch.int64 or table.ndim != 2 or table.shape[1] != len(columns) or not table.is_contiguous() or table.device != device:
        raise UsageError(f"bitpack_decode: {name} is {table.dtype} {tuple(table.shape)} on {table.device} with strides {table.stride()}, "
                         f"it must be (K, {len(columns)}) torch.int64 on {device}, contiguous")
