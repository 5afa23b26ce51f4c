"""`augment`: raw integer patches to augmented, normalised, channels-last views in one pass.

Per band, x = r - center for a raw integer r and x = 0 where r is nodata. Per view and sample
    y = A x + T m + b,    m = mean of x over the crop's pixels with data (0 where a band has none),
and y is 0 where the band has no data. The same definition in torch is ops/reference.py; in C++ csrc/augment.
"""

import ctypes

import torch
from torch import Tensor

from dsengine.errors import UsageError
from dsengine.ops import library
from dsengine.ops.reference import augment_reference


@torch.library.custom_op("dsengine::augment", mutates_args=())
def augment(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor, T: Tensor,
            b: Tensor, size: int, *, out_channels: int | None = None, dtype: torch.dtype = torch.float32,
            nodata: int = -32768) -> Tensor:
    """Views of B samples, V of each, as (V * B, out_channels, size, size) with channels-last strides, views outermost.

    sources: each (B, C_s, H_s, W_s) int16. bands: (C, 3) int32 source, channel, factor; H_s * factor is the same for all
    and is the finest grid. center: (C,) float32, raw units. offset: (V, B, 2) int32 y, x of the crop on the finest grid.
    code: (V, B) int32; code & 3 quarter turns as torch.rot90(k, dims=(-2, -1)), then with code & 4 mirrored in x.
    A, T: (V, B, C, C) float32; b: (V, B, C) float32. size: side of the views, pixels. out_channels: C or more, the rest
    are zero. dtype: float32, bfloat16 or float16, accumulated in float32. All tensors contiguous on one device.
    Raises UsageError for a wrong shape, dtype, stride or device, and on CPU for values out of range.
    """
    _check(sources, bands, center, offset, code, A, T, b, size, out_channels, dtype)
    out = _empty(A, size, out_channels, dtype)
    _write(sources, bands, center, offset, code, A, T, b, out, nodata)
    return out


@augment.register_fake
def _(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor, T: Tensor,
      b: Tensor, size: int, *, out_channels: int | None = None, dtype: torch.dtype = torch.float32,
      nodata: int = -32768) -> Tensor:
    _check(sources, bands, center, offset, code, A, T, b, size, out_channels, dtype)
    return _empty(A, size, out_channels, dtype)


@torch.library.custom_op("dsengine::augment_into", mutates_args=("out",))
def augment_into(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor, T: Tensor,
                 b: Tensor, out: Tensor, *, nodata: int = -32768) -> None:
    """`augment` into memory that is there: out (V * B, out_channels, size, size) with channels-last strides is written whole."""
    if out.ndim != 4 or A.ndim != 4 or out.shape[0] != A.shape[0] * A.shape[1] or out.shape[2] != out.shape[3] or out.device != A.device:
        raise UsageError(f"augment: out is {tuple(out.shape)} on {out.device}, it must be (V * B, out_channels, size, size) on {A.device} like A")
    if not out.permute(0, 2, 3, 1).is_contiguous():
        raise UsageError(f"augment: out has strides {out.stride()}, it must be channels-last")
    _check(sources, bands, center, offset, code, A, T, b, out.shape[-1], out.shape[1], out.dtype)
    _write(sources, bands, center, offset, code, A, T, b, out, nodata)


@augment_into.register_fake
def _(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor, T: Tensor,
      b: Tensor, out: Tensor, *, nodata: int = -32768) -> None:
    _check(sources, bands, center, offset, code, A, T, b, out.shape[-1], out.shape[1], out.dtype)


def _write(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor, T: Tensor, b: Tensor,
           out: Tensor, nodata: int) -> None:
    args = _arguments(sources, bands, center, offset, code, A, T, b, out, nodata)
    if A.device.type == "cpu":
        run = library.library().dse_augment_cpu
        library.check_status("augment", run(ctypes.byref(args), torch.get_num_threads(), library.BEST_ISA))
    elif A.device.type == "cuda" and library.build_info()["cuda"]:
        with torch.cuda.device(A.device):
            mean, stream = torch.empty_like(b, dtype=torch.float64), torch.cuda.current_stream().cuda_stream
            library.check_status("augment", library.library().dse_augment_cuda(ctypes.byref(args), mean.data_ptr(), stream))
    else:
        library.warn_slow("augment", A.device.type)
        out.copy_(augment_reference(sources, bands, center, offset, code, A, T, b, out.shape[-1], out_channels=out.shape[1],
                                    dtype=out.dtype, nodata=nodata))


def _empty(A: Tensor, size: int, out_channels: int | None, dtype: torch.dtype) -> Tensor:
    num_views, num_samples, num_bands, _ = A.shape
    out = A.new_empty((num_views * num_samples, size, size, out_channels or num_bands), dtype=dtype)
    return out.permute(0, 3, 1, 2)


def _arguments(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor, T: Tensor,
               b: Tensor, out: Tensor, nodata: int) -> library.AugmentArgs:
    args = library.AugmentArgs(
        bands=bands.data_ptr(), center=center.data_ptr(), offset=offset.data_ptr(), code=code.data_ptr(),
        A=A.data_ptr(), T=T.data_ptr(), b=b.data_ptr(), out=out.data_ptr(), num_views=A.shape[0],
        num_samples=A.shape[1], num_sources=len(sources), num_bands=A.shape[2], out_channels=out.shape[1],
        size=out.shape[-1], nodata=nodata, out_type=library.OUT_TYPES[out.dtype])
    for slot, source in enumerate(sources):
        args.source[slot] = library.Source(source.data_ptr(), *source.shape[1:])
    return args


def _check(sources: list[Tensor], bands: Tensor, center: Tensor, offset: Tensor, code: Tensor, A: Tensor, T: Tensor,
           b: Tensor, size: int, out_channels: int | None, dtype: torch.dtype) -> None:
    if A.ndim != 4 or A.shape[2] != A.shape[3]:
        raise UsageError(f"augment: A is {tuple(A.shape)}, it must be (V, B, C, C)")
    num_views, num_samples, num_bands, _ = A.shape
    expected = {
        "bands": (bands, torch.int32, (num_bands, 3)), "center": (center, torch.float32, (num_bands,)),
        "offset": (offset, torch.int32, (num_views, num_samples, 2)), "code": (code, torch.int32, (num_views, num_samples)),
        "A": (A, torch.float32, A.shape), "T": (T, torch.float32, A.shape), "b": (b, torch.float32, A.shape[:3])}
    for slot, source in enumerate(sources):
        if source.ndim != 4:
            raise UsageError(f"augment: sources[{slot}] is {tuple(source.shape)}, it must be (B, C, H, W)")
        expected[f"sources[{slot}]"] = (source, torch.int16, (num_samples, *source.shape[1:]))
    for name, (tensor, wanted_dtype, wanted_shape) in expected.items():
        _check_tensor(name, tensor, wanted_dtype, tuple(wanted_shape), A.device)
    _check_numbers(len(sources), num_bands, size, out_channels, dtype)


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype != dtype:
        raise UsageError(f"augment: {name} is {tensor.dtype}, it must be {dtype}")
    if tuple(tensor.shape) != shape:
        raise UsageError(f"augment: {name} is {tuple(tensor.shape)}, it must be {shape}")
    if not tensor.is_contiguous():
        raise UsageError(f"augment: {name} has strides {tensor.stride()}, it must be contiguous")
    if tensor.device != device:
        raise UsageError(f"augment: {name} is on {tensor.device}, it must be on {device} like A")


def _check_numbers(num_sources: int, num_bands: int, size: int, out_channels: int | None, dtype: torch.dtype) -> None:
    if not 1 <= num_sources <= library.MAX_SOURCES:
        raise UsageError(f"augment: {num_sources} sources, legal: 1 to {library.MAX_SOURCES}")
    if not 1 <= num_bands <= library.MAX_BANDS:
        raise UsageError(f"augment: {num_bands} bands, legal: 1 to {library.MAX_BANDS}")
    if size < 1:
        raise UsageError(f"augment: size is {size}, it must be 1 or more")
    if out_channels is not None and not num_bands <= out_channels <= library.MAX_OUT_CHANNELS:
        raise UsageError(f"augment: out_channels is {out_channels}, legal: {num_bands} to {library.MAX_OUT_CHANNELS}")
    if dtype not in library.OUT_TYPES:
        raise UsageError(f"augment: dtype is {dtype}, legal: {', '.join(map(str, library.OUT_TYPES))}")
