"""Triton form of grouped BatchNorm, sum and ReLU on channels-last maps: two passes forward, two backward, no atomics.

A row is one cell of one sample, all channels side by side; a group is `rows` such rows. A program walks the rows of one part of a
group for BLOCK_C channels. Moments are combined as Chan et al. do (count, mean, sum of squared deviations), parts in a fixed order,
so two runs agree bit for bit and a large mean costs no digits. Everything is computed in fp32.
Traffic, in sizes of x: forward reads 2, writes 1; backward reads 4, writes 1; a residual adds 1 forward, with relu 2 and a write backward.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_R = 32  # rows of a tile
_PROGRAMS = 1024  # programs of a reduction, about: a few waves on a large GPU


@triton.jit
def _tile(p_x: tl.tensor, i_r: tl.tensor, i_c: tl.tensor, channels: tl.tensor, mask: tl.tensor):
    return tl.load(p_x + i_r[:, None] * channels + i_c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _joined(n: tl.tensor, mean: tl.tensor, m2: tl.tensor, n_b: tl.tensor, mean_b: tl.tensor, m2_b: tl.tensor):
    """Moments of two sets together; the second may be empty, then its other numbers are 0."""
    total = n + n_b
    delta = mean_b - mean
    share = n_b / tl.maximum(total, 1.0)
    return total, mean + delta * share, m2 + m2_b + delta * delta * n * share


@triton.jit
def _moments(
    p_x: tl.tensor,  # (G * rows, C)
    p_part: tl.tensor,  # (3, parts, G, C) fp32: count, mean, sum of squared deviations
    rows: tl.int64, rows_per_part: tl.int64, channels: tl.tensor,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):
    part, group = tl.program_id(1), tl.program_id(2)
    parts, groups = tl.num_programs(1), tl.num_programs(2)
    i_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = i_c < channels
    start = part.to(tl.int64) * rows_per_part
    stop = tl.minimum(start + rows_per_part, rows)
    count = tl.zeros((BLOCK_C,), tl.float32)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    for r in range(start, stop, BLOCK_R):
        i_r = r + tl.arange(0, BLOCK_R)
        mask = (i_r < stop)[:, None] & m_c[None, :]
        x = _tile(p_x, group.to(tl.int64) * rows + i_r, i_c, channels, mask)
        n_b = tl.sum(mask.to(tl.float32), 0)
        mean_b = tl.sum(x, 0) / tl.maximum(n_b, 1.0)
        deviation = tl.where(mask, x - mean_b[None, :], 0.0)
        count, mean, m2 = _joined(count, mean, m2, n_b, mean_b, tl.sum(deviation * deviation, 0))
    at = (part * groups + group) * channels + i_c
    size = parts * groups * channels
    tl.store(p_part + at, count, mask=m_c)
    tl.store(p_part + size + at, mean, mask=m_c)
    tl.store(p_part + 2 * size + at, m2, mask=m_c)


@triton.jit
def _combine(p_part: tl.tensor, p_mean: tl.tensor, p_var: tl.tensor, parts: tl.tensor, channels: tl.tensor, BLOCK_C: tl.constexpr):
    """(3, parts, G, C) to mean and variance (G, C)."""
    group, groups = tl.program_id(1), tl.num_programs(1)
    i_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = i_c < channels
    size = parts * groups * channels
    count = tl.zeros((BLOCK_C,), tl.float32)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    for part in range(0, parts):
        at = p_part + (part * groups + group) * channels + i_c
        n_b = tl.load(at, mask=m_c, other=0.0)
        mean_b = tl.load(at + size, mask=m_c, other=0.0)
        m2_b = tl.load(at + 2 * size, mask=m_c, other=0.0)
        count, mean, m2 = _joined(count, mean, m2, n_b, mean_b, m2_b)
    tl.store(p_mean + group * channels + i_c, mean, mask=m_c)
    tl.store(p_var + group * channels + i_c, m2 / count, mask=m_c)


@triton.jit
def _channel(p: tl.tensor, at: tl.tensor, mask: tl.tensor):
    return tl.load(p + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _normalise(
    p_x: tl.tensor, p_residual: tl.tensor, p_y: tl.tensor,  # (G * rows, C)
    p_mean: tl.tensor, p_var: tl.tensor,  # (G, C)
    p_weight: tl.tensor, p_bias: tl.tensor,  # (C,)
    rows: tl.int64, channels: tl.tensor, eps: tl.float32,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):
    group = tl.program_id(2)
    i_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = i_c < channels
    i_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (i_r < rows)[:, None] & m_c[None, :]
    i_r += group.to(tl.int64) * rows
    mean = _channel(p_mean, group * channels + i_c, m_c)
    inverse = 1.0 / tl.sqrt(_channel(p_var, group * channels + i_c, m_c) + eps)
    u = (_tile(p_x, i_r, i_c, channels, mask) - mean[None, :]) * inverse[None, :]
    y = u * _channel(p_weight, i_c, m_c)[None, :] + _channel(p_bias, i_c, m_c)[None, :]
    if RESIDUAL:
        y += _tile(p_residual, i_r, i_c, channels, mask)
    if RELU:
        y = tl.where(y <= 0.0, 0.0, y)  # not max: NaN must stay
    tl.store(p_y + i_r[:, None] * channels + i_c[None, :], y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit
def _upstream(p: tl.tuple, i_r: tl.tensor, i_c: tl.tensor, channels: tl.tensor, mask: tl.tensor, affine: tl.tuple,
              RESIDUAL: tl.constexpr, RELU: tl.constexpr):
    """(dz, u) of a tile: the gradient behind the ReLU, whose mask is made again, and the normalised input."""
    mean, inverse, weight, bias = affine
    u = (_tile(p[1], i_r, i_c, channels, mask) - mean[None, :]) * inverse[None, :]
    dz = _tile(p[0], i_r, i_c, channels, mask)
    if RELU:
        y = u * weight[None, :] + bias[None, :]
        if RESIDUAL:
            y += _tile(p[2], i_r, i_c, channels, mask)
        dz = tl.where(y <= 0.0, 0.0, dz)
    return dz, u


@triton.jit
def _affine(p_mean: tl.tensor, p_var: tl.tensor, p_weight: tl.tensor, p_bias: tl.tensor, group: tl.tensor, i_c: tl.tensor,
            channels: tl.tensor, eps: tl.tensor):
    m_c = i_c < channels
    inverse = 1.0 / tl.sqrt(_channel(p_var, group * channels + i_c, m_c) + eps)
    return (_channel(p_mean, group * channels + i_c, m_c), inverse, _channel(p_weight, i_c, m_c), _channel(p_bias, i_c, m_c))


@triton.jit
def _reduce(
    p_grad: tl.tensor, p_x: tl.tensor, p_residual: tl.tensor,  # (G * rows, C)
    p_mean: tl.tensor, p_var: tl.tensor, p_weight: tl.tensor, p_bias: tl.tensor,
    p_part: tl.tensor,  # (2, parts, G, C) fp32: sums of dz and of dz u
    rows: tl.int64, rows_per_part: tl.int64, channels: tl.tensor, eps: tl.float32,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):
    part, group = tl.program_id(1), tl.program_id(2)
    parts, groups = tl.num_programs(1), tl.num_programs(2)
    i_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = i_c < channels
    affine = _affine(p_mean, p_var, p_weight, p_bias, group, i_c, channels, eps)
    start = part.to(tl.int64) * rows_per_part
    stop = tl.minimum(start + rows_per_part, rows)
    total = tl.zeros((BLOCK_C,), tl.float32)
    product = tl.zeros((BLOCK_C,), tl.float32)
    for r in range(start, stop, BLOCK_R):
        i_r = r + tl.arange(0, BLOCK_R)
        mask = (i_r < stop)[:, None] & m_c[None, :]
        dz, u = _upstream((p_grad, p_x, p_residual), group.to(tl.int64) * rows + i_r, i_c, channels, mask, affine, RESIDUAL, RELU)
        total += tl.sum(dz, 0)
        product += tl.sum(dz * u, 0)
    at = (part * groups + group) * channels + i_c
    tl.store(p_part + at, total, mask=m_c)
    tl.store(p_part + parts * groups * channels + at, product, mask=m_c)


@triton.jit
def _pull(
    p_grad: tl.tensor, p_x: tl.tensor, p_residual: tl.tensor, p_dx: tl.tensor, p_dresidual: tl.tensor,  # (G * rows, C)
    p_mean: tl.tensor, p_var: tl.tensor, p_weight: tl.tensor, p_bias: tl.tensor,
    p_sums: tl.tensor,  # (2, G, C): sums of dz and of dz u
    rows: tl.int64, channels: tl.tensor, eps: tl.float32,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):
    group, groups = tl.program_id(2), tl.num_programs(2)
    i_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = i_c < channels
    affine = _affine(p_mean, p_var, p_weight, p_bias, group, i_c, channels, eps)
    i_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (i_r < rows)[:, None] & m_c[None, :]
    i_r += group.to(tl.int64) * rows
    dz, u = _upstream((p_grad, p_x, p_residual), i_r, i_c, channels, mask, affine, RESIDUAL, RELU)
    number = rows.to(tl.float32)
    mean_dz = _channel(p_sums, group * channels + i_c, m_c) / number
    mean_product = _channel(p_sums, (groups + group) * channels + i_c, m_c) / number
    dx = (affine[2] * affine[1])[None, :] * (dz - mean_dz[None, :] - u * mean_product[None, :])
    at = i_r[:, None] * channels + i_c[None, :]
    tl.store(p_dx + at, dx.to(p_dx.dtype.element_ty), mask=mask)
    if RESIDUAL and RELU:  # without relu it is the incoming gradient itself
        tl.store(p_dresidual + at, dz.to(p_dresidual.dtype.element_ty), mask=mask)


class _Plan(NamedTuple):
    """How one call is cut."""

    rows: int  # of a group
    groups: int
    parts: int
    rows_per_part: int
    block_c: int
    column_blocks: int


def _plan(x: Tensor, group: int) -> _Plan:
    rows, groups, channels = group * x.shape[2:].numel(), x.shape[0] // group, x.shape[1]
    block_c = min(64, triton.next_power_of_2(channels))
    column_blocks = triton.cdiv(channels, block_c)
    parts = max(1, min(triton.cdiv(rows, 4 * _BLOCK_R), _PROGRAMS // (column_blocks * groups)))
    rows_per_part = triton.cdiv(triton.cdiv(rows, parts), _BLOCK_R) * _BLOCK_R
    return _Plan(rows, groups, triton.cdiv(rows, rows_per_part), rows_per_part, block_c, column_blocks)


def _last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("dsengine::batch_norm_forward", mutates_args=())
def forward(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, group: int, eps: float,
            relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(y channels-last in the dtype of x, mean (G, C) fp32, var (G, C) fp32)."""
    x, residual = _last(x), _last(residual)
    plan, channels = _plan(x, group), x.shape[1]
    y = torch.empty_like(x)
    mean, var = (torch.empty(plan.groups, channels, dtype=torch.float32, device=x.device) for _ in range(2))
    part = torch.empty(3, plan.parts, plan.groups, channels, dtype=torch.float32, device=x.device)
    blocks = dict(BLOCK_R=_BLOCK_R, BLOCK_C=plan.block_c)
    with torch.cuda.device_of(x):
        _moments[(plan.column_blocks, plan.parts, plan.groups)](x, part, plan.rows, plan.rows_per_part, channels, **blocks)
        _combine[(plan.column_blocks, plan.groups)](part, mean, var, plan.parts, channels, BLOCK_C=plan.block_c)
        _normalise[(triton.cdiv(plan.rows, _BLOCK_R), plan.column_blocks, plan.groups)](
            x, x if residual is None else residual, y, mean, var, weight, bias, plan.rows, channels, eps,
            RESIDUAL=residual is not None, RELU=relu, **blocks)
    return y, mean, var


@forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, group: int, eps: float, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    statistics = [x.new_empty((x.shape[0] // group, x.shape[1]), dtype=torch.float32) for _ in range(2)]
    return torch.empty_like(x, memory_format=torch.channels_last), *statistics


@torch.library.custom_op("dsengine::batch_norm_backward", mutates_args=())
def backward(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor, var: Tensor, group: int,
             eps: float, relu: bool, has_residual: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight fp32, dbias fp32, dresidual, which is empty where it is grad_y itself or there is none)."""
    grad_y, x, residual = _last(grad_y), _last(x), _last(residual)
    plan, channels = _plan(x, group), x.shape[1]
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if has_residual and relu else x.new_empty(0)
    part = torch.empty(2, plan.parts, plan.groups, channels, dtype=torch.float32, device=x.device)
    inputs = grad_y, x, x if residual is None else residual
    statistics = mean, var, weight, bias
    options = dict(RESIDUAL=residual is not None, RELU=relu, BLOCK_R=_BLOCK_R, BLOCK_C=plan.block_c)
    with torch.cuda.device_of(x):
        _reduce[(plan.column_blocks, plan.parts, plan.groups)](
            *inputs, *statistics, part, plan.rows, plan.rows_per_part, channels, eps, **options)
        sums = part.sum(1)
        _pull[(triton.cdiv(plan.rows, _BLOCK_R), plan.column_blocks, plan.groups)](
            *inputs, dx, dresidual, *statistics, sums, plan.rows, channels, eps, **options)
    dbias, dweight = sums.sum(1)
    return dx, dweight.clone(), dbias.clone(), dresidual


@backward.register_fake
def _(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor, var: Tensor, group: int, eps: float,
      relu: bool, has_residual: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    sums = [x.new_empty(x.shape[1:2], dtype=torch.float32) for _ in range(2)]
    return dx, *sums, torch.empty_like(dx) if has_residual and relu else x.new_empty(0)


def aot_cases() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    """(name, kernel, signature, constants and compile options) in bf16, for a compile without a GPU."""
    shape = dict(BLOCK_R=_BLOCK_R, BLOCK_C=64)
    full = dict(RESIDUAL=True, RELU=True, **shape)
    return [_aot_case("moments", _moments, **shape), _aot_case("combine", _combine, BLOCK_C=64),
            _aot_case("normalise, residual, relu", _normalise, **full), _aot_case("reduce, residual, relu", _reduce, **full),
            _aot_case("pull, residual, relu", _pull, **full)]


def _aot_case(name: str, kernel: object, **constants: object) -> tuple[str, object, dict[str, str], dict[str, object]]:
    single = {"p_part", "p_mean", "p_var", "p_weight", "p_bias", "p_sums"}
    numbers = {"rows": "i64:16", "rows_per_part": "i64:16", "channels": "i32:16", "parts": "i32", "eps": "fp32"}
    signature = {arg: numbers.get(arg, "*fp32:16" if arg in single else "*bf16:16") for arg in kernel.arg_names}
    return name, kernel, signature, constants
