"""Public attention: checks, dtype rule, and the autograd node around the reference or the kernel."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from dsengine.kernels.attention import reference
from dsengine.kernels.backend import uses_triton


class _Attention(torch.autograd.Function):
    """Keeps q, k, v and, for the kernel, two numbers per query; the probabilities are computed again."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
        y, rows = _forward(q, k, v, x, gamma)
        ctx.save_for_backward(q, k, v, gamma, rows)
        ctx.x_dtype = x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_y: Tensor) -> tuple[Tensor, ...]:
        q, k, v, gamma, rows = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            d_q, d_k, d_v, d_gamma = _backward(grad_y.to(q.dtype), q, k, v, gamma, rows)
        return d_q, d_k, d_v, grad_y.to(ctx.x_dtype), d_gamma


def attention(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """`gamma * softmax(q k^T) v + x`, single head, scale 1.0.

    q, k: (B, N, Dk). v: (B, N, Dv), one dtype with q and k; under autocast these three are cast as for a matrix product.
    x: (B, N, Dv), any float dtype. gamma: one element. Any strides. Returns (B, N, Dv) in the wider dtype of v and x.
    The (B, N, N) probabilities are not kept for the backward pass; on a GPU they never reach memory.
    Raises ValueError naming the argument that does not fit.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):
        q, k, v = (t if t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(device)) for t in (q, k, v))
    _check(q, k, v, x, gamma)
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, x, gamma)):
            return _Attention.apply(q, k, v, x, gamma)
        return _forward(q, k, v, x, gamma)[0]


def _forward(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor | None]:
    """y, and each query's largest score and softmax sum if the kernel ran."""
    if not uses_triton(q, x, gamma):
        return reference.attention(q, k, v, x, gamma), None
    from dsengine.kernels.attention import launch

    return launch.forward(q, k, v, x, gamma)


def _backward(grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
    if rows is None:
        return reference.gradients(grad_y, q, k, v, gamma)
    from dsengine.kernels.attention import launch

    return launch.backward(grad_y, q, k, v, gamma, rows)


def _check(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> None:
    if q.ndim != 3 or k.shape != q.shape:
        raise ValueError(f"attention: q and k must be (B, N, Dk) alike, got q {tuple(q.shape)}, k {tuple(k.shape)}")
    if v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(f"attention: v must be ({q.shape[0]}, {q.shape[1]}, Dv), got {tuple(v.shape)}")
    if x.shape != v.shape:
        raise ValueError(f"attention: x must be {tuple(v.shape)} like v, got {tuple(x.shape)}")
    if gamma.numel() != 1:
        raise ValueError(f"attention: gamma must have one element, got {tuple(gamma.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    for name, t in (("q", q), ("v", v)):
        if t.numel() == 0:
            raise ValueError(f"attention: {name} must not be empty, got {tuple(t.shape)}")
    for name, t in (("k", k), ("v", v), ("x", x), ("gamma", gamma)):
        if t.device != q.device:
            raise ValueError(f"attention: {name} must be on {q.device} like q, got {t.device}")
