"""Public grouped BatchNorm: checks, and the autograd node around the kernel; CPU tensors take torch's own kernel a group."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from dsengine.kernels.backend import uses_triton
from dsengine.kernels.batchnorm.reference import Normed


class _BatchNorm(torch.autograd.Function):
    """Saves x (the convolution's output, which its own backward does not need) and the residual, and no mask: that is recomputed."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, group: int, eps: float,
                relu: bool) -> tuple[Tensor, Tensor, Tensor]:
        from dsengine.kernels.batchnorm import kernel

        y, mean, var = kernel.forward(x, weight, bias, residual, group, eps, relu)
        ctx.save_for_backward(x, weight, bias, residual if relu else None, mean, var)
        ctx.settings = group, eps, relu, residual is not None
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_y: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        from dsengine.kernels.batchnorm import kernel

        x, weight, bias, residual, mean, var = ctx.saved_tensors
        group, eps, relu, has_residual = ctx.settings
        dx, dweight, dbias, dresidual = kernel.backward(grad_y, x, weight, bias, residual, mean, var, group, eps, relu, has_residual)
        if has_residual and not relu:
            dresidual = grad_y
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dresidual if has_residual else None, None, None, None


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, *, group: int, eps: float = 1e-5, residual: Tensor | None = None,
               relu: bool = False) -> Normed:
    """Normalise groups of samples by their own statistics, add `residual`, apply ReLU (definition in `reference.py`).

    x (B, C, h, w) of any float dtype, B a multiple of `group`: groups lie one after the other. weight, bias (C,). residual: like x;
    one of another dtype is cast. y is in the dtype of x, channels-last on a GPU. mean and var (G, C), var of n numbers, carry no
    gradient. Statistics and sums are in at least fp32. Deterministic. Raises ValueError naming the argument.
    """
    _check(x, weight, bias, group, residual)
    residual = None if residual is None else residual.to(x.dtype)
    if uses_triton(x, residual):
        with torch.autocast(x.device.type, enabled=False):
            return Normed(*_BatchNorm.apply(x, weight, bias, residual, group, eps, relu))
    exact = torch.promote_types(x.dtype, torch.float32)  # torch keeps its statistics in the dtype of the weight
    parts = [torch.native_batch_norm(part, weight.to(exact), bias.to(exact), None, None, True, 0.0, eps) for part in x.split(group)]
    y, mean, invstd = zip(*parts, strict=True)
    y = y[0] if len(y) == 1 else torch.cat(y)
    y = y if residual is None else y + residual
    var = (torch.stack(invstd).detach().pow(-2) - eps).clamp(min=0)  # rounded, that of equal numbers may fall below 0
    return Normed(y.relu_() if relu else y, torch.stack(mean).detach(), var)


def _check(x: Tensor, weight: Tensor, bias: Tensor, group: int, residual: Tensor | None) -> None:
    if x.ndim != 4 or x.numel() == 0 or not x.dtype.is_floating_point:
        raise ValueError(f"batch_norm: x must be (B, C, h, w) of floats and not empty, got {x.dtype} {tuple(x.shape)}")
    if group < 1 or x.shape[0] % group:
        raise ValueError(f"batch_norm: group must divide the {x.shape[0]} samples of x, got {group}")
    if group * x.shape[2:].numel() == 1:
        raise ValueError("batch_norm: one sample of one cell has no variance; take a larger group")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != x.shape[1:2] or tensor.device != x.device:
            raise ValueError(f"batch_norm: {name} must be ({x.shape[1]},) on {x.device} like x, got {tuple(tensor.shape)} on {tensor.device}")
    if residual is not None and (residual.shape != x.shape or residual.device != x.device):
        raise ValueError(f"batch_norm: residual must be {tuple(x.shape)} on {x.device} like x, got {tuple(residual.shape)} on {residual.device}")
