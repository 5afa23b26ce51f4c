"""ops.warp and ops.blur against torch's sampler and scipy in float64, every instruction set, and the CUDA source run on the host."""

import ctypes
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from dsengine import ops
from dsengine.errors import UsageError
from dsengine.ops import library
from dsengine.ops.warp_op import BORDERS, blur_reference, warp_reference

ISAS = {"portable": 1, "avx2": 2, "avx512": 3}
SHAPES = [(1, 1, 1, 1), (2, 1, 5, 9), (3, 14, 32, 32), (2, 3, 33, 17)]
HALVES = [torch.float32, torch.bfloat16, torch.float16]


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def thetas(num: int, shape: tuple[int, ...]) -> Tensor:
    """Rotations with scale about the middle, partly past the image."""
    angle, scale = torch.rand(num) * 2 * math.pi, 0.3 + torch.rand(num)
    turn = torch.stack([angle.cos() * scale, -angle.sin() * scale, angle.sin() * scale, angle.cos() * scale], 1).reshape(num, 2, 2)
    middle = torch.tensor([(shape[2] - 1) / 2, (shape[3] - 1) / 2])
    return torch.cat([turn, (middle - turn @ middle + torch.randn(num, 2))[..., None]], dim=2).contiguous()


def blur_args(x: Tensor, out: Tensor, sigma: Tensor, radius: int, scratch: Tensor) -> library.BlurArgs:
    return library.BlurArgs(in_=x.data_ptr(), out=out.data_ptr(), sigma=sigma.data_ptr(), scratch=scratch.data_ptr(), num_samples=x.shape[0],
                            height=x.shape[2], width=x.shape[3], channels=x.shape[1], radius=radius, type=library.OUT_TYPES[x.dtype])


def warp_args(x: Tensor, out: Tensor, theta: Tensor, border: str) -> library.WarpArgs:
    return library.WarpArgs(in_=x.data_ptr(), out=out.data_ptr(), theta=theta.data_ptr(), num_samples=x.shape[0], height=x.shape[2], width=x.shape[3],
                            out_height=out.shape[2], out_width=out.shape[3], channels=x.shape[1], border=BORDERS.index(border),
                            type=library.OUT_TYPES[x.dtype])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(1, 1), (7, 4), (32, 33)])
def test_warp_equals_torchs_sampler_in_float64(shape: tuple[int, ...], border: str, size: tuple[int, int]) -> None:
    x, theta = image(*shape), thetas(shape[0], shape)
    out, truth = ops.warp(x, theta, *size, border), warp_reference(x.double(), theta.double(), *size, border)
    assert out.shape == truth.shape and (out - truth).abs().max() <= 4e-6 * x.abs().max()


def test_quarter_turns_flips_and_whole_shifts_are_exact() -> None:
    x = image(1, 2, 6, 6)
    turned = ops.warp(x, torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 5.0]]]), 6, 6)
    assert torch.equal(turned, torch.rot90(x, 1, dims=(2, 3)))
    assert torch.equal(ops.warp(x, torch.tensor([[[1.0, 0.0, 0.0], [0.0, -1.0, 5.0]]]), 6, 6), x.flip(3))
    assert torch.equal(ops.warp(x, torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]]), 3, 4), x[:, :, 2:5, 1:5])


def test_positions_that_are_no_number_or_far_away_are_past_the_image_and_no_image_at_all_is_no_view() -> None:
    x = image(3, 2, 6, 6)
    theta = torch.tensor([[[1.0, 0.0, math.nan], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, math.inf]], [[1e30, 0.0, 5.0], [0.0, 1.0, -1e30]]])
    assert (ops.warp(x, theta, 5, 5) == 0).all()
    assert all(torch.isfinite(ops.warp(x, theta, 5, 5, border)).all() for border in ("edge", "mirror"))
    assert ops.warp(x[:0], theta[:0], 5, 4).shape == (0, 2, 5, 4) and ops.blur(x[:0], torch.zeros(0), 2).shape == (0, 2, 6, 6)


def test_nan_outside_the_view_stays_outside() -> None:
    x = image(1, 1, 8, 8)
    x[0, 0, 5:] = float("nan")
    assert torch.isfinite(ops.warp(x, torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), 5, 8)).all()


@pytest.mark.parametrize("shape", [(2, 1, 5, 9), (3, 14, 32, 32), (4, 3, 33, 17)])
@pytest.mark.parametrize("radius", [0, 1, 4])
def test_blur_equals_scipy_in_float64(shape: tuple[int, ...], radius: int) -> None:
    x = image(*shape)
    sigma = torch.tensor([0.1, 0.8, 2.0, 0.0])[:shape[0]]
    out = ops.blur(x, sigma, radius)
    for sample, s in enumerate(sigma.tolist()):
        for channel in range(shape[1]):
            flat = x[sample, channel].double().numpy()
            truth = scipy.ndimage.gaussian_filter(flat, s, mode="mirror", radius=radius) if s > 0 else flat
            np.testing.assert_allclose(out[sample, channel].numpy(), truth, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_instruction_set_and_dtype_equals_the_definition(isa: str, dtype: torch.dtype) -> None:
    x = image(3, 14, 19, 23, dtype=dtype).contiguous(memory_format=torch.channels_last)
    theta, sigma = thetas(3, x.shape), torch.tensor([0.5, 1.5, 0.0])
    warped, blurred = torch.full_like(x, float("nan")), torch.full_like(x, float("nan"))
    lib = library.library()
    status = lib.dse_warp_cpu(ctypes.byref(warp_args(x, warped, theta, "mirror")), 2, ISAS[isa])
    if status == 6:
        pytest.skip(f"this CPU has no {isa}")
    assert status == 0 and lib.dse_blur_cpu(ctypes.byref(blur_args(x, blurred, sigma, 3, torch.empty(0))), 2, ISAS[isa]) == 0
    # Half a unit in the last place of the type, and of float32 before it.
    bound = (torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0) + 4e-6
    assert (warped.double() - warp_reference(x.double(), theta.double(), 19, 23, "mirror")).abs().max() <= bound * x.abs().max()
    assert (blurred.double() - blur_reference(x.double(), sigma.double(), 3)).abs().max() <= bound * x.abs().max()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("border", BORDERS)
def test_the_cuda_source_run_on_the_host_equals_the_cpu_op(host_cuda, dtype: torch.dtype, border: str) -> None:
    x = image(2, 3, 9, 11, dtype=dtype).contiguous(memory_format=torch.channels_last)
    theta, sigma = thetas(2, x.shape), torch.tensor([1.2, 0.0])
    lib = host_cuda("warp")
    warped = torch.full((2, 7, 5, 3), float("nan"), dtype=dtype).permute(0, 3, 1, 2)
    assert lib.dse_warp_cuda(ctypes.byref(warp_args(x, warped, theta, border)), None) == 0
    bound = (torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6) * x.abs().max()
    assert (warped.double() - ops.warp(x, theta, 7, 5, border).double()).abs().max() <= bound
    blurred, scratch = torch.full_like(x, float("nan")), torch.empty(x.numel())
    assert lib.dse_blur_cuda(ctypes.byref(blur_args(x, blurred, sigma, 3, scratch)), None) == 0
    assert (blurred.double() - ops.blur(x, sigma, 3).double()).abs().max() <= bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", HALVES)
def test_the_cuda_ops_equal_the_cpu_ops(dtype: torch.dtype) -> None:
    if not ops.build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    x = image(8, 14, 128, 128, dtype=dtype)
    theta, sigma = thetas(8, x.shape), torch.linspace(0, 2, 8)
    bound = (torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6) * x.abs().max()
    assert (ops.warp(x.cuda(), theta.cuda(), 96, 96, "mirror").cpu().double() - ops.warp(x, theta, 96, 96, "mirror").double()).abs().max() <= bound
    assert (ops.blur(x.cuda(), sigma.cuda(), 6).cpu().double() - ops.blur(x, sigma, 6).double()).abs().max() <= bound


def test_the_ops_pass_torchs_own_checks_and_compile_whole() -> None:
    x, theta, sigma = image(2, 3, 8, 8), thetas(2, (2, 3, 8, 8)), torch.tensor([1.0, 0.0])
    torch.library.opcheck(ops.warp, (x, theta, 5, 6, "edge"))
    torch.library.opcheck(ops.blur, (x, sigma, 2))
    compiled = torch.compile(lambda t: ops.blur(ops.warp(t, theta, 8, 8), sigma, 2) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), ops.blur(ops.warp(x, theta, 8, 8), sigma, 2) + 1)


@pytest.mark.parametrize("call, words", [
    (lambda: ops.warp(image(2, 3, 4, 4).double(), thetas(2, (2, 3, 4, 4)), 4, 4), "x is torch.float64"),
    (lambda: ops.warp(image(2, 3, 4, 4), thetas(1, (2, 3, 4, 4)), 4, 4), "theta is torch.float32 (1, 2, 3)"),
    (lambda: ops.warp(image(2, 3, 4, 4), thetas(2, (2, 3, 4, 4)), 0, 4), "height, width are 0, 4"),
    (lambda: ops.warp(image(2, 3, 4, 4), thetas(2, (2, 3, 4, 4)), 4, 4, "wrap"), "legal: zeros, edge, mirror"),
    (lambda: ops.blur(image(2, 3, 4, 4), torch.zeros(2), 4), "legal for images of 4 x 4: 0 to 3"),
    (lambda: ops.blur(image(2, 3, 4, 4), torch.zeros(3), 1), "sigma is torch.float32 (3,)"),
])
def test_illegal_arguments_are_named(call, words: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert words in str(error.value)
