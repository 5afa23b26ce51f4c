"""The CUDA source: on the host, through a stand-in runtime, its indexing and arithmetic; on a GPU, where there is one."""

import ctypes
from collections.abc import Callable

import pytest
import torch

from dsengine import ops
from dsengine.ops import augment_op, library


@pytest.fixture(scope="module")
def host_kernel(host_cuda) -> Callable[..., int]:
    """dse_augment_cuda compiled as C++."""
    run = host_cuda("augment").dse_augment_cuda
    run.argtypes = [ctypes.POINTER(library.AugmentArgs), ctypes.c_void_p, ctypes.c_void_p]
    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_bands, out_channels, size, factor", [
    (1, None, 1, 1), (5, 8, 17, 2), (14, None, 9, 1), (14, 16, 8, 1), (14, 37, 11, 3)])
def test_the_cuda_source_run_on_the_host_equals_the_cpu_op(
        host_kernel, make_sources, make_operator, num_bands, out_channels, size, factor, dtype):
    sources = make_sources(2, patch_size=24, factor=factor, absent=0.1)
    arguments = make_operator(num_bands, num_samples=2, patch_size=24, size=size, factor=factor)
    expected = ops.augment(sources, **arguments, out_channels=out_channels, dtype=dtype)
    out = torch.full_like(expected, float("nan"))
    mean = torch.full((2, 2, num_bands), float("nan"), dtype=torch.float64)
    rest = {key: value for key, value in arguments.items() if key != "size"}
    args = augment_op._arguments(sources, **rest, out=out, nodata=-32768)
    assert host_kernel(ctypes.byref(args), mean.data_ptr(), None) == 0
    # Sums in another order: an ulp or two of the largest, or of the rounded type.
    bound = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert (out.double() - expected.double()).abs().max() <= bound * expected.double().abs().max()


def test_the_largest_operator_fits_the_shared_memory_of_a_launch(host_kernel, make_operator):
    arguments = make_operator(64, num_views=1, num_samples=1, patch_size=3, size=3)
    arguments["bands"] = torch.stack((torch.zeros(64), torch.arange(64), torch.ones(64)), dim=1).to(torch.int32)
    sources = [torch.randint(0, 999, (1, 64, 3, 3), dtype=torch.int16)]
    expected = ops.augment(sources, **arguments)
    out, mean = torch.full_like(expected, float("nan")), torch.empty(1, 1, 64, dtype=torch.float64)
    args = augment_op._arguments(sources, **{k: v for k, v in arguments.items() if k != "size"}, out=out, nodata=-32768)
    assert host_kernel(ctypes.byref(args), mean.data_ptr(), None) == 0
    assert (out - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_bands, out_channels, size, factor", [(1, None, 1, 1), (5, 8, 33, 2), (14, 16, 128, 1), (14, 37, 65, 3)])
def test_the_cuda_op_equals_the_cpu_op(make_sources, make_operator, num_bands, out_channels, size, factor, dtype):
    if not ops.build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    patch_size = (size + 9) // factor * factor + factor
    sources = make_sources(3, patch_size=patch_size, factor=factor, absent=0.1)
    arguments = make_operator(num_bands, patch_size=patch_size, size=size, factor=factor)
    expected = ops.augment(sources, **arguments, out_channels=out_channels, dtype=dtype)
    moved = {key: value.cuda() if torch.is_tensor(value) else value for key, value in arguments.items()}
    out = ops.augment([source.cuda() for source in sources], **moved, out_channels=out_channels, dtype=dtype)
    assert out.is_cuda and out.stride() == expected.stride()
    bound = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert (out.cpu().double() - expected.double()).abs().max() <= bound * expected.double().abs().max()


def test_a_device_without_a_kernel_uses_the_torch_form_and_says_so_once(recwarn):
    library.warn_slow.cache_clear()
    library.warn_slow("augment", "xpu")
    library.warn_slow("augment", "xpu")
    assert len(recwarn) == 1 and "without a kernel for xpu" in str(recwarn[0].message)
