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
from torch import Tensor

EPS = 1e-12
_BLOCK_ELEMENTS = 1 << 17  # half a megabyte in fp32, and enough for torch to use several threads
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


def distance_and_slope(x: Tensor, y: Tensor, kind: str, slope: Tensor, scratch: Tensor) -> Tensor:
    """The distance (B, ...); its gradient in x goes to `slope`, `scratch` is overwritten, both (B, D, ...)."""
    torch.sub(x, y, out=slope)
    torch.addcmul(slope.new_tensor(EPS if kind == "l1" else 0.0), slope, slope, out=scratch)
    if kind == "l1":
        slope.div_(scratch.sqrt_())
    d = scratch.sum(1)
    if kind == "euclidean":
        d.add_(EPS).sqrt_()
        slope.div_(d.unsqueeze(1))
    elif kind == "squared":
        slope.mul_(2)
    return d


def loss(hinge: Tensor, soft_margin: bool) -> Tensor:
    """l of each triplet."""
    # F.softplus is cut off at 20, where sigmoid, the gradient below, is not yet 1.
    return torch.logaddexp(hinge, hinge.new_zeros(())) if soft_margin else hinge.clamp(min=0)


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, kind: str, soft_margin: bool = False) -> Tensor:
    """The mean loss (): plain autograd-able form, the oracle of everything else here."""
    return loss(distance(anchor, positive, kind) - distance(anchor, negative, kind) + margin, soft_margin).mean()


def value(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, kind: str, soft_margin: bool = False) -> Result:
    """Loss and active fraction alone, for evaluation."""
    hinge = distance(anchor, positive, kind) - distance(anchor, negative, kind) + margin
    return Result(loss(hinge, soft_margin).mean(), active(hinge).mean())


def given(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, kind: str, soft_margin: bool = False) -> Result:
    """Loss and closed-form gradients for negatives given row by row."""
    blocks = [_Block(i, i, count, True, True) for i, count in _split(anchor, 0, anchor.shape[0])]
    grads = torch.empty_like(anchor), torch.empty_like(positive), torch.empty_like(negative)
    return Result(*_walk(anchor, positive, negative, blocks, grads, margin, kind, soft_margin), *grads)


def rolled(anchor: Tensor, positive: Tensor, rows: slice, margin: float, kind: str, shift: int,
           soft_margin: bool = False) -> Result:
    """Negative of global row i is positive[i - shift]; returns loss and gradients of this rank's `rows`.

    anchor, positive: the global batch. Row k is also the negative of anchor k + shift, whose owner may be another
    rank: that share is computed here from the gathered values, so no gradient travels. Gradients are scaled by the
    number of ranks, 1 / M_local: their mean over ranks, which is what DDP takes, is the gradient of the global mean.
    """
    if anchor.shape[0] == rows.stop - rows.start:
        grads = torch.empty_like(anchor), torch.empty_like(positive)
        blocks = _rolled_blocks(anchor, shift % anchor.shape[0])
        return Result(*_walk(anchor, positive, positive, blocks, (*grads, grads[1]), margin, kind, soft_margin), *grads)
    own = given(anchor[rows], positive[rows], torch.roll(positive, shift, 0)[rows], margin, kind, soft_margin)
    next_anchor, next_positive = torch.roll(anchor, -shift, 0)[rows], torch.roll(positive, -shift, 0)[rows]
    as_negative = given(next_anchor, next_positive, positive[rows], margin, kind, soft_margin).grad_negative
    return own._replace(grad_positive=own.grad_positive + as_negative, grad_negative=None)


class _Block(NamedTuple):
    """Rows i .. i + count, whose negatives are rows j .. j + count; whether their gradients hold nothing yet."""

    i: int
    j: int
    count: int
    positive_is_new: bool
    negative_is_new: bool


def _walk(anchor: Tensor, positive: Tensor, negative: Tensor, blocks: list[_Block], grads: tuple[Tensor, Tensor, Tensor],
          margin: float, kind: str, soft_margin: bool) -> tuple[Tensor, Tensor]:
    """Writes the gradients of anchor, positive and negative; returns loss and active fraction.

    Blocks stay in the processor's cache, where whole tensors go through memory for every operation: 3 to 4 times
    faster on (128, 512, 8, 8). The buffers are taken once: memory fresh from the system is mapped page by page.
    """
    buffers = [torch.empty_like(anchor[:max(block.count for block in blocks)]) for _ in range(3)]
    hinges = []
    for i, j, count, positive_is_new, negative_is_new in blocks:
        a, p, n = anchor[i:i + count], positive[i:i + count], negative[j:j + count]
        u_ap, u_an, scratch = (buffer[:count] for buffer in buffers)
        d_ap = distance_and_slope(a, p, kind, u_ap, scratch)
        hinge = d_ap - distance_and_slope(a, n, kind, u_an, scratch) + margin
        weight = hinge.sigmoid() if soft_margin else active(hinge)
        weight = (weight / (anchor.numel() // anchor.shape[1])).unsqueeze(1)
        own = grads[1][i:i + count], u_ap, -weight, positive_is_new
        other = grads[2][j:j + count], u_an, weight, negative_is_new
        # Rolled, i and j may overlap: what is new must be written before anything is added to it.
        for share in ((other, own) if negative_is_new else (own, other)):
            _put(*share)
        torch.mul(u_ap.sub_(u_an), weight, out=grads[0][i:i + count])
        hinges.append(hinge)
    hinge = torch.cat(hinges)
    return loss(hinge, soft_margin).mean(), active(hinge).mean()


def _put(target: Tensor, slope: Tensor, weight: Tensor, is_new: bool) -> None:
    if is_new:
        torch.mul(slope, weight, out=target)
    else:
        target.addcmul_(slope, weight)


def _split(x: Tensor, start: int, stop: int) -> list[tuple[int, int]]:
    """(first row, count) of blocks of rows start .. stop that fit the cache."""
    most = max(1, _BLOCK_ELEMENTS // x[0].numel())
    return [(i, min(most, stop - i)) for i in range(start, stop, most)]


def _rolled_blocks(x: Tensor, shift: int) -> list[_Block]:
    """Cut where the negatives wrap around, and where rows begin that were a negative before it was their turn."""
    rows = x.shape[0]
    cuts = sorted({0, shift, rows - shift, rows})
    return [_Block(i, (i - shift) % rows, count, i < rows - shift, i < shift)
            for start, stop in zip(cuts, cuts[1:]) for i, count in _split(x, start, stop)]


def active(hinge: Tensor) -> Tensor:
    """1 where the hinge is open, else 0."""
    # "not <= 0" and not "> 0": a NaN must stay active, or one rank's NaN would leave the others' gradients finite.
    return (~(hinge <= 0)).to(hinge.dtype)
