"""Public triplet loss: checks, gather across ranks, and the autograd node around the CPU form or the kernel."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup

from dsengine.dist import rank_in
from dsengine.kernels.backend import uses_triton
from dsengine.kernels.ranks import checked_sizes, gather
from dsengine.kernels.triplet import cpu, reference
from dsengine.kernels.triplet.reference import Result


class _Triplet(torch.autograd.Function):
    """Gradients are written in the forward pass, where the distances are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchor: Tensor, positive: Tensor, negative: Tensor | None, margin: float, kind: str,
                soft_margin: bool, shift: int | None, sizes: tuple[int, ...], group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
        result, scale = _gradients(anchor, positive, negative, margin, kind, soft_margin, shift, sizes, group)
        share = _share(anchor, sizes)
        ctx.scale = scale * share
        ctx.save_for_backward(*result[2:])
        ctx.dtypes = anchor.dtype, positive.dtype, None if negative is None else negative.dtype
        ctx.mark_non_differentiable(result.active)
        return _weighted(result, share)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        scale = grad_loss * ctx.scale
        grads = (None if g is None else _scaled(g, scale).to(t) for g, t in zip(ctx.saved_tensors, ctx.dtypes))
        return *grads, None, None, None, None, None, None


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor | None = None, margin: float = 1.0,
            distance: str = "euclidean", shift: int | None = None, group: ProcessGroup | None = None, *,
            soft_margin: bool = False, sizes: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Triplet margin loss (definition in `reference.py`), pooled or per cell.

    anchor, positive, negative: (B, D) or (B, C, h, w), equal shapes, any float dtype; computed in at least fp32.
    margin: in units of the distance. distance: "euclidean", "l1" (smoothed) or "squared".
    shift: without `negative`, the negative of global row i is positive[i - shift]; never 0 modulo the global batch.
    group: ranks whose rows make up the global batch; None is this process alone. sizes: B of every rank, where they differ.
    soft_margin: log(1 + e^h) of the hinge h = d(a, p) - d(a, n) + margin instead of max(0, h).
    Returns (loss (), fraction of triplets with h > 0 ()), both means over this rank's rows; they and the gradients, averaged
    over ranks, are those of the global batch (with unequal sizes a rank's are weighted so that this still holds). Rolled
    negatives cost two all-gathers forward, of anchors and positives, one without gradient, and none backward; given ones
    none. Where no gradient is wanted, none is computed.
    Raises ValueError naming the argument.
    """
    _check(anchor, positive, negative, distance)
    sizes = checked_sizes("triplet", anchor.shape[0], sizes, group)
    _check_shift(negative, shift, sum(sizes))
    with torch.autocast(anchor.device.type, enabled=False):
        inputs = anchor, positive, negative, float(margin), distance, soft_margin, shift, sizes, group
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs[:3]):
            return _Triplet.apply(*inputs)
        return _weighted(_value(*inputs), _share(anchor, sizes))


def _gradients(anchor: Tensor, positive: Tensor, negative: Tensor | None, margin: float, kind: str, soft_margin: bool,
               shift: int | None, sizes: tuple[int, ...], group: ProcessGroup | None) -> tuple[Result, float]:
    """(loss and gradients, the factor that the gradients still lack)."""
    if negative is not None:
        return _run(anchor, positive, negative, 0, 0, margin, kind, soft_margin, True)
    anchors, positives = gather(anchor, sizes, group), gather(positive, sizes, group)
    return _run(anchor, positives, anchors, _start(sizes, group), shift % sum(sizes), margin, kind, soft_margin, True)


def _value(anchor: Tensor, positive: Tensor, negative: Tensor | None, margin: float, kind: str, soft_margin: bool,
           shift: int | None, sizes: tuple[int, ...], group: ProcessGroup | None) -> Result:
    """Loss and active fraction; anchors need no gather here."""
    if negative is not None:
        return _run(anchor, positive, negative, 0, 0, margin, kind, soft_margin, False)[0]
    positives = gather(positive, sizes, group)
    return _run(anchor, positives, None, _start(sizes, group), shift % sum(sizes), margin, kind, soft_margin, False)[0]


def _run(anchor: Tensor, positive: Tensor, other: Tensor | None, start: int, shift: int, margin: float, kind: str,
         soft_margin: bool, gradients: bool) -> tuple[Result, float]:
    """One operator, whose arguments are those of `kernel.triplet` and of `cpu.triplet`."""
    arguments = anchor, positive, other, start, shift, margin, kind, soft_margin, gradients
    if uses_triton(anchor, positive, other):
        from dsengine.kernels.triplet import kernel

        loss, active, *grads = kernel.triplet(*arguments)
        scale = anchor.shape[1] / anchor.numel()  # the kernel's gradients are of the sum over positions
    else:
        (loss, active, *grads), scale = cpu.triplet(*arguments), 1.0
    return Result(loss, active, *(g if g.numel() else None for g in grads)), scale


def _start(sizes: tuple[int, ...], group: ProcessGroup | None) -> int:
    """Where this rank's rows begin in the global batch."""
    return sum(sizes[:rank_in(group)])


def _share(anchor: Tensor, sizes: tuple[int, ...]) -> float:
    """What a mean over own rows is multiplied by, so that the mean over ranks is that over all rows; 1 where sizes are equal."""
    return anchor.shape[0] * len(sizes) / sum(sizes)


def _weighted(result: Result, share: float) -> tuple[Tensor, Tensor]:
    return (result.loss, result.active) if share == 1 else (result.loss * share, result.active * share)


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    # On a CPU the factor can be read without waiting; 1, a plain backward(), saves a pass over memory.
    if grad.device.type == "cpu" and not torch.compiler.is_compiling() and scale == 1:
        return grad
    return grad * scale


def _check(anchor: Tensor, positive: Tensor, negative: Tensor | None, distance: str) -> None:
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


def _check_shift(negative: Tensor | None, shift: int | None, rows: int) -> None:
    """rows: of the global batch."""
    if (negative is None) == (shift is None):
        raise ValueError("triplet: give either negative or shift, and not both")
    if shift is not None and shift % rows == 0:
        raise ValueError(f"triplet: shift must not be 0 modulo the global batch of {rows}, got {shift}: "
                         "a row would be its own negative")
