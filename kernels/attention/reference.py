"""Definition of the SAGAN attention block and its closed-form gradient.

    P = softmax(q k^T)   over keys, no 1/sqrt(Dk) scale
    y = gamma * P v + x

    T_ij = dy_i . v_j,   t_i = sum_j P_ij T_ij,   S_ij = P_ij (T_ij - t_i)
    dq = gamma S k,   dk = gamma S^T q,   dv = gamma P^T dy,   dx = dy,   dgamma = sum_i t_i

P is computed again in the backward pass instead of kept: (B, N, N) is the largest tensor here, and cheap. The gradient
needs no P v either, so y is not kept and gamma = 0, where every block starts, is no special case.
Source: Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019, eqs. 1-3; the first paper's
ResNet18-Attn places one after layer3 (N = 256, Dv = 256) and one after layer4 (N = 64, Dv = 512).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Gradients(NamedTuple):
    """In the order of the arguments; that of x is the one of y."""

    q: Tensor
    k: Tensor
    v: Tensor
    gamma: Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """q, k (B, N, Dk); v, x (B, N, Dv); gamma, one element -> (B, N, Dv), in the wider dtype of q and x."""
    y = gamma * (_probabilities(q, k).to(v.dtype) @ v) + x
    return y.to(torch.promote_types(q.dtype, x.dtype))


def gradients(grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Gradients:
    """Closed form; grad_y (B, N, Dv) in the dtype of q."""
    p = _probabilities(q, k)
    t = (grad_y @ v.mT).to(p.dtype)
    mean = (p * t).sum(-1, keepdim=True)
    s = (gamma * p * (t - mean)).to(q.dtype)
    grad_v = (gamma * p).to(v.dtype).mT @ grad_y
    return Gradients(s @ k, s.mT @ q, grad_v, mean.sum().reshape(gamma.shape).to(gamma.dtype))


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """(B, N, N), in at least fp32: they are rounded to the dtype of v only where they are multiplied with it."""
    return torch.softmax(q @ k.mT, -1, dtype=torch.promote_types(q.dtype, torch.float32))
