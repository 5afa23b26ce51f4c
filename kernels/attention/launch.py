"""Launches the attention kernels: allocation, grids, and the two operators that torch.compile sees."""

import torch
from torch import Tensor

from dsengine.kernels.attention import kernel


@torch.library.custom_op("dsengine::attention_forward", mutates_args=())
def forward(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, N, Dv), contiguous, in the wider dtype of q and x; each query's largest score and softmax sum (2, B, N) fp32."""
    inputs = q, k, v, x = _readable(q, k, v, x)
    y, rows = _forward_outputs(q, x)
    blocks = kernel.forward_blocks(q, v)
    grid = (q.shape[0] * _cdiv(q.shape[1], blocks.block), _cdiv(v.shape[2], blocks.block_dv))
    with torch.cuda.device_of(q):
        kernel.forward[grid](*inputs, gamma, y, *rows, q.shape[1], *_strides(inputs), **blocks.options(q, v, _precision()))
    return y, rows


@torch.library.custom_op("dsengine::attention_backward", mutates_args=())
def backward(grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor,
             rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v (contiguous) and gamma; grad_y in the dtype of q, rows as `forward` made them."""
    inputs = _readable(grad_y, q, k, v)
    dq, dk, dv, dgamma = _backward_outputs(q, v, gamma)
    t = torch.empty_like(rows[0])
    with torch.cuda.device_of(q):
        if q.shape[1] <= kernel.backward_small_blocks(q, v).block:
            kernel.backward_small[(q.shape[0],)](
                *inputs, gamma, *rows, dq, dk, dv, t, q.shape[1], *_strides(inputs),
                **kernel.backward_small_blocks(q, v).options(q, v, _precision()))
        else:
            _backward_large(inputs, gamma, rows, (dq, dk, dv, t))
    return dq, dk, dv, dgamma.copy_(t.sum())


def _backward_large(inputs: tuple[Tensor, ...], gamma: Tensor, rows: Tensor, outputs: tuple[Tensor, ...]) -> None:
    """dq and t first, which dk needs. dk and dv share a kernel where each is one block wide."""
    (_, q, _, v), (dq, dk, dv, t) = inputs, outputs
    common = q.shape[1], *_strides(inputs)
    for_q, for_kv = kernel.backward_q_blocks(q, v), kernel.backward_kv_blocks(q, v)
    grid = q.shape[0] * _cdiv(q.shape[1], for_q.block), _cdiv(q.shape[2], for_q.block_dk)
    kernel.backward_q[grid](*inputs, gamma, *rows, dq, t, *common, **for_q.options(q, v, _precision()))
    programs = q.shape[0] * _cdiv(q.shape[1], for_kv.block)
    for with_k, with_v in kernel.backward_kv_launches(q, v):
        width = _cdiv(q.shape[2], for_kv.block_dk) if with_k else _cdiv(v.shape[2], for_kv.block_dv)
        kernel.backward_kv[programs, width](*inputs, gamma, *rows, t, dk, dv, *common,
                                            **for_kv.options(q, v, _precision()), WITH_K=with_k, WITH_V=with_v)


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    return _forward_outputs(q, x)


@backward.register_fake
def _(grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward_outputs(q, v, gamma)


def _forward_outputs(q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return (torch.empty(x.shape, dtype=torch.promote_types(q.dtype, x.dtype), device=x.device),
            torch.empty(2, *q.shape[:2], dtype=torch.float32, device=x.device))


def _backward_outputs(q: Tensor, v: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, q, v, gamma))


def _readable(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each with its channels side by side in memory, which is all that the kernels ask for; a copy where they are not."""
    return tuple(x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous() for x in tensors)


def _strides(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Those across samples, then those across rows."""
    return *(x.stride(0) for x in tensors), *(x.stride(1) for x in tensors)


def _precision() -> str:
    """How fp32 products run: as torch's own do. TF32 only where torch.set_float32_matmul_precision allows it."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _cdiv(size: int, block: int) -> int:
    return -(-size // block)
