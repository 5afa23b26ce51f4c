"""Public attention: checks, then the reference (which is what CPU tensors use)."""

from torch import Tensor

from dsengine.kernels.attention import reference


def attention(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """`gamma * softmax(q k^T) v + x`, single head, scale 1.0.

    q, k: (B, N, Dk). v, x: (B, N, Dv). gamma: one element. Returns (B, N, Dv).
    Raises ValueError naming the argument whose shape does not fit.
    """
    if q.ndim != 3 or k.shape != q.shape:
        raise ValueError(f"attention: q and k must be (B, N, Dk) alike, got q {tuple(q.shape)}, k {tuple(k.shape)}")
    if v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(f"attention: v must be ({q.shape[0]}, {q.shape[1]}, Dv), got {tuple(v.shape)}")
    if x.shape != v.shape:
        raise ValueError(f"attention: x must be {tuple(v.shape)} like v, got {tuple(x.shape)}")
    if gamma.numel() != 1:
        raise ValueError(f"attention: gamma must have one element, got {tuple(gamma.shape)}")
    return reference.attention(q, k, v, x, gamma)
