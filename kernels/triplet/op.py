"""Public triplet loss: checks, gather across ranks, and the autograd node around the reference."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributed import ProcessGroup

from dsengine.dist import gather_rows, rank_in
from dsengine.kernels.triplet import reference


class _Triplet(torch.autograd.Function):
    """Gradients are written in the forward pass, where the distances are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchor: Tensor, positive: Tensor, negative: Tensor | None, margin: float, kind: str,
                shift: int | None, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
        a, p = _at_least_fp32(anchor), _at_least_fp32(positive)
        if negative is not None:
            result = reference.given(a, p, _at_least_fp32(negative), margin, kind)
        else:
            start = rank_in(group) * a.shape[0]
            rows = slice(start, start + a.shape[0])
            result = reference.rolled(gather_rows(a, group), gather_rows(p, group), rows, margin, kind, shift)
        ctx.save_for_backward(*result[2:])
        ctx.dtypes = anchor.dtype, positive.dtype, None if negative is None else negative.dtype
        ctx.mark_non_differentiable(result.active)
        return result.loss, result.active

    @staticmethod
    def backward(ctx: FunctionCtx, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        grads = (None if g is None else (grad_loss * g).to(t) for g, t in zip(ctx.saved_tensors, ctx.dtypes))
        return *grads, None, None, None, None


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor | None = None, margin: float = 1.0,
            distance: str = "euclidean", shift: int | None = None,
            group: ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Triplet margin loss (definition in `reference.py`), pooled or per cell.

    anchor, positive, negative: (B, D) or (B, C, h, w), equal shapes, any float dtype; computed in at least fp32.
    margin: in units of the distance. distance: "euclidean", "l1" (smoothed) or "squared".
    shift: without `negative`, the negative of global row i is positive[i - shift]; never 0 modulo the global batch.
    group: ranks whose rows make up the global batch, equal B each; None is this process alone.
    Returns (loss (), fraction of active triplets ()), both means over this rank's rows; gradients averaged over
    ranks are those of the mean over the global batch. Raises ValueError naming the argument.
    """
    _check(anchor, positive, negative, distance, shift, group)
    with torch.autocast(anchor.device.type, enabled=False):
        return _Triplet.apply(anchor, positive, negative, float(margin), distance, shift, group)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(anchor: Tensor, positive: Tensor, negative: Tensor | None, distance: str, shift: int | None,
           group: ProcessGroup | None) -> None:
    if anchor.ndim not in (2, 4):
        raise ValueError(f"triplet: anchor must be (B, D) or (B, C, h, w), got {tuple(anchor.shape)}")
    for name, x in (("positive", positive), ("negative", negative)):
        if x is not None and x.shape != anchor.shape:
            raise ValueError(f"triplet: {name} must be {tuple(anchor.shape)} like anchor, got {tuple(x.shape)}")
    if distance not in reference.DISTANCES:
        raise ValueError(f"triplet: distance {distance!r} is unknown; legal: {', '.join(reference.DISTANCES)}")
    if (negative is None) == (shift is None):
        raise ValueError("triplet: give either negative or shift, and not both")
    rows = anchor.shape[0] * (1 if group is None else group.size())
    if shift is not None and shift % rows == 0:
        raise ValueError(f"triplet: shift must not be 0 modulo the global batch of {rows}, got {shift}: "
                         "a row would be its own negative")
