"""Triplet loss on CPU: the soft margin, rows in blocks, evaluation without gradients, compiled."""

import pytest
import torch
from torch import Tensor

from dsengine.kernels import triplet
from dsengine.kernels.triplet import op, reference


def _inputs(shape: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def _assert_grads_match(loss: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    assert torch.allclose(loss, expected, rtol=1e-12)
    for got, want in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 1), (7, 5), (5, 4, 2, 3)])
@pytest.mark.parametrize("kind", reference.DISTANCES)
def test_the_soft_margin_matches_autograd_of_the_definition(shape: tuple[int, ...], kind: str) -> None:
    a, p, n = inputs = _inputs(shape)
    loss, active = triplet(a, p, n, margin=0.2, distance=kind, soft_margin=True)
    _assert_grads_match(loss, reference.triplet(a, p, n, 0.2, kind, True), inputs)
    assert active == triplet(a, p, n, margin=0.2, distance=kind)[1]
    loss, _ = triplet(a, p, margin=0.2, distance=kind, soft_margin=True, shift=1)
    _assert_grads_match(loss, reference.triplet(a, p, torch.roll(p, 1, 0), 0.2, kind, True), [a, p])


@pytest.mark.parametrize("soft_margin", [False, True])
@pytest.mark.parametrize("kind", reference.DISTANCES)
@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 1, 2)])
def test_the_definition_and_the_op_pass_gradcheck(shape: tuple[int, ...], kind: str, soft_margin: bool) -> None:
    inputs = _inputs(shape)
    assert torch.autograd.gradcheck(lambda a, p, n: reference.triplet(a, p, n, 0.5, kind, soft_margin), inputs)
    assert torch.autograd.gradcheck(lambda a, p, n: triplet(a, p, n, 0.5, kind, soft_margin=soft_margin)[0], inputs)
    assert torch.autograd.gradcheck(lambda a, p: triplet(a, p, None, 0.5, kind, 1, soft_margin=soft_margin)[0], inputs[:2])


@pytest.mark.parametrize("rows_per_block", [1, 2, 3, 100])
@pytest.mark.parametrize("rows", range(2, 9))
def test_blocks_of_rows_do_not_change_the_gradient_whatever_the_shift(monkeypatch: pytest.MonkeyPatch, rows: int,
                                                                     rows_per_block: int) -> None:
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", 3 * rows_per_block)
    a, p, n = inputs = _inputs((rows, 3))
    _assert_grads_match(triplet(a, p, n)[0], reference.triplet(a, p, n, 1.0, "euclidean"), inputs)
    for shift in range(1, rows):
        loss, _ = triplet(a, p, shift=shift)
        _assert_grads_match(loss, reference.triplet(a, p, torch.roll(p, shift, 0), 1.0, "euclidean"), [a, p])


@pytest.mark.parametrize("form", ["no_grad", "detached"])
@pytest.mark.parametrize("arguments", [dict(shift=2), dict(), dict(soft_margin=True)])
def test_where_no_gradient_is_wanted_none_is_computed(monkeypatch: pytest.MonkeyPatch, form: str, arguments: dict) -> None:
    inputs = _inputs((6, 4))[:2 if "shift" in arguments else 3]
    expected = [x.detach() for x in triplet(*inputs, **arguments)]
    monkeypatch.setattr(op, "_gradients", None)
    with torch.set_grad_enabled(form == "detached"):
        got = triplet(*(x.detach() if form == "detached" else x for x in inputs), **arguments)
    assert all(torch.allclose(g, e, rtol=1e-14) and not g.requires_grad for g, e in zip(got, expected))


def test_gradients_scale_with_what_comes_in_and_a_second_backward_repeats_the_first() -> None:
    a, p, n = inputs = _inputs((6, 4))
    loss, _ = triplet(a, p, n)
    first = [g.clone() for g in torch.autograd.grad(loss, inputs, retain_graph=True)]
    loss.backward(retain_graph=True)
    a.grad.zero_()  # what a leaf was given must not be what the graph has kept
    again = torch.autograd.grad(3 * loss, inputs)
    assert all(torch.allclose(g, 3 * f, rtol=1e-14) for g, f in zip(again, first))


@pytest.mark.parametrize("shape", [(8, 16), (6, 4, 3, 3)])
@pytest.mark.parametrize("shift", [None, 2])
def test_it_compiles_without_a_graph_break(shape: tuple[int, ...], shift: int | None) -> None:
    inputs = [x.detach().float().requires_grad_() for x in _inputs(shape)][:2 if shift else 3]
    compiled = torch.compile(triplet, fullgraph=True, backend="aot_eager")
    losses = [form(*inputs, shift=shift)[0] for form in (compiled, triplet)]
    assert torch.equal(*losses)
    for got, want in zip(*(torch.autograd.grad(loss, inputs) for loss in losses)):
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"anchor must not be empty, got \(0, 3\)"):
        triplet(torch.ones(0, 3), torch.ones(0, 3), torch.ones(0, 3))
