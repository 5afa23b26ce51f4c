"""CPU form of the triplet loss: libdsengine for fp32 with gradients (csrc/triplet), the passes of `reference.py` for everything else."""

import ctypes

import torch
from torch import Tensor

from dsengine.kernels.triplet import reference
from dsengine.kernels.triplet.reference import Result
from dsengine.ops import library


@torch.library.custom_op("dsengine::triplet_cpu", mutates_args=())
def triplet(anchor: Tensor, positive: Tensor, other: Tensor | None, start: int, shift: int, margin: float, kind: str,
            soft_margin: bool, gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss (), active (), gradients of anchor, positive, negative, empty where there is none), all in at least fp32.

    anchor: this rank's rows. shift 0: `positive` and `other`, the negatives, are like it. Else `positive` and, where
    gradients are wanted, `other`, the anchors, are the global batch, in which this rank's rows begin at `start`. Deterministic.
    """
    a, p, o = (None if x is None else x.to(torch.promote_types(x.dtype, torch.float32)) for x in (anchor, positive, other))
    rows = slice(start, start + len(a))
    if not gradients:
        return _outputs(reference.value(a, p[rows] if shift else p, torch.roll(p, shift, 0)[rows] if shift else o, margin, kind, soft_margin))
    if shift == 0:
        return _outputs(_whole(a, p, o, 0, margin, kind, soft_margin))
    if len(a) == len(p):
        return _outputs(_whole(a, p, None, shift, margin, kind, soft_margin))
    # Row k is the negative of row k + shift too, whose rank may be another: that share is made here, so no gradient travels.
    own = _whole(a, p[rows], torch.roll(p, shift, 0)[rows], 0, margin, kind, soft_margin)
    after = torch.roll(o, -shift, 0)[rows], torch.roll(p, -shift, 0)[rows]
    as_negative = _whole(*after, p[rows], 0, margin, kind, soft_margin).grad_negative
    return _outputs(own._replace(grad_positive=own.grad_positive.add_(as_negative), grad_negative=None))


@triplet.register_fake
def _(anchor: Tensor, positive: Tensor, other: Tensor | None, start: int, shift: int, margin: float, kind: str,
      soft_margin: bool, gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(anchor.dtype, torch.float32)
    loss, active = anchor.new_empty((), dtype=wide), anchor.new_empty((), dtype=wide)
    given = (anchor, anchor, None if shift else other)
    return loss, active, *(_like(anchor, wide) if gradients and x is not None else anchor.new_empty(0, dtype=wide) for x in given)


def _whole(anchor: Tensor, positive: Tensor, negative: Tensor | None, shift: int, margin: float, kind: str, soft_margin: bool) -> Result:
    """Loss and gradients of rows whose negatives are given, or, with a shift, among them."""
    if any(x is not None and x.dtype != torch.float32 for x in (anchor, positive, negative)):
        if negative is None:
            return reference.rolled(anchor, positive, slice(0, len(anchor)), margin, kind, shift, soft_margin)
        return reference.given(anchor, positive, negative, margin, kind, soft_margin)
    layout = torch.channels_last if _is_channels_last(anchor) else torch.contiguous_format
    inputs = [x if x is None else x.contiguous(memory_format=layout) for x in (anchor, positive, negative)]
    grads = [x if x is None else torch.empty_like(x) for x in inputs]
    cells = anchor.shape[2:].numel()
    hinge = anchor.new_empty((len(anchor), cells))
    pointers = [0 if x is None else x.data_ptr() for x in (*inputs, *grads)]
    args = library.TripletArgs(*pointers, hinge.data_ptr(), len(anchor), shift, anchor.shape[1], cells, layout is torch.channels_last,
                               reference.DISTANCES.index(kind), soft_margin, margin, 1 / hinge.numel())
    lib = library.library()
    library.check_status("triplet", lib.dse_triplet_cpu(ctypes.byref(args), torch.get_num_threads(), library.BEST_ISA))
    return Result(reference.loss(hinge, soft_margin).mean(), reference.active(hinge).mean(), *grads)


def _outputs(result: Result) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = result.loss.new_empty(0), result.loss.new_empty(0), result.loss.new_empty(0)
    return result.loss, result.active, *(e if g is None else g for e, g in zip(grads, result[2:]))


def _is_channels_last(x: Tensor) -> bool:
    """Channels-last and nothing else: with one cell or channel a map is both, and counts as contiguous."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _like(anchor: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a gradient of the anchor, laid out as it is."""
    layout = torch.channels_last if _is_channels_last(anchor) else torch.contiguous_format
    return torch.empty(anchor.shape, dtype=dtype, device=anchor.device, memory_format=layout)
