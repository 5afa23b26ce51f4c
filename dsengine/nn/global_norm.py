"""BatchNorm of one group that is the whole global batch of a view: our own synchronised norm, on a CPU as on GPUs.

    m_r, v_r = mean and variance of rank r's samples, of n numbers a channel; gathered once in forward
    mean = mean of m_r,   var = mean of (v_r + (m_r - mean)^2),   u = (x - mean) / sqrt(var + eps)
    dx = (du - mean du - u mean(du u)) / sqrt(var + eps)           both means over all ranks, gathered once in backward

Source: Ioffe, Szegedy, ICML 2015; the moments of several sets together are those of Chan, Golub, LeVeque, 1983. Each rank differentiates its own
mean loss, and gradients are averaged over ranks: the formula is linear in du, so that is the gradient of the global mean.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup

from dsengine.dist import gather_rows

_CELLS = (1, 3, 4)  # of (V, B, C, h, w): all but view and channel


class _Whiten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, views: int, eps: float, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
        wide = _by_view(x, views)
        own_var, own_mean = torch.var_mean(wide, _CELLS, correction=0)
        means, variances = gather_rows(torch.stack((own_mean, own_var))[None], group).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        inverse = (var + eps).rsqrt()
        ctx.save_for_backward(x, mean, inverse)
        ctx.views, ctx.group = views, group
        ctx.mark_non_differentiable(mean, var)
        return _whitened(wide, mean, inverse).flatten(0, 1), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_u: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, mean, inverse = ctx.saved_tensors
        u, du = _whitened(_by_view(x, ctx.views), mean, inverse), _by_view(grad_u, ctx.views)
        own = torch.stack((du.mean(_CELLS), (du * u).mean(_CELLS)))
        shift, pull = gather_rows(own[None], ctx.group).mean(0)
        dx = (du - _spread(shift) - u * _spread(pull)) * _spread(inverse)
        return dx.flatten(0, 1).to(x.dtype), None, None, None


def whiten(x: Tensor, *, views: int, eps: float, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """x (V * B, C, h, w), B equal on all ranks -> (u, like x in at least fp32; mean (V, C); var (V, C) of n numbers, not n - 1)."""
    return _Whiten.apply(x, views, eps, group)


def _by_view(x: Tensor, views: int) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (views, -1))


def _whitened(x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    return (x - _spread(mean)) * _spread(inverse)


def _spread(x_VC: Tensor) -> Tensor:
    """(V, C) so that it broadcasts over (V, B, C, h, w)."""
    return x_VC[:, None, :, None, None]
