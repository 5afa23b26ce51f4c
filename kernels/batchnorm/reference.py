"""Definition of grouped BatchNorm, sum and ReLU, and its gradient in closed form.

x (G * group, C, h, w) holds G groups of `group` samples, one after the other. Per group and channel, over n = group * h * w numbers,

    mean = sum x / n,   var = sum (x - mean)^2 / n,   u = (x - mean) / sqrt(var + eps),
    y = relu(weight u + bias + residual),

relu and residual where asked. Ioffe & Szegedy, ICML 2015, algorithm 1, with the mini-batch being a group. With dz = dy where y > 0
(all of dy without relu), the gradient is

    dresidual = dz,   dbias = sum dz,   dweight = sum dz u,
    dx = weight / sqrt(var + eps) (dz - mean dz - u mean(dz u)),

sums of dweight and dbias over all groups, means within the group.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Normed(NamedTuple):
    """What a training step has of a BatchNorm."""

    y: Tensor  # like x
    mean: Tensor  # (G, C), in at least fp32
    var: Tensor  # (G, C), of n numbers, not n - 1


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, *, group: int, eps: float, residual: Tensor | None = None,
               relu: bool = False) -> Normed:
    """The definition, differentiable, in the wider of x's dtype and fp32; y in the dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    groups = wide.unflatten(0, (-1, group))
    mean = groups.mean((1, 3, 4))
    var = (groups - mean[:, None, :, None, None]).square().mean((1, 3, 4))
    u = ((groups - mean[:, None, :, None, None]) / (var[:, None, :, None, None] + eps).sqrt()).flatten(0, 1)
    y = u * weight[:, None, None] + bias[:, None, None] + (0 if residual is None else residual)
    return Normed((y.relu() if relu else y).to(x.dtype), mean.detach(), var.detach())


def gradients(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, group: int, eps: float, residual: Tensor | None = None,
              relu: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dresidual) by the formulas above; nothing is differentiated."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (-1, group))
    y, mean, var = batch_norm(x, weight, bias, group=group, eps=eps, residual=residual, relu=relu)
    inverse = (var + eps).rsqrt()[:, None, :, None, None]
    u = (wide - mean[:, None, :, None, None]) * inverse
    dz = (torch.where(y > 0, grad_y, 0) if relu else grad_y).unflatten(0, (-1, group)).to(u.dtype)
    pull = dz.mean((1, 3, 4), keepdim=True) + u * (dz * u).mean((1, 3, 4), keepdim=True)
    dx = weight[:, None, None] * inverse * (dz - pull)
    return dx.flatten(0, 1).to(x.dtype), (dz * u).sum((0, 1, 3, 4)), dz.sum((0, 1, 3, 4)), dz.flatten(0, 1).to(x.dtype)
