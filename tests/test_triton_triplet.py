"""The Triton triplet loss against float64, no worse than stock torch in the same dtype; see triton_interpreter.py."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from triton_interpreter import DEVICE, assert_as_good_as_stock, needs_kernel, only_here, poisoned, rerun_interpreted  # noqa: E402

from dsengine.kernels.triplet import op, reference  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of values that tl.where discards
SHAPES = [(1, 1), (2, 7), (63, 64), (100, 128), (255, 1), (257, 5), (1000, 7), (2, 512), (5, 1025), (3, 5, 2, 3), (2, 130, 8, 8), (1, 3, 1, 1),
          (7, 512, 1, 2)]
# About one rounding of the output; in fp32 also a few of the distances (up to 40), whose difference of order 1 is the hinge.
FLOOR = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@only_here
def test_these_tests_pass_under_the_interpreter() -> None:
    rerun_interpreted(__file__)


@pytest.fixture(params=[DEVICE])
def use_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """CPU tensors take the kernel too: interpreted, it takes them."""
    monkeypatch.setattr(op, "uses_triton", lambda *_: True)
    return request.param


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, count: int = 3, last: bool = False) -> list[Tensor]:
    made = [(torch.randn(shape) / shape[1] ** 0.5).to(DEVICE, dtype) for _ in range(count)]
    return [(x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_() for x in made]


def _stock(inputs: list[Tensor], shift: int | None, kind: str, soft: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients by autograd of the plain definition, in the inputs' dtype."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    negative = inputs[2] if shift is None else torch.roll(inputs[1], shift, 0)
    loss = reference.triplet(*inputs[:2], negative, 0.5, kind, soft)
    return loss, torch.autograd.grad(loss, inputs)


def _compare(inputs: list[Tensor], shift: int | None, kind: str, soft: bool) -> None:
    with poisoned():
        loss, active = op.triplet(*inputs[:2], None if shift else inputs[2], margin=0.5, distance=kind, shift=shift, soft_margin=soft)
        grads = torch.autograd.grad(loss, inputs)
        with torch.no_grad():
            alone = op.triplet(*inputs[:2], None if shift else inputs[2], margin=0.5, distance=kind, shift=shift, soft_margin=soft)
    dtype = inputs[0].dtype
    stock, stock_grads = _stock(inputs, shift, kind, soft)
    exact, exact_grads = _stock([x.double() for x in inputs], shift, kind, soft)
    assert loss.dtype == torch.float32 and torch.equal(loss, alone[0]) and torch.equal(active, alone[1])
    assert_as_good_as_stock("loss", loss, stock, exact, times=2, floor=FLOOR[torch.float32])
    for name, x, *found in zip(("anchor", "positive", "negative"), inputs, grads, stock_grads, exact_grads):
        assert found[0].dtype == dtype and found[0].shape == x.shape
        assert_as_good_as_stock(f"gradient of {name}", *found, times=3, floor=FLOOR[dtype])


@needs_kernel
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", reference.DISTANCES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_negatives_are_as_exact_as_stock_torch(shape: tuple[int, ...], kind: str, soft: bool) -> None:
    _compare(_inputs(shape, torch.float32), None, kind, soft)


@needs_kernel
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", reference.DISTANCES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > 1], ids=str)
def test_rolled_negatives_are_as_exact_as_stock_torch(shape: tuple[int, ...], kind: str, last: bool) -> None:
    for shift in {1, shape[0] - 1, -1, shape[0] + shape[0] // 2}:
        if shift % shape[0]:
            _compare(_inputs(shape, torch.float32, 2, last and len(shape) == 4), shift, kind, soft=last)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", reference.DISTANCES)
def test_low_precision_is_as_exact_as_stock_torch(dtype: torch.dtype, kind: str) -> None:
    _compare(_inputs((63, 100), dtype), None, kind, soft=False)
    _compare(_inputs((6, 37, 3, 5), dtype, 2, last=True), 4, kind, soft=True)


@needs_kernel
def test_mixed_and_strided_layouts_are_brought_to_the_anchors() -> None:
    a, p, n = (x.detach() for x in _inputs((4, 6, 3, 5), torch.float32))
    p = p.contiguous(memory_format=torch.channels_last)
    n = torch.stack([n, n], -1)[..., 0].requires_grad_()
    wide = torch.randn(9, 20, device=DEVICE)
    _compare([a.requires_grad_(), p.requires_grad_(), n], None, "l1", soft=False)
    _compare([wide[::2, ::3].requires_grad_(), wide[:5, 3:10].requires_grad_()], 2, "euclidean", soft=False)


@needs_kernel
@pytest.mark.parametrize("shape", [(12, 7), (12, 3, 2, 2)], ids=str)
def test_rows_of_several_ranks_make_up_the_gradient_of_the_global_batch(shape: tuple[int, ...]) -> None:
    from dsengine.kernels.triplet import kernel

    a, p = (x.detach() for x in _inputs(shape, torch.float32, 2))
    exact = reference.rolled(a.double(), p.double(), slice(0, 12), 0.5, "euclidean", 5)
    for ranks in (1, 2, 3, 4):
        own = 12 // ranks
        parts = [kernel.triplet(a[r * own:(r + 1) * own], p, a, r * own, 5, 0.5, "euclidean", False, True) for r in range(ranks)]
        scale = shape[1] / a.numel()
        assert torch.allclose(torch.stack([part[0] for part in parts]).mean().double(), exact.loss, rtol=1e-6)
        assert torch.allclose(torch.cat([part[2] for part in parts]).double() * scale, exact.grad_anchor, atol=1e-7)
        assert torch.allclose(torch.cat([part[3] for part in parts]).double() * scale, exact.grad_positive, atol=1e-7)


@needs_kernel
@pytest.mark.parametrize("kind", reference.DISTANCES)
def test_equal_rows_have_a_zero_gradient_and_a_nan_reaches_loss_and_gradient(kind: str) -> None:
    same = torch.ones(4, 3, device=DEVICE, requires_grad=True)
    loss, active = op.triplet(same, same.detach().clone(), margin=1.0, distance=kind, shift=1)
    assert torch.autograd.grad(loss, same)[0].abs().max() == 0 and active == 1
    poisoned_row = torch.randn(4, 3, device=DEVICE)
    poisoned_row[2, 1] = float("nan")
    loss, _ = op.triplet(poisoned_row.requires_grad_(), same.detach(), 2 * same.detach(), distance=kind)
    assert loss.isnan() and torch.autograd.grad(loss, poisoned_row)[0][2].isnan().any()


@needs_kernel
def test_small_soft_losses_are_not_rounded_to_zero() -> None:
    a = torch.zeros(2, 1, device=DEVICE)
    loss, _ = op.triplet(a, a, a + 20, margin=0.0, distance="l1", soft_margin=True)
    assert abs(loss.item() / 2.0611536e-9 - 1) < 1e-5


@needs_kernel
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_operator_passes_torchs_opcheck(gradients: bool, last: bool) -> None:
    from dsengine.kernels.triplet import kernel

    a, p, n = (x.detach() for x in _inputs((4, 6, 3, 5), torch.float32, last=last))
    torch.library.opcheck(kernel.triplet, (a, p, n, 0, 0, 0.5, "l1", False, gradients))
    torch.library.opcheck(kernel.triplet, (a, p, a, 0, 1, 0.5, "euclidean", True, gradients))


@needs_kernel
@pytest.mark.parametrize("grad", [False, True])
def test_it_compiles_without_a_graph_break_and_twice_gives_the_same_bits(grad: bool) -> None:
    inputs = [x.requires_grad_(grad) for x in (y.detach() for y in _inputs((8, 16), torch.float32))]
    compiled = torch.compile(op.triplet, fullgraph=True, backend="aot_eager")
    results = [form(*inputs) for form in (compiled, op.triplet, op.triplet)]
    for loss, active in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(active, results[0][1])
    if grad:
        first, *others = [torch.autograd.grad(loss, inputs) for loss, _ in results]
        assert all(torch.equal(x, y) for other in others for x, y in zip(first, other))
