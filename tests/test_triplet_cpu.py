"""The C++ form of the triplet loss against the definition in float64: every instruction set, awkward sizes, layouts, threads."""

import ctypes
import math

import pytest
import torch
from torch import Tensor

from dsengine.errors import UsageError
from dsengine.kernels import triplet
from dsengine.kernels.triplet import cpu, reference
from dsengine.ops import library

ISAS = {"portable": 1, "avx2": 2, "avx512": 3}
SHAPES = [(1, 1), (2, 7), (63, 64), (100, 128), (255, 1), (257, 5), (1000, 7), (2, 512), (3, 5, 2, 3), (2, 130, 8, 8), (1, 3, 1, 1), (7, 512, 1, 2),
          (4, 3, 10, 13)]


@pytest.fixture(autouse=True, params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every call takes this instruction set."""
    if library.library().dse_best_isa() < ISAS[request.param]:
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setattr(library, "BEST_ISA", ISAS[request.param])
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _inputs(shape: tuple[int, ...], count: int, last: bool = False) -> list[Tensor]:
    made = [torch.randn(shape) / shape[1] ** 0.5 for _ in range(count)]
    return [(x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_() for x in made]


def _stock(inputs: list[Tensor], shift: int | None, kind: str, soft: bool) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    loss = reference.triplet(*inputs[:2], inputs[2] if shift is None else inputs[1].roll(shift, 0), 0.5, kind, soft)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def _compare(inputs: list[Tensor], shift: int | None, kind: str, soft: bool) -> None:
    loss, _ = triplet(*inputs, margin=0.5, distance=kind, shift=shift, soft_margin=soft)
    ours = [loss.detach(), *torch.autograd.grad(loss, inputs)]
    for mine, stock, exact in zip(ours, _stock(inputs, shift, kind, soft), _stock([x.double() for x in inputs], shift, kind, soft)):
        # The floor is a few roundings of the distances (up to 40 in L1), whose difference of order 1 is the hinge.
        assert mine.dtype == torch.float32 and mine.shape == exact.shape
        assert (mine - exact).abs().max() <= 2 * (stock - exact).abs().max() + 4e-6 * exact.abs().max()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", reference.DISTANCES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_and_rolled_negatives_are_as_exact_as_stock_torch(shape: tuple[int, ...], kind: str, soft: bool) -> None:
    for last in {False, len(shape) == 4}:
        _compare(_inputs(shape, 3, last), None, kind, soft)
        for shift in {1, shape[0] - 1, shape[0] // 2} if shape[0] > 1 else ():
            _compare(_inputs(shape, 2, last), shift, kind, soft)


def test_strided_and_mixed_layouts_are_read_as_they_are_meant() -> None:
    wide = torch.randn(9, 20)
    _compare([wide[::2, ::3].requires_grad_(), wide[:5, 3:10].requires_grad_()], 2, "euclidean", soft=False)
    a, p, n = _inputs((4, 6, 3, 5), 3)
    last, turned = p.detach().contiguous(memory_format=torch.channels_last), n.detach().mT.contiguous().mT
    _compare([a, last.requires_grad_(), turned.requires_grad_()], None, "l1", soft=False)


@pytest.mark.parametrize("last", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(last: bool) -> None:
    a, p = (x.detach() for x in _inputs((6, 33, 9, 11), 2, last))
    results = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        results.append(cpu.triplet(a, p, a, 0, 4, 0.5, "l1", False, True))
    torch.set_num_threads(1)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other) if x.numel() > 1)


@pytest.mark.parametrize("kind", reference.DISTANCES)
def test_equal_rows_have_no_gradient_and_a_nan_reaches_loss_and_gradient(kind: str) -> None:
    same = torch.ones(4, 3, requires_grad=True)
    loss, active = triplet(same, same.detach().clone(), distance=kind, shift=1)
    assert torch.autograd.grad(loss, same)[0].abs().max() == 0 and active == 1
    rows = torch.randn(4, 3)
    rows[2, 1] = math.nan
    loss, active = triplet(rows.requires_grad_(), same.detach(), distance=kind, shift=1)
    assert loss.isnan() and torch.autograd.grad(loss, rows)[0][2].isnan().any()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_the_operator_passes_torchs_opcheck(gradients: bool, dtype: torch.dtype, last: bool) -> None:
    torch.use_deterministic_algorithms(False)
    a, p, n = (x.detach().to(dtype) for x in _inputs((4, 6, 3, 5), 3, last))
    torch.library.opcheck(cpu.triplet, (a, p, n, 0, 0, 0.5, "l1", False, gradients))
    torch.library.opcheck(cpu.triplet, (a, p, a, 0, 1, 0.5, "euclidean", True, gradients))
    torch.library.opcheck(cpu.triplet, (a[1:3], p, a, 1, 1, 0.5, "squared", True, gradients))


def test_illegal_counts_are_refused_by_the_library() -> None:
    args = library.TripletArgs(rows=4, shift=4, channels=1, cells=1)
    with pytest.raises(UsageError, match="triplet: a count or size is out of range"):
        library.check_status("triplet", library.library().dse_triplet_cpu(ctypes.byref(args), 1, library.BEST_ISA))
