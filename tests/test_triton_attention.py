"""The Triton attention block against float64, no worse than stock torch in the same dtype; see triton_interpreter.py."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from triton_interpreter import DEVICE, assert_as_good_as_stock, needs_kernel, only_here, poisoned, rerun_interpreted  # noqa: E402

from dsengine.kernels.attention import op  # noqa: E402

# (B, N, Dk, Dv): sizes that break tiles, several tiles of each, both blocks of the encoder.
SHAPES = [(1, 1, 1, 1), (3, 2, 7, 5), (2, 63, 8, 100), (1, 64, 64, 512), (2, 65, 17, 33), (1, 100, 70, 20), (1, 129, 3, 257), (1, 255, 7, 128),
          (1, 256, 32, 256), (1, 257, 1, 1), (1, 1000, 5, 7)]
NAMES = ("q", "k", "v", "x", "gamma")
FLOOR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # about two roundings of the largest value


@only_here
def test_these_tests_pass_under_the_interpreter() -> None:
    rerun_interpreted(__file__)


@pytest.fixture(params=[DEVICE])
def use_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """CPU tensors take the kernel too: interpreted, it takes them."""
    monkeypatch.setattr(op, "uses_triton", lambda *_: True)
    return request.param


def _inputs(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, gamma: float = 0.7) -> list[Tensor]:
    B, N, Dk, Dv = shape
    made = [torch.randn(B, N, Dk), torch.randn(B, N, Dk) / Dk ** 0.5, torch.randn(B, N, Dv), torch.randn(B, N, Dv)]
    return [x.to(DEVICE, dtype).requires_grad_() for x in (*made, torch.tensor(gamma))]


def _stock(inputs: list[Tensor], grad_y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients by autograd of the definition, in the inputs' dtype."""
    q, k, v, x, gamma = inputs = [x.detach().requires_grad_() for x in inputs]
    y = gamma * (torch.softmax(q @ k.mT, -1) @ v) + x
    return y, torch.autograd.grad(y, inputs, grad_y.to(y.dtype))


def _compare(inputs: list[Tensor]) -> None:
    grad_y = torch.randn_like(inputs[3])
    with poisoned():
        y = op.attention(*inputs)
        grads = torch.autograd.grad(y, inputs, grad_y)
        with torch.no_grad():
            assert torch.equal(op.attention(*inputs), y)
    dtype = inputs[0].dtype
    stock, stock_grads = _stock(inputs, grad_y)
    exact, exact_grads = _stock([x.double() for x in inputs], grad_y)
    assert y.dtype == dtype
    assert_as_good_as_stock("y", y, stock, exact, times=2, floor=FLOOR[dtype])
    for name, x, *found in zip(NAMES, inputs, grads, stock_grads, exact_grads):
        assert found[0].dtype == x.dtype
        assert_as_good_as_stock(f"gradient of {name}", *found, times=3, floor=FLOOR[dtype])


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_as_exact_as_stock_torch(shape: tuple[int, int, int, int]) -> None:
    _compare(_inputs(shape))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 37, 8, 24), (1, 64, 64, 512), (2, 130, 20, 40), (1, 256, 32, 256)], ids=str)
def test_low_precision_is_as_exact_as_stock_torch(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    _compare(_inputs(shape, dtype))


@needs_kernel
@pytest.mark.parametrize("shape", [(2, 16, 33, 50), (2, 40, 17, 33)], ids=str)
def test_small_tiles_give_the_same(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int]) -> None:
    from dsengine.kernels.attention import kernel

    monkeypatch.setattr(kernel, "_blocks", lambda *_: kernel.Blocks(16, 16, 16, 4, 1))
    _compare(_inputs(shape))


@needs_kernel
@pytest.mark.parametrize("N", [9, 70])
def test_gamma_zero_is_the_identity_and_gamma_still_learns(N: int) -> None:
    inputs = _inputs((2, N, 4, 6), gamma=0.0)
    y = op.attention(*inputs)
    assert torch.equal(y, inputs[3])
    assert torch.autograd.grad(y.square().sum(), inputs[4])[0].abs() > 0
    _compare(inputs)


@needs_kernel
@pytest.mark.parametrize("N", [20, 80])
def test_slices_of_one_product_and_other_strides_are_read_in_place_or_copied(N: int) -> None:
    joint = torch.randn(3, N, 8 + 8 + 12, device=DEVICE)
    q, k, v = joint.split([8, 8, 12], -1)
    x, gamma = torch.randn(3, N, 12, device=DEVICE), torch.tensor([0.5], device=DEVICE)
    _compare([t.detach().requires_grad_() for t in (q, k, v, x, gamma)])
    turned = [torch.randn(3, t.shape[2], N, device=DEVICE).mT for t in (q, k, v)]
    spread = torch.randn(1, 1, 12, device=DEVICE).expand(3, N, 12)
    _compare([t.detach().requires_grad_() for t in (*turned, spread, gamma)])


@needs_kernel
@pytest.mark.parametrize("N", [33, 200])
def test_large_scores_neither_overflow_nor_lose_the_row(N: int) -> None:
    q, k, v, x, gamma = _inputs((1, N, 4, 8))
    _compare([(200 * q).detach().requires_grad_(), k, v, x, gamma])


@needs_kernel
def test_a_wider_x_and_gamma_keep_their_dtypes() -> None:
    q, k, v, _, _ = _inputs((2, 5, 4, 6), torch.bfloat16)
    _, _, _, x, gamma = inputs = _inputs((2, 5, 4, 6))
    y = op.attention(q, k, v, x, gamma)
    grads = torch.autograd.grad(y.sum(), (q, k, v, x, gamma))
    assert y.dtype == torch.float32
    assert [g.dtype for g in grads] == [torch.bfloat16] * 3 + [torch.float32] * 2
    exact, _ = _stock([t.double() for t in (q, k, v, x, gamma)], torch.ones_like(x))
    assert (y - exact).abs().max() < 0.02 and len(inputs) == 5


@needs_kernel
@pytest.mark.parametrize("N", [6, 70])
def test_the_operators_pass_torchs_opcheck(N: int) -> None:
    from dsengine.kernels.attention import launch

    q, k, v, x, gamma = (t.detach() for t in _inputs((2, N, 5, 9)))
    torch.library.opcheck(launch.forward, (q, k, v, x, gamma))
    y, rows = launch.forward(q, k, v, x, gamma)
    torch.library.opcheck(launch.backward, (torch.randn_like(y), q, k, v, gamma, rows))


@needs_kernel
@pytest.mark.parametrize("N", [6, 70])
def test_it_compiles_without_a_graph_break_and_twice_gives_the_same_bits(N: int) -> None:
    inputs = _inputs((2, N, 5, 9))
    compiled = torch.compile(op.attention, fullgraph=True, backend="aot_eager")
    results = [form(*inputs) for form in (compiled, op.attention, op.attention)]
    first, *others = [(y, *torch.autograd.grad(y.square().sum(), inputs)) for y in results]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))
