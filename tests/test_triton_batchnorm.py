"""The Triton grouped BatchNorm against float64, no worse than stock torch in the same dtype; see triton_interpreter.py."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from triton_interpreter import DEVICE, assert_as_good_as_stock, needs_kernel, only_here, poisoned, rerun_interpreted  # noqa: E402

from dsengine.kernels.batchnorm import op  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of values that tl.where discards
# Of two numbers the gradient is all cancellation (they become -1 and 1 whatever they are), so the smallest group has eight.
# Rows of a group are named by what they break: 8, 255 and 257 about a tile of 32 rows, 1000 over several parts.
SHAPES = [((4, 1, 1, 2), 4), ((4, 3, 5, 3), 2), ((6, 65, 2, 2), 3), ((4, 64, 9, 7), 4), ((2, 130, 16, 16), 1), ((3, 7, 1, 100), 1),
          ((2, 7, 15, 17), 1), ((1, 64, 1, 257), 1), ((8, 128, 5, 25), 8), ((2, 512, 3, 21), 2)]
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


@needs_kernel
@pytest.mark.parametrize("residual, relu", FORMS)
def test_the_operators_pass_torchs_opcheck(residual: bool, relu: bool) -> None:
    from dsengine.kernels.batchnorm import kernel

    x, weight, bias, other = (None if t is None else t.detach() for t in _inputs((4, 5, 3, 3), torch.float32, residual=residual))
    torch.library.opcheck(kernel.forward, (x, weight, bias, other, 2, 1e-5, relu))
    y, mean, var = kernel.forward(x, weight, bias, other, 2, 1e-5, relu)
    kept = other if relu else None
    torch.library.opcheck(kernel.backward, (torch.randn_like(y), x, weight, bias, kept, mean, var, 2, 1e-5, relu, residual))


@needs_kernel
@pytest.mark.parametrize("residual, relu", FORMS)
def test_it_compiles_without_a_graph_break(residual: bool, relu: bool) -> None:
    inputs = _inputs((4, 5, 3, 3), torch.float32, residual=residual)
    leaves = [t for t in inputs if t is not None]

    def call(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
        return op.batch_norm(x, weight, bias, group=2, residual=other, relu=relu).y

    compiled, plain = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves), call(*leaves)
    assert torch.equal(compiled, plain)
    for got, want in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (compiled, plain))):
        assert torch.equal(got, want)
