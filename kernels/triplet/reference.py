"""Definition of the triplet margin loss and its closed-form gradient.

    h = d(a, p) - d(a, n) + margin,   l = max(0, h),   loss = mean of l over rows (and cells)
    soft margin: l = log(1 + e^h), gradient sigmoid(h) instead of [h > 0]; margin 0 is the usual choice there
    euclidean  d(x, y) = sqrt(sum_c (x_c - y_c)^2 + EPS)      gradient (x - y) / d
    l1         d(x, y) = sum_c sqrt((x_c - y_c)^2 + EPS)      gradient (x_c - y_c) / sqrt((x_c - y_c)^2 + EPS)
    squared    d(x, y) = sum_c (x_c - y_c)^2                  gradient 2 (x - y)

Channels are dim 1 of (B, D) or (B, C, h, w). EPS sits inside the root so that the gradient at x = y is 0, not NaN.
Active is the share of h > 0, whichever the margin. Sources: Jean et al., "Tile2Vec", AAAI 2019, eq. 1; the soft margin:
Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017, section 2; per-cell L1 is how the first paper's CSF evaluates it.
Legend: M is the number of rows times cells; `rows` are this rank's among the global batch of B.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12
DISTANCES = ("euclidean", "l1", "squared")


class Result(NamedTuple):
    """What one pass yields; gradients are of `loss` times the number of ranks (see `rolled`), None where not asked for."""

    loss: Tensor
    active: Tensor
    grad_anchor: Tensor | None = None
    grad_positive: Tensor | None = None
    grad_negative: Tensor | None = None


def distance(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """(B, D, ...) twice -> (B, ...)."""
    square = (x - y).square()
    if kind == "euclidean":
        return (square.sum(1) + EPS).sqrt()
    return (square + EPS).sqrt().sum(1) if kind == "l1" else square.sum(1)


def distance_and_slope(x: Tensor, y: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The distance (B, ...) and its gradient in x (B, D, ...)."""
    diff = x - y
    d = distance(x, y, kind)
    if kind == "euclidean":
        return d, diff / d.unsqueeze(1)
    return d, diff / (diff.square() + EPS).sqrt() if kind == "l1" else 2 * diff


def loss(hinge: Tensor, soft_margin: bool) -> Tensor:
    """l of each triplet."""
    return F.softplus(hinge) if soft_margin else hinge.clamp(min=0)


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, kind: str, soft_margin: bool = False) -> Tensor:
    """The mean loss (): plain autograd-able form, the oracle of everything else here."""
    return loss(distance(anchor, positive, kind) - distance(anchor, negative, kind) + margin, soft_margin).mean()


def value(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, kind: str, soft_margin: bool = False) -> Result:
    """Loss and active fraction alone, for evaluation."""
    hinge = distance(anchor, positive, kind) - distance(anchor, negative, kind) + margin
    return Result(loss(hinge, soft_margin).mean(), _active(hinge).mean())


def given(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, kind: str, soft_margin: bool = False) -> Result:
    """Loss and closed-form gradients for negatives given row by row."""
    d_ap, u_ap = distance_and_slope(anchor, positive, kind)
    d_an, u_an = distance_and_slope(anchor, negative, kind)
    hinge = d_ap - d_an + margin
    active = _active(hinge)
    weight = ((hinge.sigmoid() if soft_margin else active) / hinge.numel()).unsqueeze(1)
    return Result(loss(hinge, soft_margin).mean(), active.mean(), weight * (u_ap - u_an), -weight * u_ap, weight * u_an)


def _active(hinge: Tensor) -> Tensor:
    # "not <= 0" and not "> 0": a NaN must stay active, or one rank's NaN would leave the others' gradients finite.
    return (~(hinge <= 0)).to(hinge.dtype)


def rolled(anchor: Tensor, positive: Tensor, rows: slice, margin: float, kind: str, shift: int,
           soft_margin: bool = False) -> Result:
    """Negative of global row i is positive[i - shift]; returns loss and gradients of this rank's `rows`.

    anchor, positive: the global batch. Row k is also the negative of anchor k + shift, whose owner may be another
    rank: that share is computed here from the gathered values, so no gradient travels. Gradients are scaled by the
    number of ranks, 1 / M_local: their mean over ranks, which is what DDP takes, is the gradient of the global mean.
    """
    own = given(anchor[rows], positive[rows], torch.roll(positive, shift, 0)[rows], margin, kind, soft_margin)
    if anchor.shape[0] == rows.stop - rows.start:
        return own._replace(grad_positive=own.grad_positive + torch.roll(own.grad_negative, -shift, 0), grad_negative=None)
    next_anchor, next_positive = torch.roll(anchor, -shift, 0)[rows], torch.roll(positive, -shift, 0)[rows]
    as_negative = given(next_anchor, next_positive, positive[rows], margin, kind, soft_margin).grad_negative
    return own._replace(grad_positive=own.grad_positive + as_negative, grad_negative=None)
