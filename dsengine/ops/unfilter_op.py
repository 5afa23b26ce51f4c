"""`unfilter`: undoes the byte or bit shuffle that a compressor such as Blosc put before LZ4, on the device where the bytes are.

The definition in C++ is csrc/unfilter/unfilter.h; in torch, `unfilter_reference` here.
"""

import ctypes

import torch
from torch import Tensor

from dsengine.errors import UsageError
from dsengine.ops import library

FILTERS = ("none", "shuffle", "bitshuffle")  # position is dse_filter


@torch.library.custom_op("dsengine::unfilter", mutates_args=())
def unfilter(raw: Tensor, filter: str, typesize: int, block_bytes: int) -> Tensor:
    """Bytes as they were before filtering, (B, n) uint8; `.view(torch.int16)` gives the numbers.

    raw: (B, n) uint8, contiguous: B chunks of n bytes, each in blocks of `block_bytes` (the last may be shorter) that were filtered
    on their own. filter: none, shuffle or bitshuffle. typesize: bytes an element, 1 to 255. A block whose number of elements is no
    multiple of 8 was not bit-shuffled, and bytes past the last whole element were not moved (Blosc 1.21). Raises UsageError.
    """
    _check(raw, filter, typesize, block_bytes)
    if raw.device.type not in ("cpu", "cuda") or (raw.is_cuda and not library.build_info()["cuda"]):
        library.warn_slow("unfilter", raw.device.type)
        return unfilter_reference(raw, filter, typesize, block_bytes)
    out = torch.empty_like(raw)
    args = library.UnfilterArgs(in_=raw.data_ptr(), out=out.data_ptr(), num_chunks=raw.shape[0], chunk_bytes=raw.shape[1],
                                block_bytes=block_bytes, typesize=typesize, filter=FILTERS.index(filter))
    lib = library.library()
    if raw.is_cuda:
        with torch.cuda.device(raw.device):
            status = lib.dse_unfilter_cuda(ctypes.byref(args), torch.cuda.current_stream().cuda_stream)
    else:
        status = lib.dse_unfilter_cpu(ctypes.byref(args), torch.get_num_threads())
    library.check_status("unfilter", status)
    return out


@unfilter.register_fake
def _(raw: Tensor, filter: str, typesize: int, block_bytes: int) -> Tensor:
    _check(raw, filter, typesize, block_bytes)
    return torch.empty_like(raw)


def unfilter_reference(raw: Tensor, filter: str, typesize: int, block_bytes: int) -> Tensor:
    """What `unfilter` computes, in plain torch."""
    return torch.cat([_block(block, filter, typesize) for block in raw.split(block_bytes, dim=1)], dim=1) if raw.shape[1] else raw.clone()


def _block(block: Tensor, filter: str, typesize: int) -> Tensor:
    """(B, m) bytes of one block."""
    num = block.shape[1] // typesize
    head, tail = block[:, :num * typesize], block[:, num * typesize:]
    if filter == "shuffle":
        head = head.reshape(len(block), typesize, num).transpose(1, 2).reshape(head.shape)
    elif filter == "bitshuffle" and num % 8 == 0:
        place = torch.arange(8, device=block.device)
        bits = head.reshape(len(block), typesize, 8, num // 8, 1).to(torch.int32) >> place & 1  # byte, bit of it, eight elements, element
        head = (bits << place[:, None, None]).sum(2).permute(0, 2, 3, 1).reshape(head.shape).to(torch.uint8)
    return torch.cat([head, tail], dim=1)


def _check(raw: Tensor, filter: str, typesize: int, block_bytes: int) -> None:
    if raw.dtype != torch.uint8 or raw.ndim != 2 or not raw.is_contiguous():
        raise UsageError(f"unfilter: raw is {raw.dtype} {tuple(raw.shape)} with strides {raw.stride()}, it must be (B, n) uint8, contiguous")
    if filter not in FILTERS:
        raise UsageError(f"unfilter: filter is {filter!r}, legal: {', '.join(FILTERS)}")
    if not 1 <= typesize <= 255:
        raise UsageError(f"unfilter: typesize is {typesize}, legal: 1 to 255")
    if not 1 <= block_bytes < 2**31:
        raise UsageError(f"unfilter: block_bytes is {block_bytes}, legal: 1 to {2**31 - 1}")
