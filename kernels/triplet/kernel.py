"""Triton form of the triplet loss: loss and gradients in one pass, or the loss alone.

A position is one row and cell; a program takes BLOCK_M of them and all their channels. Everything is computed in fp32.
The loss is reduced in two stages (a partial sum per program, then torch's sum), so nothing needs an atomic and two
runs agree bit for bit. Rolled negatives are a gather: row i of the global batch is the negative of row i + shift, so
its gradient is its share as positive plus its share as negative, recomputed from the anchor b and positive q there.
Traffic: reads 3 tensors and writes 3 (given), or reads 5 and writes 2 (rolled), in the dtype of the inputs.
Gradients are of the sum over positions: scaled by 1 / M they would underflow fp16. The caller scales.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsengine.kernels.triplet import reference

_EPS = tl.constexpr(reference.EPS)
_TILE = 2048  # elements of a tile where all channels fit in one: five fp32 tiles are 80 registers a thread at 4 warps
_MAX_CHANNELS = 1024  # above it, and where cells lie side by side in memory, channels are walked in blocks


@triton.jit
def _load(p_x: tl.tensor, o_m: tl.tensor, o_c: tl.tensor, mask: tl.tensor):
    return tl.load(p_x + o_m[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _terms(x: tl.tensor, y: tl.tensor, mask: tl.tensor, KIND: tl.constexpr):
    """This block's part of d(x, y), before the root of the Euclidean one."""
    diff = x - y
    term = diff * diff
    if KIND == "l1":
        term = tl.sqrt(term + _EPS)
    return tl.sum(tl.where(mask, term, 0.0), 1)


@triton.jit
def _slope(x: tl.tensor, y: tl.tensor, distance: tl.tensor, KIND: tl.constexpr):
    """Gradient of d(x, y) in x."""
    diff = x - y
    if KIND == "euclidean":
        diff = diff / distance[:, None]
    elif KIND == "l1":
        diff = diff / tl.sqrt(diff * diff + _EPS)
    else:
        diff = 2.0 * diff
    return diff


@triton.jit
def _active(hinge: tl.tensor):
    """1 where the hinge is open. "Not <= 0" and not "> 0": NaN stays active, as in the reference."""
    return tl.where(hinge <= 0, 0.0, 1.0)


@triton.jit
def _loss(hinge: tl.tensor, SOFT: tl.constexpr):
    """max(0, h) or softplus; log(u) e / (u - 1) with u = 1 + e is log1p(e), exact for small e."""
    loss = tl.where(hinge <= 0, 0.0, hinge)
    if SOFT:
        e = tl.exp(-tl.abs(hinge))
        u = 1.0 + e
        loss += tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0)))
    return loss


@triton.jit
def _weight(hinge: tl.tensor, SOFT: tl.constexpr):
    """Gradient of the loss in the hinge."""
    weight = _active(hinge)
    if SOFT:
        weight = 1.0 / (1.0 + tl.exp(-hinge))
    return weight


@triton.jit
def _distances(d: tl.tuple, p: tl.tuple, at: tl.tuple, o_c: tl.tensor, mask: tl.tensor,
               KIND: tl.constexpr, ROLLED: tl.constexpr, GRAD: tl.constexpr):
    """Adds one block of channels to the distances (a, p), (a, n) and, for the share as negative, (b, q), (b, p)."""
    x_a = _load(p[0], at[0], o_c, mask)
    x_p = _load(p[1], at[1], o_c, mask)
    if ROLLED:
        x_n = _load(p[1], at[2], o_c, mask)
    else:
        x_n = _load(p[2], at[0], o_c, mask)
    d_ap = d[0] + _terms(x_a, x_p, mask, KIND)
    d_an = d[1] + _terms(x_a, x_n, mask, KIND)
    d_bq = d[2]
    d_bp = d[3]
    if ROLLED and GRAD:
        x_b = _load(p[2], at[3], o_c, mask)
        x_q = _load(p[1], at[3], o_c, mask)
        d_bq += _terms(x_b, x_q, mask, KIND)
        d_bp += _terms(x_b, x_p, mask, KIND)
    return d_ap, d_an, d_bq, d_bp


@triton.jit
def _gradients(d: tl.tuple, w: tl.tuple, p: tl.tuple, g: tl.tuple, at: tl.tuple, o_c: tl.tensor, mask: tl.tensor,
               KIND: tl.constexpr, ROLLED: tl.constexpr):
    """Stores one block of channels. Where there is one block, its loads are those of `_distances`, merged."""
    x_a = _load(p[0], at[0], o_c, mask)
    x_p = _load(p[1], at[1], o_c, mask)
    if ROLLED:
        x_n = _load(p[1], at[2], o_c, mask)
        x_b = _load(p[2], at[3], o_c, mask)
    else:
        x_n = _load(p[2], at[0], o_c, mask)
    to_p = w[0][:, None] * _slope(x_a, x_p, d[0], KIND)
    to_n = w[0][:, None] * _slope(x_a, x_n, d[1], KIND)
    here = at[0][:, None] + o_c[None, :]
    tl.store(g[0] + here, (to_p - to_n).to(g[0].dtype.element_ty), mask=mask)
    if ROLLED:
        as_negative = w[1][:, None] * _slope(x_b, x_p, d[3], KIND)
        tl.store(g[1] + here, (as_negative - to_p).to(g[1].dtype.element_ty), mask=mask)
    else:
        tl.store(g[1] + here, (-to_p).to(g[1].dtype.element_ty), mask=mask)
        tl.store(g[2] + here, to_n.to(g[2].dtype.element_ty), mask=mask)


# The shift is another one each step: specialising on its value would compile in the middle of training.
@triton.jit(do_not_specialize=["start", "shift"])
def _triplet(
    p_anchor: tl.tensor,  # (B, C, S), this rank's rows
    p_positive: tl.tensor,  # like anchor; rolled: (global B, C, S)
    p_other: tl.tensor,  # negatives, like anchor; rolled: anchors (global B, C, S), read for gradients only
    p_loss: tl.tensor,  # (programs,) fp32 partial sums
    p_active: tl.tensor,  # (programs,) fp32 partial sums
    p_grad_anchor: tl.tensor, p_grad_positive: tl.tensor, p_grad_negative: tl.tensor,  # like anchor
    num_positions: tl.int64, num_cells: tl.tensor, num_channels: tl.tensor,  # B * S, S, C
    global_rows: tl.tensor, start: tl.tensor, shift: tl.tensor,  # rolled: first own row, 0 < shift < global rows
    stride_row: tl.int64, stride_cell: tl.tensor, stride_channel: tl.tensor,  # one of the last two is 1
    margin: tl.float32,
    KIND: tl.constexpr, SOFT: tl.constexpr, ROLLED: tl.constexpr, GRAD: tl.constexpr,
    ONE_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = i_m < num_positions
    row = i_m // num_cells
    o_cell = i_m % num_cells * stride_cell
    own = row * stride_row + o_cell
    if ROLLED:
        at = (own, (row + start) * stride_row + o_cell,
              (row + start + global_rows - shift) % global_rows * stride_row + o_cell,
              (row + start + shift) % global_rows * stride_row + o_cell)
    else:
        at = (own, own, own, own)
    p = (p_anchor, p_positive, p_other)
    i_c = tl.arange(0, BLOCK_C)
    zero = tl.zeros((BLOCK_M,), tl.float32)
    d = (zero, zero, zero, zero)
    if ONE_BLOCK:
        mask = m_m[:, None] & (i_c < num_channels)[None, :]
        d = _distances(d, p, at, i_c * stride_channel, mask, KIND, ROLLED, GRAD)
    else:
        for c in range(0, num_channels, BLOCK_C):
            mask = m_m[:, None] & (c + i_c < num_channels)[None, :]
            d = _distances(d, p, at, (c + i_c) * stride_channel, mask, KIND, ROLLED, GRAD)
    if KIND == "euclidean":
        d = (tl.sqrt(d[0] + _EPS), tl.sqrt(d[1] + _EPS), tl.sqrt(d[2] + _EPS), tl.sqrt(d[3] + _EPS))
    hinge = d[0] - d[1] + margin
    if GRAD:
        w = (_weight(hinge, SOFT), _weight(d[2] - d[3] + margin, SOFT))
        g = (p_grad_anchor, p_grad_positive, p_grad_negative)
        if ONE_BLOCK:
            mask = m_m[:, None] & (i_c < num_channels)[None, :]
            _gradients(d, w, p, g, at, i_c * stride_channel, mask, KIND, ROLLED)
        else:
            for c in range(0, num_channels, BLOCK_C):
                mask = m_m[:, None] & (c + i_c < num_channels)[None, :]
                _gradients(d, w, p, g, at, (c + i_c) * stride_channel, mask, KIND, ROLLED)
    tl.store(p_loss + tl.program_id(0), tl.sum(tl.where(m_m, _loss(hinge, SOFT), 0.0), 0))
    tl.store(p_active + tl.program_id(0), tl.sum(tl.where(m_m, _active(hinge), 0.0), 0))


class _Plan(NamedTuple):
    """How (B, D) or (B, C, h, w) lies in memory, and the blocks that suit it."""

    stride_cell: int
    stride_channel: int
    one_block: bool
    block_m: int
    block_c: int


def _plan(x: Tensor) -> _Plan:
    channels, cells = x.shape[1], x.shape[2:].numel()
    if x.ndim == 4 and not _channels_last(x) and cells > 1:
        block_c = min(64, triton.next_power_of_2(channels))
        return _Plan(1, cells, channels <= block_c, 32, block_c)
    block_c = min(_MAX_CHANNELS, triton.next_power_of_2(channels))
    return _Plan(channels, 1, channels <= block_c, max(1, _TILE // block_c), block_c)


def _channels_last(x: Tensor) -> bool:
    """Channels-last and nothing else: with one cell or channel a map is both, and counts as contiguous."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("dsengine::triplet", mutates_args=())
def triplet(anchor: Tensor, positive: Tensor, other: Tensor | None, start: int, shift: int, margin: float, kind: str,
            soft_margin: bool, gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss (), active (), unscaled gradients of anchor, positive, negative, empty where there is none).

    anchor: this rank's rows. shift 0: `positive` and `other`, the negatives, are like it. Else `positive` and `other`,
    the anchors (needed for gradients only), are the global batch, in which this rank's rows begin at `start`.
    Mixed memory formats are brought to the anchor's by a copy. Deterministic.
    """
    layout = torch.channels_last if _channels_last(anchor) else torch.contiguous_format
    a, p = anchor.contiguous(memory_format=layout), positive.contiguous(memory_format=layout)
    o = a if other is None else other.contiguous(memory_format=layout)
    plan = _plan(a)
    num_positions = a.shape[0] * a.shape[2:].numel()
    programs = triton.cdiv(num_positions, plan.block_m)
    sums = torch.empty(2, programs, dtype=torch.float32, device=a.device)
    grads = _outputs(a, p, None if shift else other, gradients)
    with torch.cuda.device_of(a):
        _triplet[(programs,)](
            a, p, o, sums[0], sums[1], *grads,
            num_positions, a.shape[2:].numel(), a.shape[1], p.shape[0], start, shift,
            a.shape[1:].numel(), plan.stride_cell, plan.stride_channel, margin,
            KIND=kind, SOFT=soft_margin, ROLLED=shift != 0, GRAD=gradients,
            ONE_BLOCK=plan.one_block, BLOCK_M=plan.block_m, BLOCK_C=plan.block_c)
    return sums[0].sum() / num_positions, sums[1].sum() / num_positions, *grads


@triplet.register_fake
def _(anchor: Tensor, positive: Tensor, other: Tensor | None, start: int, shift: int, margin: float, kind: str,
      soft_margin: bool, gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _outputs(anchor, positive, None if shift else other, gradients)
    return anchor.new_empty((), dtype=torch.float32), anchor.new_empty((), dtype=torch.float32), *grads


def _outputs(anchor: Tensor, positive: Tensor, negative: Tensor | None, gradients: bool) -> tuple[Tensor, ...]:
    """Room for the gradients: laid out like the anchor, in the dtype of each input."""
    layout = torch.channels_last if _channels_last(anchor) else torch.contiguous_format
    return tuple(torch.empty(anchor.shape if gradients and x is not None else (0,), device=anchor.device,
                             dtype=anchor.dtype if x is None else x.dtype,
                             memory_format=layout if gradients and x is not None else torch.contiguous_format)
                 for x in (anchor, positive, negative))


def aot_cases() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    """(name, kernel, signature, constants and compile options): the CSF shapes, for a compile without a GPU."""
    dense, pooled = torch.empty(2, 512, 8, 8, device="meta"), torch.empty(2, 512, device="meta")
    last = dense.contiguous(memory_format=torch.channels_last)
    rolled, alone = dict(ROLLED=True, GRAD=True), dict(ROLLED=True, GRAD=False)
    return [_aot_case("dense l1 rolled, channels-last", last, KIND="l1", **rolled),
            _aot_case("dense l1 rolled, channels-first", dense, KIND="l1", **rolled),
            _aot_case("dense l1 rolled, loss only", last, KIND="l1", **alone),
            _aot_case("pooled euclidean rolled", pooled, KIND="euclidean", **rolled),
            _aot_case("pooled euclidean given, soft", pooled, KIND="euclidean", ROLLED=False, GRAD=True, SOFT=True)]


def _aot_case(name: str, like: Tensor, *, KIND: str, ROLLED: bool, GRAD: bool, SOFT: bool = False,
              dtype: str = "bf16") -> tuple[str, object, dict[str, str], dict[str, object]]:
    plan = _plan(like)
    types = dict(p_loss="*fp32:16", p_active="*fp32:16", num_positions="i64:16", stride_row="i64:16", start="i32",
                 shift="i32", margin="fp32")
    signature = {arg: types.get(arg, f"*{dtype}:16" if arg.startswith("p_") else "i32:16") for arg in _triplet.arg_names}
    ones = {"stride_cell": 1} if plan.stride_cell == 1 else {"stride_channel": 1}
    pooled = {"num_cells": 1} if like.ndim == 2 else {}
    return name, _triplet, signature, ones | pooled | dict(
        KIND=KIND, SOFT=SOFT, ROLLED=ROLLED, GRAD=GRAD, ONE_BLOCK=plan.one_block, BLOCK_M=plan.block_m, BLOCK_C=plan.block_c)
