"""Public triplet loss: checks, gather across ranks, and the autograd node around the reference or the kernel."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup

from dsengine.dist import gather_rows, rank_in
from dsengine.kernels.backend import uses_triton
from dsengine.kernels.triplet import reference
from dsengine.kernels.triplet.reference import Result


class _Triplet(torch.autograd.Function):
    """Gradients are written in the forward pass, where the distances are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchor: Tensor, positive: Tensor, negative: Tensor | None, margin: float, kind: str,
                soft_margin: bool, shift: int | None, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
        result, ctx.scale = _gradients(anchor, positive, negative, margin, kind, soft_margin, shift, group)
        ctx.save_for_backward(*result[2:])
        ctx.dtypes = anchor.dtype, positive.dtype, None if negative is None else negative.dtype
        ctx.mark_non_differentiable(result.active)
        return result.loss, result.active

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        scale = grad_loss * ctx.scale
        grads = (None if g is None else _scaled(g, scale).to(t) for g, t in zip(ctx.saved_tensors, ctx.dtypes))
        return *grads, None, None, None, None, None


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor | None = None, margin: float = 1.0,
            distance: str = "euclidean", shift: int | None = None, group: ProcessGroup | None = None, *,
            soft_margin: bool = False) -> tuple[Tensor, Tensor]:
    """Triplet margin loss (definition in `reference.py`), pooled or per cell.

    anchor, positive, negative: (B, D) or (B, C, h, w), equal shapes, any float dtype; computed in at least fp32.
    margin: in units of the distance. distance: "euclidean", "l1" (smoothed) or "squared".
    shift: without `negative`, the negative of global row i is positive[i - shift]; never 0 modulo the global batch.
    group: ranks whose rows make up the global batch, equal B each; None is this process alone.
    soft_margin: log(1 + e^h) of the hinge h = d(a, p) - d(a, n) + margin instead of max(0, h).
    Returns (loss (), fraction of triplets with h > 0 ()), both means over this rank's rows; gradients averaged over
    ranks are those of the mean over the global batch. Where no gradient is wanted, none is computed.
    Raises ValueError naming the argument.
    """
    _check(anchor, positive, negative, distance, shift, group)
    with torch.autocast(anchor.device.type, enabled=False):
        inputs = anchor, positive, negative, float(margin), distance, soft_margin, shift, group
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs[:3]):
            return _Triplet.apply(*inputs)
        result = _value(*inputs)
        return result.loss, result.active


def _gradients(anchor: Tensor, positive: Tensor, negative: Tensor | None, margin: float, kind: str, soft_margin: bool,
               shift: int | None, group: ProcessGroup | None) -> tuple[Result, float]:
    """(loss and gradients, the factor that the gradients still lack)."""
    if negative is not None:
        if uses_triton(anchor, positive, negative):
            return _kernel(anchor, positive, negative, 0, 0, margin, kind, soft_margin, True)
        return reference.given(*map(_at_least_fp32, (anchor, positive, negative)), margin, kind, soft_margin), 1.0
    rows = _own_rows(anchor, group)
    anchors, positives = gather_rows(anchor, group), gather_rows(positive, group)
    if uses_triton(anchor, positive, negative):
        return _kernel(anchor, positives, anchors, rows.start, shift % anchors.shape[0], margin, kind, soft_margin, True)
    return reference.rolled(_at_least_fp32(anchors), _at_least_fp32(positives), rows, margin, kind, shift, soft_margin), 1.0


def _value(anchor: Tensor, positive: Tensor, negative: Tensor | None, margin: float, kind: str, soft_margin: bool,
           shift: int | None, group: ProcessGroup | None) -> Result:
    """Loss and active fraction; anchors need no gather here."""
    rows = _own_rows(anchor, group)
    positives = positive if negative is not None else gather_rows(positive, group)
    if uses_triton(anchor, positive, negative):
        shift = 0 if negative is not None else shift % positives.shape[0]
        return _kernel(anchor, positives, negative, rows.start, shift, margin, kind, soft_margin, False)[0]
    if negative is None:
        negative = torch.roll(positives, shift, 0)[rows]
    return reference.value(*map(_at_least_fp32, (anchor, positive, negative)), margin, kind, soft_margin)


def _kernel(anchor: Tensor, positive: Tensor, other: Tensor | None, start: int, shift: int, margin: float, kind: str,
            soft_margin: bool, gradients: bool) -> tuple[Result, float]:
    from dsengine.kernels.triplet import kernel

    loss, active, *grads = kernel.triplet(anchor, positive, other, start, shift, margin, kind, soft_margin, gradients)
    scale = anchor.shape[1] / anchor.numel()  # the kernel's gradients are of the sum over positions
    return Result(loss, active, *(g if g.numel() else None for g in grads)), scale


def _own_rows(anchor: Tensor, group: ProcessGroup | None) -> slice:
    start = rank_in(group) * anchor.shape[0]
    return slice(start, start + anchor.shape[0])


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    # On a CPU the factor can be read without waiting; 1, a plain backward(), saves a pass over memory.
    if grad.device.type == "cpu" and not torch.compiler.is_compiling() and scale == 1:
        return grad
    return grad * scale


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(anchor: Tensor, positive: Tensor, negative: Tensor | None, distance: str, shift: int | None,
           group: ProcessGroup | None) -> None:
    if anchor.ndim not in (2, 4):
        raise ValueError(f"triplet: anchor must be (B, D) or (B, C, h, w), got {tuple(anchor.shape)}")
    if anchor.numel() == 0:
        raise ValueError(f"triplet: anchor must not be empty, got {tuple(anchor.shape)}: there is no mean of nothing")
    for name, x in (("positive", positive), ("negative", negative)):
        if x is not None and x.shape != anchor.shape:
            raise ValueError(f"triplet: {name} must be {tuple(anchor.shape)} like anchor, got {tuple(x.shape)}")
        if x is not None and x.device != anchor.device:
            raise ValueError(f"triplet: {name} must be on {anchor.device} like anchor, got {x.device}")
    if distance not in reference.DISTANCES:
        raise ValueError(f"triplet: distance {distance!r} is unknown; legal: {', '.join(reference.DISTANCES)}")
    if (negative is None) == (shift is None):
        raise ValueError("triplet: give either negative or shift, and not both")
    rows = anchor.shape[0] * (1 if group is None else group.size())
    if shift is not None and shift % rows == 0:
        raise ValueError(f"triplet: shift must not be 0 modulo the global batch of {rows}, got {shift}: "
                         "a row would be its own negative")
