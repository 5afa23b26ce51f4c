"""Triton form of the passes in `reference.py`, same names and arguments; imported only when a tensor needs it.

Rows are normalised once, by `_normalise`, and not in every tile's load: a tile then reads what its products take, and
ranks send the same. z stays in the dtype of the input, products of half precision are summed in fp32, fp32 ones are made
of three tf32 products, which is about as exact as fp32. Everything between products is fp32, exponentials are base 2.
A program owns BLOCK_R rows of one view and walks the columns, so nothing is added by two programs and two runs are equal.
Legend: as in reference.py; p_ pointer, b_ block in registers, o_ offsets, i_ program index.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-1e30)  # a running maximum before any column; finite, so that lowest - lowest is 0
# The interpreter multiplies the bits of bf16 operands, and cuts off what it should round away: there both are done by hand.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _dot(a: tl.tensor, b: tl.tensor):
    """a b in fp32."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _rounded(x: tl.tensor, dtype: tl.constexpr):
    """fp32 to dtype, to nearest even."""
    if _INTERPRETED:
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _load_rows(p_x: tl.tensor, o_row: tl.tensor, stride: tl.tensor, mask: tl.tensor, first: tl.tensor,
               D: tl.constexpr, BLOCK: tl.constexpr):
    """Features first ... first + BLOCK of these rows, zero beyond the mask and beyond D."""
    o_d = first + tl.arange(0, BLOCK)
    return tl.load(p_x + o_row.to(tl.int64)[:, None] * stride + o_d[None, :], mask=mask[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def _products(p_rows: tl.tensor, o_r: tl.tensor, stride_r: tl.tensor, m_r: tl.tensor,
              p_cols: tl.tensor, o_c: tl.tensor, stride_c: tl.tensor, m_c: tl.tensor,
              D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):
    """rows cols^T, BLOCK_K features at a time."""
    b_products = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for k in range(0, D, BLOCK_K):
        b_rows = _load_rows(p_rows, o_r, stride_r, m_r, k, D, BLOCK_K)
        b_cols = _load_rows(p_cols, o_c, stride_c, m_c, k, D, BLOCK_K)
        b_products += _dot(b_rows, tl.trans(b_cols))
    return b_products


@triton.jit
def _normalise(
    p_u: tl.tensor,  # (V, B, D), any strides
    p_z: tl.tensor,  # (B, V, D) like u
    p_inverse: tl.tensor,  # (V, B) fp32
    B: tl.tensor, V: tl.tensor, stride_v: tl.int64, stride_b: tl.int64, stride_d: tl.int64,
    D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    v = tl.program_id(1).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    mask = (o_b < B)[:, None] & (o_d < D)[None, :]
    x = tl.load(p_u + v * stride_v + o_b[:, None] * stride_b + o_d[None, :] * stride_d, mask=mask, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(x * x, 1))
    inverse = tl.where(norm == 0, 0.0, 1.0 / norm)
    z = _rounded(x * inverse[:, None], p_z.dtype.element_ty)
    tl.store(p_z + (o_b[:, None] * V + v) * D + o_d[None, :], z, mask=mask)
    tl.store(p_inverse + v * B + o_b, inverse, mask=o_b < B)


@triton.jit
def _forward(
    p_rows: tl.tensor,  # (U, R, D), features side by side
    p_cols: tl.tensor,  # (W, C, D), likewise
    p_inv_tau: tl.tensor,  # () fp32
    p_lse: tl.tensor,  # (U, R, W) fp32
    R: tl.tensor, C: tl.tensor, W: tl.tensor, start: tl.tensor,
    stride_u: tl.int64, stride_r: tl.int64, stride_w: tl.int64, stride_c: tl.int64,
    D: tl.constexpr, SYMMETRIC: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    u, w = (tl.program_id(1) // W).to(tl.int64), (tl.program_id(1) % W).to(tl.int64)
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
    p_row_view, p_col_view = p_rows + u * stride_u, p_cols + w * stride_w
    if D <= BLOCK_K:
        b_rows = _load_rows(p_row_view, o_r, stride_r, m_r, 0, D, BLOCK_K)
    scale = tl.load(p_inv_tau) * _LOG2E
    itself = tl.where(SYMMETRIC and u == w, start + o_r, -1)
    b_max = tl.full((BLOCK_R,), 0.0 if BOUNDED else _LOWEST, tl.float32)
    b_sum = tl.zeros((BLOCK_R,), tl.float32)
    for c in range(0, C, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        if D <= BLOCK_K:
            s = _dot(b_rows, tl.trans(_load_rows(p_col_view, o_c, stride_c, m_c, 0, D, BLOCK_K))) * scale
        else:
            s = _products(p_row_view, o_r, stride_r, m_r, p_col_view, o_c, stride_c, m_c, D, BLOCK_R, BLOCK_C, BLOCK_K) * scale
        s = tl.where(m_c[None, :] & (o_c[None, :] != itself[:, None]), s, float("-inf"))
        if BOUNDED:
            b_sum += tl.sum(tl.exp2(s), 1)
        else:
            b_new = tl.maximum(b_max, tl.max(s, 1))
            b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(s - b_new[:, None]), 1)
            b_max = b_new
    tl.store(p_lse + (u * R + o_r) * W + w, (b_max + tl.log2(b_sum)) * _LN2, mask=m_r)


@triton.jit
def _backward(
    p_rows: tl.tensor,  # (U, R, D), features side by side
    p_cols: tl.tensor,  # (W, C, D), likewise
    p_row_weight: tl.tensor,  # (U, R, W) fp32
    p_col_weight: tl.tensor,  # (W, C, U) fp32
    p_inv_tau: tl.tensor,  # () fp32
    p_sum: tl.tensor,  # (U, R, D) fp32
    R: tl.tensor, C: tl.tensor, U: tl.tensor, W: tl.tensor, start: tl.tensor,
    stride_u: tl.int64, stride_r: tl.int64, stride_w: tl.int64, stride_c: tl.int64,
    D: tl.constexpr, SYMMETRIC: tl.constexpr, BOUNDED: tl.constexpr, GAIN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Features d ... d + BLOCK_D of the sum over columns; where D is larger, each program makes the products anew."""
    u, d = tl.program_id(1).to(tl.int64), tl.program_id(2) * BLOCK_D
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
    p_row_view = p_rows + u * stride_u
    if D <= BLOCK_K:
        b_rows = _load_rows(p_row_view, o_r, stride_r, m_r, 0, D, BLOCK_K)
    scale = tl.load(p_inv_tau) * _LOG2E
    b_sum = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for w in range(0, W):
        p_col_view = p_cols + w * stride_w
        itself = tl.where(SYMMETRIC and u == w, start + o_r, -1)
        b_row_weight = tl.load(p_row_weight + (u * R + o_r) * W + w, mask=m_r, other=0.0) * _LOG2E
        if BOUNDED:
            b_row_weight = tl.exp2(b_row_weight)
        for c in range(0, C, BLOCK_C):
            o_c = c + tl.arange(0, BLOCK_C)
            m_c = o_c < C
            b_cols = _load_rows(p_col_view, o_c, stride_c, m_c, d, D, BLOCK_D)
            b_col_weight = tl.load(p_col_weight + (w * C + o_c) * U + u, mask=m_c, other=0.0) * _LOG2E
            if D <= BLOCK_K:
                s = _dot(b_rows, tl.trans(b_cols)) * scale
            else:
                s = _products(p_row_view, o_r, stride_r, m_r, p_col_view, o_c, stride_c, m_c, D, BLOCK_R, BLOCK_C, BLOCK_K) * scale
            if BOUNDED:
                b_part = tl.exp2(s) * (b_row_weight[:, None] + tl.exp2(b_col_weight)[None, :])
            else:
                b_part = tl.exp2(s + b_row_weight[:, None]) + tl.exp2(s + b_col_weight[None, :])
            b_part = tl.where(m_c[None, :] & (o_c[None, :] != itself[:, None]), b_part * GAIN, 0.0)
            b_sum += _dot(_rounded(b_part, b_cols.dtype), b_cols)
    o_d = d + tl.arange(0, BLOCK_D)
    tl.store(p_sum + (u * R + o_r)[:, None] * D + o_d[None, :], b_sum / GAIN, mask=m_r[:, None] & (o_d < D)[None, :])


@triton.jit
def _project(
    p_sum: tl.tensor,  # (U, R, D) fp32, what _backward left
    p_rows: tl.tensor,  # (U, R, D)
    p_cols: tl.tensor,  # (W, C, D)
    p_row_scale: tl.tensor,  # (U, R) fp32
    p_grad: tl.tensor,  # (U, R, D) like rows
    p_along: tl.tensor,  # (U, R) fp32
    R: tl.tensor, W: tl.tensor, start: tl.tensor, num_positive: tl.tensor,
    stride_u: tl.int64, stride_r: tl.int64, stride_w: tl.int64, stride_c: tl.int64,
    D: tl.constexpr, SYMMETRIC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Takes off the positives, then the component along the row, and scales."""
    u = tl.program_id(1).to(tl.int64)
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < R
    o_d = tl.arange(0, BLOCK_D)
    here = (u * R + o_r)[:, None] * D + o_d[None, :]
    mask = m_r[:, None] & (o_d < D)[None, :]
    b_grad = tl.load(p_sum + here, mask=mask, other=0.0)
    for w in range(0, W):
        wanted = m_r & (o_r < num_positive)
        if SYMMETRIC:
            wanted = wanted & (u != w)
        b_positive = _load_rows(p_cols + w * stride_w, start + o_r, stride_c, wanted, 0, D, BLOCK_D)
        b_grad -= b_positive.to(tl.float32) * (2.0 if SYMMETRIC else 1.0)
    b_rows = _load_rows(p_rows + u * stride_u, o_r, stride_r, m_r, 0, D, BLOCK_D).to(tl.float32)
    b_along = tl.sum(b_grad * b_rows, 1)
    b_scale = tl.load(p_row_scale + u * R + o_r, mask=m_r, other=0.0)
    b_grad = (b_grad - b_along[:, None] * b_rows) * b_scale[:, None]
    tl.store(p_grad + here, _rounded(b_grad, p_grad.dtype.element_ty), mask=mask)
    tl.store(p_along + u * R + o_r, b_along, mask=m_r)


class _Config(NamedTuple):
    """Tile and launch of one pass; not tuned on a GPU yet, chosen so that nothing spills (bench/aot.py)."""

    block_r: int
    block_c: int
    block_k: int  # features multiplied at a time
    num_warps: int
    num_stages: int


# Forward, backward. Larger tiles spill in the backward pass on sm_100 (128 x 64: 240 B).
_HALF = _Config(128, 64, 128, 8, 3), _Config(128, 32, 128, 8, 3)
_FULL = _Config(64, 64, 32, 8, 2), _Config(64, 32, 32, 8, 2)
_SLICED = _Config(64, 64, 64, 8, 3)  # backward of half precision where D is more than a slice
_ELEMENTS = 4096  # of a tile of the kernels that go over rows once
_MAX_SLICE = 128  # features of the sum that one program of _backward owns


def _config(D: int, dtype: torch.dtype, *, backward: bool) -> dict[str, int]:
    """Compile-time sizes of _forward or _backward."""
    config = (_FULL if dtype == torch.float32 else _HALF)[backward]
    block_d = min(_width(D), _MAX_SLICE)
    config = _SLICED if backward and D > block_d and dtype != torch.float32 else config
    # One block of features serves both products where it holds them all.
    block_k = block_d if D <= min(config.block_k, block_d) else min(config.block_k, 64)
    sizes = dict(BLOCK_R=config.block_r, BLOCK_C=config.block_c, BLOCK_K=block_k, num_warps=config.num_warps, num_stages=config.num_stages)
    # Coefficients are about 1 / N, where fp16 has few bits left: they are multiplied before rounding.
    return sizes | dict(BLOCK_D=block_d, GAIN=1024.0 if dtype == torch.float16 else 1.0) if backward else sizes


def _width(D: int) -> int:
    """tl.dot wants at least 16."""
    return max(16, triton.next_power_of_2(D))


def normalise(u: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.normalise`, in the dtype of u."""
    V, B, D = u.shape
    z_BVD = torch.empty(B, V, D, dtype=u.dtype, device=u.device)
    inverse = torch.empty(V, B, dtype=torch.float32, device=u.device)
    block = max(1, _ELEMENTS // _width(D))
    with torch.cuda.device_of(u):
        _normalise[(triton.cdiv(B, block), V)](u, z_BVD, inverse, B, V, *u.stride(), D=D, BLOCK_B=block, BLOCK_D=_width(D))
    return z_BVD, inverse


def forward(rows: Tensor, cols: Tensor, inv_tau: Tensor, start: int, symmetric: bool, bounded: bool) -> Tensor:
    """As `reference.forward`; the result is fp32."""
    (U, R, D), (W, C, _) = rows.shape, cols.shape
    lse = torch.empty(U, R, W, dtype=torch.float32, device=rows.device)
    sizes = _config(D, rows.dtype, backward=False)
    with torch.cuda.device_of(rows):
        _forward[(triton.cdiv(R, sizes["BLOCK_R"]), U * W)](
            rows, cols, inv_tau, lse, R, C, W, start, *rows.stride()[:2], *cols.stride()[:2],
            D=D, SYMMETRIC=symmetric, BOUNDED=bounded, **sizes)
    return lse


def backward(rows: Tensor, cols: Tensor, row_weight: Tensor, col_weight: Tensor, row_scale: Tensor, inv_tau: Tensor,
             start: int, num_positive: int, symmetric: bool, bounded: bool) -> tuple[Tensor, Tensor]:
    """As `reference.backward`; the gradient is in the dtype of rows."""
    (U, R, D), (W, C, _) = rows.shape, cols.shape
    total = torch.empty(U, R, D, dtype=torch.float32, device=rows.device)
    grad, along = torch.empty_like(total, dtype=rows.dtype), torch.empty_like(total[:, :, 0])
    sizes, block = _config(D, rows.dtype, backward=True), max(1, _ELEMENTS // _width(D))
    strides = (*rows.stride()[:2], *cols.stride()[:2])
    with torch.cuda.device_of(rows):
        _backward[(triton.cdiv(R, sizes["BLOCK_R"]), U, triton.cdiv(D, sizes["BLOCK_D"]))](
            rows, cols, row_weight.contiguous(), col_weight.contiguous(), inv_tau, total, R, C, U, W, start, *strides,
            D=D, SYMMETRIC=symmetric, BOUNDED=bounded, **sizes)
        _project[(triton.cdiv(R, block), U)](
            total, rows, cols, row_scale.contiguous(), grad, along, R, W, start, num_positive, *strides,
            D=D, SYMMETRIC=symmetric, BLOCK_R=block, BLOCK_D=_width(D))
    return grad, along


def aot_cases() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    """(name, kernel, signature, constants and compile options) of the tiles in use, for a compile without a GPU."""
    cases = [_aot_case("normalise bf16, D 128", _normalise, "bf16", dict(D=128, BLOCK_D=128, BLOCK_B=32)),
             _aot_case("project bf16, D 128", _project, "bf16", dict(D=128, BLOCK_D=128, BLOCK_R=32, SYMMETRIC=True))]
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for D, bounded, dtypes in ((128, True, ("bf16", "fp16", "fp32")), (128, False, ("bf16",)), (512, True, ("bf16", "fp32"))):
        for name in dtypes:
            for kernel, backward in ((_forward, False), (_backward, True)):
                label = f"{'backward' if backward else 'forward'} {name}, D {D}{'' if bounded else ', any temperature'}"
                constants = dict(D=D, SYMMETRIC=True, BOUNDED=bounded) | _config(D, names[name], backward=backward)
                cases.append(_aot_case(label, kernel, name, constants))
    return cases


def _aot_case(name: str, kernel: object, dtype: str, constants: dict[str, object]) -> tuple[str, object, dict[str, str], dict[str, object]]:
    low = ("p_u", "p_z", "p_rows", "p_cols", "p_grad")
    types = {arg: f"*{dtype}:16" if arg in low else "*fp32:16" if arg.startswith("p_") else "i64:16" if arg.startswith("stride")
             else "i32" if arg in ("U", "V", "W", "start") else "i32:16" for arg in kernel.arg_names}
    return name, kernel, types, constants | ({"stride_d": 1} if "stride_d" in types else {})
