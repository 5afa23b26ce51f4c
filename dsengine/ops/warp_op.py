"""`warp` and `blur`: the geometric views of BYOL and SimSiam (crop-resize, rotation, flips; Gaussian blur), parameters given.

The definition in C++ is csrc/warp/warp.h; in torch, `warp_reference` and `blur_reference` here. Views carry no gradient.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from dsengine.errors import UsageError
from dsengine.ops import library

BORDERS = ("zeros", "edge", "mirror")  # position is dse_border
MAX_RADIUS = 64


@torch.library.custom_op("dsengine::warp", mutates_args=())
def warp(x: Tensor, theta: Tensor, height: int, width: int, border: str = "zeros") -> Tensor:
    """Bilinear views (B, C, height, width), channels-last strides, dtype of x.

    x: (B, C, H, W) float32, bfloat16 or float16. theta: (B, 2, 3) float32; output pixel (i, j) shows input row and column
    theta @ (i, j, 1), pixel centres at whole numbers. border: what lies past the image: zeros, the edge pixel, or the image mirrored
    about its edge pixels. Nothing is averaged, so reduce by less than 2, or blur first. Computed in float32. Raises UsageError.
    """
    _check_warp(x, theta, height, width, border)
    if not _has_kernel("warp", x):
        return warp_reference(x.float(), theta, height, width, border).to(x.dtype, memory_format=torch.channels_last)
    image = x.contiguous(memory_format=torch.channels_last)
    out = _empty(x, height, width)
    args = library.WarpArgs(in_=image.data_ptr(), out=out.data_ptr(), theta=theta.data_ptr(), num_samples=x.shape[0], height=x.shape[2],
                            width=x.shape[3], out_height=height, out_width=width, channels=x.shape[1], border=BORDERS.index(border),
                            type=library.OUT_TYPES[x.dtype])
    lib = library.library()
    _run("warp", x, lib.dse_warp_cpu, lib.dse_warp_cuda, args)
    return out


@torch.library.custom_op("dsengine::blur", mutates_args=())
def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """x (B, C, H, W) under a Gaussian of sigma (B,) float32 pixels, cut at `radius` taps a side and normalised; same dtype.

    Mirrored about the edge pixels. An image whose sigma is 0 or less, or NaN, stays as it is. radius: 0 to 64, below H and W.
    float32, bfloat16 or float16 in and out, float32 between; channels-last strides. Raises UsageError.
    """
    _check_blur(x, sigma, radius)
    if not _has_kernel("blur", x):
        return blur_reference(x.float(), sigma, radius).to(x.dtype, memory_format=torch.channels_last)
    image = x.contiguous(memory_format=torch.channels_last)
    out = _empty(x, *x.shape[2:])
    scratch = torch.empty(x.numel() if x.is_cuda else 0, dtype=torch.float32, device=x.device)
    args = library.BlurArgs(in_=image.data_ptr(), out=out.data_ptr(), sigma=sigma.data_ptr(), scratch=scratch.data_ptr(), num_samples=x.shape[0],
                            height=x.shape[2], width=x.shape[3], channels=x.shape[1], radius=radius, type=library.OUT_TYPES[x.dtype])
    lib = library.library()
    _run("blur", x, lib.dse_blur_cpu, lib.dse_blur_cuda, args)
    return out


@warp.register_fake
def _(x: Tensor, theta: Tensor, height: int, width: int, border: str = "zeros") -> Tensor:
    _check_warp(x, theta, height, width, border)
    return _empty(x, height, width)


@blur.register_fake
def _(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    _check_blur(x, sigma, radius)
    return _empty(x, *x.shape[2:])


def warp_reference(x: Tensor, theta: Tensor, height: int, width: int, border: str = "zeros") -> Tensor:
    """What `warp` computes, in the dtype of x, by torch's own sampler."""
    i, j = torch.meshgrid(torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij")
    places = torch.stack([i, j, torch.ones_like(i)], dim=-1).to(x.dtype)
    place = torch.einsum("brk,ijk->bijr", theta.to(x.dtype), places)
    extent = torch.tensor(x.shape[2:], device=x.device, dtype=x.dtype)
    # grid_sample counts from the image's edge, in half extents, and wants x before y.
    grid = ((2 * place + 1) / extent - 1).flip(-1)
    if border == "mirror":
        grid = torch.where(extent.flip(0) > 1, place.flip(-1) * 2 / (extent.flip(0) - 1).clamp(min=1) - 1, 0)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode={"zeros": "zeros", "edge": "border"}[border], align_corners=False)


def blur_reference(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """What `blur` computes, in the dtype of x, by two grouped convolutions an image."""
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    blurred = []
    for image, s in zip(x, sigma.to(x.dtype), strict=True):
        weights = torch.exp(-0.5 * (taps / s) ** 2)
        kernel = (weights / weights.sum()).reshape(1, 1, 1, -1)
        padded = F.pad(image[:, None], (radius,) * 4, mode="reflect") if s > 0 else image[:, None]
        blurred.append(F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))[:, 0] if s > 0 else image)
    return torch.stack(blurred) if blurred else x.clone()


def _run(op: str, x: Tensor, cpu: object, cuda: object, args: ctypes.Structure) -> None:
    if x.is_cuda:
        with torch.cuda.device(x.device):
            status = cuda(ctypes.byref(args), torch.cuda.current_stream().cuda_stream)
    else:
        status = cpu(ctypes.byref(args), torch.get_num_threads(), library.BEST_ISA)
    library.check_status(op, status)


def _has_kernel(op: str, x: Tensor) -> bool:
    if x.device.type == "cpu" or (x.is_cuda and library.build_info()["cuda"]):
        return True
    library.warn_slow(op, x.device.type)
    return False


def _empty(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty((x.shape[0], height, width, x.shape[1])).permute(0, 3, 1, 2)


def _check_image(op: str, x: Tensor) -> None:
    if x.ndim != 4 or x.dtype not in library.OUT_TYPES or min(x.shape[1:]) < 1:
        raise UsageError(f"{op}: x is {x.dtype} {tuple(x.shape)}, it must be (B, C, H, W) of {', '.join(map(str, library.OUT_TYPES))}")


def _check_parameter(op: str, name: str, parameter: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if tuple(parameter.shape) != shape or parameter.dtype != torch.float32 or not parameter.is_contiguous() or parameter.device != x.device:
        raise UsageError(f"{op}: {name} is {parameter.dtype} {tuple(parameter.shape)} on {parameter.device}, it must be contiguous float32 {shape} "
                         f"on {x.device} like x")


def _check_warp(x: Tensor, theta: Tensor, height: int, width: int, border: str) -> None:
    _check_image("warp", x)
    _check_parameter("warp", "theta", theta, (x.shape[0], 2, 3), x)
    if height < 1 or width < 1:
        raise UsageError(f"warp: height, width are {height}, {width}, they must be 1 or more")
    if border not in BORDERS:
        raise UsageError(f"warp: border is {border!r}, legal: {', '.join(BORDERS)}")


def _check_blur(x: Tensor, sigma: Tensor, radius: int) -> None:
    _check_image("blur", x)
    _check_parameter("blur", "sigma", sigma, (x.shape[0],), x)
    if not 0 <= radius <= min(MAX_RADIUS, x.shape[2] - 1, x.shape[3] - 1):
        raise UsageError(f"blur: radius is {radius}, legal for images of {x.shape[2]} x {x.shape[3]}: 0 to "
                         f"{min(MAX_RADIUS, x.shape[2] - 1, x.shape[3] - 1)}")
