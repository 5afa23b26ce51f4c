"""Triton form of the SAGAN attention block: no (N, N) tensor in memory, forward or backward.

Products run in the dtype of q, k, v with fp32 accumulators; softmax, sums and the epilogue are fp32. P and S (named as
in `reference.py`) are rounded to that dtype only where they enter a product.
Forward: a program owns BLOCK queries and up to 256 of the Dv channels, and walks the keys with an online softmax. It
keeps each query's largest score and softmax sum; their logsumexp alone would round P, as unscaled scores are large.
Backward, N <= BLOCK: one program per sample does everything from one P. Else two kernels: `backward_q` walks the keys
twice (t_i, then dq), `backward_kv` walks the queries. All sums have a fixed order: no atomics, two runs agree bit for
bit. dgamma is torch's sum over t, (B, N).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# In the interpreter, products of bf16 multiply the raw bits: there, tiles are widened first.
_INTERPRETED = bool(triton.knobs.runtime.interpret)
_WIDEN = tl.constexpr(_INTERPRETED)


@triton.jit
def _dot(a: tl.tensor, b: tl.tensor, PRECISION: tl.constexpr):
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _tile(p_x: tl.tensor, stride: tl.tensor, o_r: tl.tensor, o_c: tl.tensor, rows: tl.tensor, columns: tl.tensor):
    """(BLOCK, BLOCK) of row-major x; 0 outside."""
    mask = (o_r < rows)[:, None] & (o_c < columns)[None, :]
    return tl.load(p_x + o_r[:, None] * stride + o_c[None, :], mask=mask, other=0.0)


@triton.jit
def _store(p_x: tl.tensor, stride: tl.tensor, o_r: tl.tensor, o_c: tl.tensor, rows: tl.tensor, columns: tl.tensor,
           value: tl.tensor):
    mask = (o_r < rows)[:, None] & (o_c < columns)[None, :]
    tl.store(p_x + o_r[:, None] * stride + o_c[None, :], value.to(p_x.dtype.element_ty), mask=mask)


@triton.jit
def _product(p_a: tl.tensor, stride_a: tl.tensor, o_a: tl.tensor, p_b: tl.tensor, stride_b: tl.tensor, o_b: tl.tensor,
             rows: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """a b^T (BLOCK_A, BLOCK_B), summed over D channels."""
    o_d = tl.arange(0, BLOCK_D)
    out = _dot(_tile(p_a, stride_a, o_a, o_d, rows, D), tl.trans(_tile(p_b, stride_b, o_b, o_d, rows, D)), PRECISION)
    for d in range(BLOCK_D, D, BLOCK_D):
        a = _tile(p_a, stride_a, o_a, d + o_d, rows, D)
        b = _tile(p_b, stride_b, o_b, d + o_d, rows, D)
        out += _dot(a, tl.trans(b), PRECISION)
    return out


@triton.jit
def _rows_of(p_top: tl.tensor, p_total: tl.tensor, o_m: tl.tensor, N: tl.tensor):
    """The largest score of each query and 1 / its softmax sum: P is 0 in rows that do not exist."""
    top = tl.load(p_top + o_m, mask=o_m < N, other=float("inf"))
    return top, 1.0 / tl.load(p_total + o_m, mask=o_m < N, other=1.0)


@triton.jit(do_not_specialize=["N"])
def forward(
    p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_x: tl.tensor, p_gamma: tl.tensor,
    p_y: tl.tensor, p_top: tl.tensor, p_total: tl.tensor,  # (B, N, DV) contiguous, (B, N), (B, N)
    N: tl.tensor, stride_qb: tl.int64, stride_kb: tl.int64, stride_vb: tl.int64, stride_xb: tl.int64,
    stride_q: tl.tensor, stride_k: tl.tensor, stride_v: tl.tensor, stride_x: tl.tensor,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks = tl.cdiv(N, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    o_d = tl.program_id(1) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    p_q += b * stride_qb
    p_k += b * stride_kb
    p_v += b * stride_vb
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, BLOCK_DV), tl.float32)
    for n in range(0, N, BLOCK):
        o_n = n + tl.arange(0, BLOCK)
        s = _product(p_q, stride_q, o_m, p_k, stride_k, o_n, N, DK, BLOCK_DK, PRECISION)
        s = tl.where((o_n < N)[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp(s - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        v = _tile(p_v, stride_v, o_n, o_d, N, DV)
        o = o * shrink[:, None] + _dot(p.to(v.dtype), v, PRECISION)
        top = new_top
    gamma = tl.load(p_gamma).to(tl.float32)
    x = _tile(p_x + b * stride_xb, stride_x, o_m, o_d, N, DV).to(tl.float32)
    _store(p_y + b * N * DV, DV, o_m, o_d, N, DV, gamma * (o / total[:, None]) + x)
    first = (o_m < N) & (tl.program_id(1) == 0)
    tl.store(p_top + b * N + o_m, top, mask=first)
    tl.store(p_total + b * N + o_m, total, mask=first)


@triton.jit(do_not_specialize=["N"])
def backward_small(
    p_dy: tl.tensor, p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_gamma: tl.tensor, p_top: tl.tensor,
    p_total: tl.tensor, p_dq: tl.tensor, p_dk: tl.tensor, p_dv: tl.tensor, p_t: tl.tensor,  # contiguous
    N: tl.tensor, stride_dyb: tl.int64, stride_qb: tl.int64, stride_kb: tl.int64, stride_vb: tl.int64,
    stride_dy: tl.tensor, stride_q: tl.tensor, stride_k: tl.tensor, stride_v: tl.tensor,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """N <= BLOCK: everything about one sample from one P."""
    b = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK)
    p_q += b * stride_qb
    p_k += b * stride_kb
    gamma = tl.load(p_gamma).to(tl.float32)
    top, share = _rows_of(p_top + b * N, p_total + b * N, o_n, N)
    s = _product(p_q, stride_q, o_n, p_k, stride_k, o_n, N, DK, BLOCK_DK, PRECISION)
    p = tl.exp(tl.where((o_n < N)[None, :], s - top[:, None], float("-inf"))) * share[:, None]
    p_low = tl.trans(p.to(p_q.dtype.element_ty))
    t = tl.zeros((BLOCK, BLOCK), tl.float32)
    for d in range(0, DV, BLOCK_DV):
        o_d = d + tl.arange(0, BLOCK_DV)
        dy = _tile(p_dy + b * stride_dyb, stride_dy, o_n, o_d, N, DV)
        v = _tile(p_v + b * stride_vb, stride_v, o_n, o_d, N, DV)
        t += _dot(dy, tl.trans(v), PRECISION)
        _store(p_dv + b * N * DV, DV, o_n, o_d, N, DV, gamma * _dot(p_low, dy, PRECISION))
    mean = tl.sum(p * t, 1)
    tl.store(p_t + b * N + o_n, mean, mask=o_n < N)
    ds = (p * (t - mean[:, None])).to(p_q.dtype.element_ty)
    ds_t = tl.trans(ds)
    for d in range(0, DK, BLOCK_DK):
        o_d = d + tl.arange(0, BLOCK_DK)
        q = _tile(p_q, stride_q, o_n, o_d, N, DK)
        k = _tile(p_k, stride_k, o_n, o_d, N, DK)
        _store(p_dq + b * N * DK, DK, o_n, o_d, N, DK, gamma * _dot(ds, k, PRECISION))
        _store(p_dk + b * N * DK, DK, o_n, o_d, N, DK, gamma * _dot(ds_t, q, PRECISION))


@triton.jit(do_not_specialize=["N"])
def backward_q(
    p_dy: tl.tensor, p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_gamma: tl.tensor, p_top: tl.tensor,
    p_total: tl.tensor, p_dq: tl.tensor, p_t: tl.tensor,  # contiguous
    N: tl.tensor, stride_dyb: tl.int64, stride_qb: tl.int64, stride_kb: tl.int64, stride_vb: tl.int64,
    stride_dy: tl.tensor, stride_q: tl.tensor, stride_k: tl.tensor, stride_v: tl.tensor,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """t_i and BLOCK_DK channels of dq for BLOCK queries."""
    blocks = tl.cdiv(N, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    o_d = tl.program_id(1) * BLOCK_DK + tl.arange(0, BLOCK_DK)
    p_dy += b * stride_dyb
    p_q += b * stride_qb
    p_k += b * stride_kb
    p_v += b * stride_vb
    top, share = _rows_of(p_top + b * N, p_total + b * N, o_m, N)
    mean = tl.zeros((BLOCK,), tl.float32)
    for n in range(0, N, BLOCK):
        o_n = n + tl.arange(0, BLOCK)
        s = _product(p_q, stride_q, o_m, p_k, stride_k, o_n, N, DK, BLOCK_DK, PRECISION)
        t = _product(p_dy, stride_dy, o_m, p_v, stride_v, o_n, N, DV, BLOCK_DV, PRECISION)
        p = tl.exp(tl.where((o_n < N)[None, :], s - top[:, None], float("-inf"))) * share[:, None]
        mean += tl.sum(p * t, 1)
    dq = tl.zeros((BLOCK, BLOCK_DK), tl.float32)
    for n in range(0, N, BLOCK):
        o_n = n + tl.arange(0, BLOCK)
        s = _product(p_q, stride_q, o_m, p_k, stride_k, o_n, N, DK, BLOCK_DK, PRECISION)
        t = _product(p_dy, stride_dy, o_m, p_v, stride_v, o_n, N, DV, BLOCK_DV, PRECISION)
        p = tl.exp(tl.where((o_n < N)[None, :], s - top[:, None], float("-inf"))) * share[:, None]
        k = _tile(p_k, stride_k, o_n, o_d, N, DK)
        dq += _dot((p * (t - mean[:, None])).to(k.dtype), k, PRECISION)
    _store(p_dq + b * N * DK, DK, o_m, o_d, N, DK, tl.load(p_gamma).to(tl.float32) * dq)
    tl.store(p_t + b * N + o_m, mean, mask=(o_m < N) & (tl.program_id(1) == 0))


@triton.jit(do_not_specialize=["N"])
def backward_kv(
    p_dy: tl.tensor, p_q: tl.tensor, p_k: tl.tensor, p_v: tl.tensor, p_gamma: tl.tensor, p_top: tl.tensor,
    p_total: tl.tensor, p_t: tl.tensor, p_dk: tl.tensor, p_dv: tl.tensor,  # contiguous
    N: tl.tensor, stride_dyb: tl.int64, stride_qb: tl.int64, stride_kb: tl.int64, stride_vb: tl.int64,
    stride_dy: tl.tensor, stride_q: tl.tensor, stride_k: tl.tensor, stride_v: tl.tensor,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr, WITH_K: tl.constexpr, WITH_V: tl.constexpr,
):
    """One block of channels of dk (WITH_K) and of dv (WITH_V) for BLOCK keys."""
    blocks = tl.cdiv(N, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    o_n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    o_dk = tl.program_id(1) * BLOCK_DK + tl.arange(0, BLOCK_DK)
    o_dv = tl.program_id(1) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    p_dy += b * stride_dyb
    p_q += b * stride_qb
    p_k += b * stride_kb
    p_v += b * stride_vb
    dk = tl.zeros((BLOCK, BLOCK_DK), tl.float32)
    dv = tl.zeros((BLOCK, BLOCK_DV), tl.float32)
    for m in range(0, N, BLOCK):
        o_m = m + tl.arange(0, BLOCK)
        top, share = _rows_of(p_top + b * N, p_total + b * N, o_m, N)
        # Transposed, (keys, queries): the products below then take it as it is. Keys that do not exist are not stored.
        s = _product(p_k, stride_k, o_n, p_q, stride_q, o_m, N, DK, BLOCK_DK, PRECISION)
        p = tl.exp(s - top[None, :]) * share[None, :]
        if WITH_V:
            dy = _tile(p_dy, stride_dy, o_m, o_dv, N, DV)
            dv += _dot(p.to(dy.dtype), dy, PRECISION)
        if WITH_K:
            mean = tl.load(p_t + b * N + o_m, mask=o_m < N, other=0.0)
            t = _product(p_v, stride_v, o_n, p_dy, stride_dy, o_m, N, DV, BLOCK_DV, PRECISION)
            q = _tile(p_q, stride_q, o_m, o_dk, N, DK)
            dk += _dot((p * (t - mean[None, :])).to(q.dtype), q, PRECISION)
    gamma = tl.load(p_gamma).to(tl.float32)
    if WITH_K:
        _store(p_dk + b * N * DK, DK, o_n, o_dk, N, DK, gamma * dk)
    if WITH_V:
        _store(p_dv + b * N * DV, DV, o_n, o_dv, N, DV, gamma * dv)


LARGEST_BLOCK = 64


class Blocks(NamedTuple):
    """Compile-time sizes of one kernel."""

    block: int  # queries or keys
    block_dk: int
    block_dv: int
    warps: int
    stages: int

    def options(self, q: Tensor, v: Tensor, precision: str) -> dict[str, object]:
        """Constants and compile options of a launch; precision of fp32 products: "ieee" or "tf32"."""
        return dict(DK=q.shape[2], DV=v.shape[2], BLOCK=self.block, BLOCK_DK=self.block_dk, BLOCK_DV=self.block_dv,
                    PRECISION=precision, num_warps=self.warps, num_stages=self.stages)


def forward_blocks(q: Tensor, v: Tensor) -> Blocks:
    return _blocks(q, v, 256, 8)


def backward_small_blocks(q: Tensor, v: Tensor) -> Blocks:
    return _blocks(q, v, 128, 4)


def backward_q_blocks(q: Tensor, v: Tensor) -> Blocks:
    return _blocks(q, v, 128, 8)


def backward_kv_blocks(q: Tensor, v: Tensor) -> Blocks:
    return _blocks(q, v, 128, 8)


def backward_kv_launches(q: Tensor, v: Tensor) -> list[tuple[bool, bool]]:
    """(with dk, with dv) of each launch: one for both where each is a single block wide."""
    blocks = backward_kv_blocks(q, v)
    return [(True, True)] if q.shape[2] <= blocks.block_dk and v.shape[2] <= blocks.block_dv else [(True, False), (False, True)]


def _blocks(q: Tensor, v: Tensor, widest_dv: int, warps: int) -> Blocks:
    """Tiles up to `widest_dv` channels wide. fp32 products run on plain cores, out of registers: far smaller tiles there."""
    if q.element_size() == 4 and not _INTERPRETED:  # interpreted, time goes by the number of tiles
        return Blocks(_fit(q.shape[1], 32), 16, _fit(v.shape[2], 32), 8, 1)
    return Blocks(_fit(q.shape[1], LARGEST_BLOCK), _fit(q.shape[2], 64), _fit(v.shape[2], widest_dv), warps, 2)


def _fit(size: int, largest: int) -> int:
    """The power of two that holds `size`, from 16 (the least a product takes) to `largest`."""
    return min(largest, max(16, triton.next_power_of_2(size)))


def aot_cases() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    """(name, kernel, signature, constants and compile options): both blocks of the encoder, for a compile without a GPU."""
    return [case for cells, dk, dv in ((256, 32, 256), (64, 64, 512)) for dtype in (torch.bfloat16, torch.float32)
            for case in _aot_cases(*(torch.empty(1, cells, d, dtype=dtype, device="meta") for d in (dk, dv)))]


def _aot_cases(q: Tensor, v: Tensor) -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    where = f"{q.shape[2]}/{v.shape[2]}, N = {q.shape[1]}, {str(q.dtype).removeprefix('torch.')}"
    cases = [_aot_case(f"forward {where}", forward, q, v, forward_blocks(q, v))]
    if q.shape[1] <= backward_small_blocks(q, v).block:
        return cases + [_aot_case(f"backward {where}", backward_small, q, v, backward_small_blocks(q, v))]
    cases.append(_aot_case(f"backward q {where}", backward_q, q, v, backward_q_blocks(q, v)))
    return cases + [_aot_case(f"backward {'k' * with_k}{'v' * with_v} {where}", backward_kv, q, v, backward_kv_blocks(q, v),
                              WITH_K=with_k, WITH_V=with_v) for with_k, with_v in backward_kv_launches(q, v)]


def _aot_case(name: str, kernel: object, q: Tensor, v: Tensor, blocks: Blocks,
              **constants: object) -> tuple[str, object, dict[str, str], dict[str, object]]:
    low = "*bf16:16" if q.dtype == torch.bfloat16 else "*fp32:16"
    types = dict.fromkeys(("p_top", "p_total", "p_t", "p_gamma"), "*fp32:16") | {"N": "i32"}
    signature = {arg: types.get(arg, low if arg.startswith("p_") else "i64:16" if arg.endswith("b") else "i32:16")
                 for arg in kernel.arg_names}
    return name, kernel, signature, blocks.options(q, v, "ieee") | constants
