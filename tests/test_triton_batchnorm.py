"""The Triton grouped BatchNorm against float64, no worse than stock torch in the same dtype; see triton_interpreter.py."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from triton_interpreter import DEVICE, assert_as_good_as_stock, needs_kernel, only_here, poisoned, rerun_interpreted  # noqa: E402

from dsengine.kernels.batchnorm import op, reference  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of values that tl.where discards
# Of two numbers the gradient is all cancellation (they become -1 and 1 whatever they are), so the smallest group has eight.
SHAPES = [((4, 1, 1, 2), 4), ((4, 3, 5, 3), 2), ((6, 65, 2, 2), 3), ((4, 64, 9, 7), 4), ((2, 130, 16, 16), 1), ((3, 7, 1, 100), 1)]
FLOOR = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FORMS = [(False, False), (False, True), (True, False), (True, True)]


@only_here
def test_these_tests_pass_under_the_interpreter() -> None:
    rerun_interpreted(__file__)


@pytest.fixture(params=[DEVICE])
def use_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """CPU tensors take the kernel too: interpreted, it takes them."""
    monkeypatch.setattr(op, "uses_triton", lambda *_: True)
    return request.param


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, *, residual: bool, mean: float = 0.5) -> list[Tensor | None]:
    made = [torch.randn(shape) * 2 + mean, torch.rand(shape[1]) + 0.5, torch.randn(shape[1]), torch.randn(shape) if residual else None]
    kinds = [dtype, torch.float32, torch.float32, dtype]
    return [None if x is None else x.to(DEVICE, kind).requires_grad_() for x, kind in zip(made, kinds)]


def _stock(inputs: list[Tensor | None], seed: Tensor, group: int, relu: bool) -> tuple[Tensor, ...]:
    """Output and gradients of torch's own batch_norm, group by group, in the inputs' dtype."""
    x, weight, bias, residual = (None if t is None else t.detach().requires_grad_() for t in inputs)
    y = torch.cat([torch.nn.functional.batch_norm(part, None, None, weight, bias, True, 0.0, 1e-5) for part in x.split(group)])
    y = y if residual is None else y + residual
    y = y.relu() if relu else y
    wanted = [t for t in (x, weight, bias, residual) if t is not None]
    return y.detach(), *torch.autograd.grad(y, wanted, seed.to(y.dtype))


def _compare(shape: tuple[int, ...], group: int, dtype: torch.dtype, residual: bool, relu: bool, layout: torch.memory_format) -> None:
    inputs = _inputs(shape, dtype, residual=residual)
    seed = torch.randn(shape, device=DEVICE).to(dtype)
    given = [None if t is None else t.detach().contiguous(memory_format=layout if t.ndim == 4 else torch.contiguous_format).requires_grad_()
             for t in inputs]
    with poisoned():
        y, mean, var = op.batch_norm(*given[:3], group=group, residual=given[3], relu=relu)
        grads = torch.autograd.grad(y, [t for t in given if t is not None], seed)
    stock = _stock(inputs, seed, group, relu)
    exact = _stock([None if t is None else t.double() for t in inputs], seed.double(), group, relu)
    assert y.dtype == dtype and mean.shape == var.shape == (shape[0] // group, shape[1]) and not mean.requires_grad
    for name, got, theirs, truth in zip(("y", "x", "weight", "bias", "residual"), (y.detach(), *grads), stock, exact):
        assert_as_good_as_stock(name, got, theirs, truth, times=2, floor=FLOOR[dtype])
    wide = inputs[0].detach().double().unflatten(0, (-1, group))
    assert_as_good_as_stock("mean", mean, mean, wide.mean((1, 3, 4)), times=0, floor=1e-6)
    assert_as_good_as_stock("var", var, var, wide.var((1, 3, 4), correction=0), times=0, floor=1e-6)


@needs_kernel
@pytest.mark.parametrize("shape, group", SHAPES)
@pytest.mark.parametrize("residual, relu", FORMS)
def test_values_and_gradients(shape: tuple[int, ...], group: int, residual: bool, relu: bool) -> None:
    _compare(shape, group, torch.float32, residual, relu, torch.channels_last)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("residual, relu", FORMS)
def test_half_precision(dtype: torch.dtype, residual: bool, relu: bool) -> None:
    _compare((4, 64, 6, 5), 2, dtype, residual, relu, torch.contiguous_format)


@needs_kernel
def test_a_large_mean_costs_no_digits() -> None:
    x = (torch.randn(4, 5, 40, 40, dtype=torch.float64) + 1e4).float().to(DEVICE)
    ones = torch.ones(5, device=DEVICE)
    _, mean, var = op.batch_norm(x, ones, 0 * ones, group=4)
    exact = x.double().var((0, 2, 3), correction=0)
    # A number of 1e4 is 1e-3 coarse in fp32; a sum of squares would be off by about 10.
    assert ((var[0] - exact).abs() / exact).max() < 1e-4 and (mean[0] - x.double().mean((0, 2, 3))).abs().max() < 5e-3


@needs_kernel
def test_two_runs_agree_bit_for_bit_and_groups_do_not_mix() -> None:
    x, weight, bias, residual = (t.detach() for t in _inputs((6, 20, 8, 8), torch.float32, residual=True))
    once = op.batch_norm(x, weight, bias, group=2, residual=residual, relu=True)
    again = op.batch_norm(x, weight, bias, group=2, residual=residual, relu=True)
    alone = op.batch_norm(x[2:4], weight, bias, group=2, residual=residual[2:4], relu=True)
    assert all(torch.equal(a, b) for a, b in zip(once, again))
    assert (once.y[2:4] - alone.y).abs().max() < 1e-6 * once.y.abs().max()


@needs_kernel
def test_nan_reaches_the_output_and_the_statistics() -> None:
    x = torch.randn(2, 3, 4, 4, device=DEVICE)
    x[0, 1, 2, 2] = float("nan")
    ones = torch.ones(3, device=DEVICE)
    y, mean, _ = op.batch_norm(x, ones, ones, group=2, relu=True)
    assert y[:, 1].isnan().all() and mean[0, 1].isnan() and y[:, [0, 2]].isfinite().all()


@only_here
@pytest.mark.parametrize("residual, relu", FORMS)
def test_the_closed_form_gradient_is_that_of_the_definition(residual: bool, relu: bool) -> None:
    x, weight, bias, other = (None if t is None else t.detach().double().cpu().requires_grad_()
                              for t in [torch.randn(4, 3, 5, 2), torch.rand(3) + 0.5, torch.randn(3), torch.randn(4, 3, 5, 2) if residual else None])
    y = reference.batch_norm(x, weight, bias, group=2, eps=1e-5, residual=other, relu=relu).y
    seed = torch.randn_like(y)
    wanted = [t for t in (x, weight, bias, other) if t is not None]
    closed = reference.gradients(seed, *(t.detach() for t in (x, weight, bias)), group=2, eps=1e-5, residual=None if other is None else other.detach(),
                                 relu=relu)
    for got, truth in zip(closed, torch.autograd.grad(y, wanted, seed)):
        assert torch.allclose(got, truth, rtol=1e-10, atol=1e-12)


@only_here
@pytest.mark.parametrize("residual, relu", FORMS)
def test_cpu_tensors_take_torchs_kernel_with_the_same_result(residual: bool, relu: bool) -> None:
    x, weight, bias, other = (None if t is None else t.detach().double().cpu()
                              for t in [torch.randn(4, 3, 5, 2), torch.rand(3) + 0.5, torch.randn(3), torch.randn(4, 3, 5, 2) if residual else None])
    got = op.batch_norm(x, weight, bias, group=2, residual=other, relu=relu)
    truth = reference.batch_norm(x, weight, bias, group=2, eps=1e-5, residual=other, relu=relu)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(got, truth))


@only_here
@pytest.mark.parametrize("change, words", [
    (dict(x=torch.zeros(4, 3)), "x must be"), (dict(group=3), "group must divide the 4 samples"), (dict(weight=torch.ones(2)), "weight must be"),
    (dict(residual=torch.zeros(4, 3, 1, 2)), "residual must be"), (dict(x=torch.zeros(4, 3, 1, 1), group=1), "has no variance")])
def test_illegal_arguments_are_named(change: dict, words: str) -> None:
    arguments = dict(x=torch.zeros(4, 3, 2, 2), weight=torch.ones(3), bias=torch.ones(3), group=2) | change
    with pytest.raises(ValueError, match="batch_norm") as error:
        op.batch_norm(**arguments)
    assert words in str(error.value)
