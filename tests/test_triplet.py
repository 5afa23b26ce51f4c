"""Triplet loss: the closed-form gradient against autograd of the plain definition, in float64."""

import pytest
import torch
import torch.nn.functional as F

from dsengine.kernels import triplet
from dsengine.kernels.triplet import reference

SHAPES = [(2, 1), (7, 5), (16, 33), (3, 5, 2, 3), (8, 4, 1, 1)]


def _inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", reference.DISTANCES)
def test_given_negatives_match_autograd_of_the_definition(shape: tuple[int, ...], kind: str) -> None:
    a, p, n = _inputs(shape)
    loss, active = triplet(a, p, n, margin=0.5, distance=kind)
    expected = reference.triplet(a, p, n, 0.5, kind)
    got = torch.autograd.grad(loss, (a, p, n))
    want = torch.autograd.grad(expected, (a, p, n))
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0)
    assert 0 < active <= 1
    for g, w in zip(got, want):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", reference.DISTANCES)
def test_rolled_negatives_match_autograd_through_the_roll(shape: tuple[int, ...], kind: str) -> None:
    a, p, _ = _inputs(shape)
    for shift in {1, shape[0] - 1, -1, shape[0] + 1}:
        if shift % shape[0] == 0:
            continue
        loss, _ = triplet(a, p, margin=0.5, distance=kind, shift=shift)
        expected = reference.triplet(a, p, torch.roll(p, shift, 0), 0.5, kind)
        assert torch.allclose(loss, expected, rtol=1e-12, atol=0)
        for g, w in zip(torch.autograd.grad(loss, (a, p)), torch.autograd.grad(expected, (a, p))):
            assert torch.allclose(g, w, rtol=1e-10, atol=1e-14)


def test_euclidean_equals_torch_triplet_margin_loss() -> None:
    a, p, n = _inputs((32, 16))
    loss, _ = triplet(a, p, n, margin=1.0)
    # torch adds its eps to the difference, not inside the root: agreement to that eps.
    assert torch.allclose(loss, F.triplet_margin_loss(a, p, n, margin=1.0, eps=0.0), rtol=1e-10)


def test_rows_of_several_ranks_make_up_the_gradient_of_the_global_batch() -> None:
    a, p = (x.detach() for x in _inputs((12, 5))[:2])
    whole = reference.rolled(a, p, slice(0, 12), 0.5, "euclidean", 5)
    for ranks in (2, 3, 4):
        own = 12 // ranks
        parts = [reference.rolled(a, p, slice(r * own, (r + 1) * own), 0.5, "euclidean", 5) for r in range(ranks)]
        assert torch.allclose(torch.stack([part.loss for part in parts]).mean(), whole.loss, rtol=1e-12)
        for name in ("grad_anchor", "grad_positive"):
            # Mean over ranks is what DDP takes, so each rank's rows carry a factor of `ranks`.
            joined = torch.cat([getattr(part, name) for part in parts]) / ranks
            assert torch.allclose(joined, getattr(whole, name), rtol=1e-12, atol=1e-16), name


def test_equal_rows_have_a_zero_gradient_and_not_a_nan() -> None:
    a = torch.ones(4, 3, requires_grad=True)
    for kind in reference.DISTANCES:
        loss, active = triplet(a, a.detach().clone().requires_grad_(), margin=1.0, distance=kind, shift=1)
        (grad,) = torch.autograd.grad(loss, a)
        assert torch.isfinite(grad).all() and grad.abs().max() == 0, kind
        assert active == 1


def test_a_nan_row_reaches_loss_and_gradient() -> None:
    a, p, n = _inputs((4, 3))
    poisoned = a.detach().clone()
    poisoned[2, 1] = float("nan")
    poisoned.requires_grad_()
    loss, _ = triplet(poisoned, p, n)
    assert torch.isnan(loss)
    assert torch.isnan(torch.autograd.grad(loss, poisoned)[0][2]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_fp32_also_under_autocast(dtype: torch.dtype) -> None:
    a, p, n = (x.detach().to(dtype).requires_grad_() for x in _inputs((16, 64)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = triplet(a, p, n)
    exact = reference.triplet(a.double(), p.double(), n.double(), 1.0, "euclidean")
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 1e-5 * exact.item()
    assert torch.autograd.grad(loss, a)[0].dtype == dtype


def test_inactive_triplets_have_no_gradient() -> None:
    a = torch.zeros(2, 2, requires_grad=True)
    p, n = torch.zeros(2, 2), torch.full((2, 2), 10.0)
    loss, active = triplet(a, p, n, margin=1.0)
    assert loss == 0 and active == 0 and torch.autograd.grad(loss, a)[0].abs().max() == 0


@pytest.mark.parametrize("change, message", [
    (dict(positive=torch.ones(4, 2)), r"positive must be \(4, 3\) like anchor, got \(4, 2\)"),
    (dict(negative=torch.ones(5, 3), shift=None), r"negative must be \(4, 3\)"),
    (dict(anchor=torch.ones(4, 3, 2)), r"anchor must be \(B, D\) or \(B, C, h, w\)"),
    (dict(distance="cosine"), "'cosine' is unknown; legal: euclidean, l1, squared"),
    (dict(shift=None), "either negative or shift"),
    (dict(shift=8), "must not be 0 modulo the global batch of 4, got 8"),
])
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    good = dict(anchor=torch.ones(4, 3), positive=torch.ones(4, 3), shift=1)
    with pytest.raises(ValueError, match=message):
        triplet(**{**good, **change})
