"""A network that follows another one: the exponential moving average of BYOL's target, weights and buffers.

    theta_target <- tau theta_target + (1 - tau) theta_online        after every step; tau constant or rising to 1
    after k steps of a fixed online network: theta_target = online + tau^k (start - online)

Source: Grill et al., "Bootstrap your own latent", NeurIPS 2020, section 3.1; the cosine rise of tau is its appendix.
"""

import copy
import math

import torch
from torch import Tensor, nn


def follower(module: nn.Module) -> nn.Module:
    """A copy of `module` that takes no gradient and whose BatchNorms normalise by their batch but keep no count of it.

    Their running statistics change by `follow_` alone: a forward pass of the copy would otherwise mix its own into the average.
    """
    copied = copy.deepcopy(module).requires_grad_(False)
    for layer in copied.modules():
        if getattr(layer, "running_mean", None) is not None:
            layer.momentum = 0.0
    return copied


@torch.no_grad()
def follow_(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target <- tau target + (1 - tau) online, in place: parameters and floating-point buffers; other buffers are copied."""
    ours, theirs = _tensors(target), _tensors(online)
    moving = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in moving], [b for _, b in moving], 1 - tau)
    for a, b in zip(ours, theirs, strict=True):
        if not a.is_floating_point():
            a.copy_(b)


def tau_at(start: float, progress: float, *, schedule: str) -> float:
    """tau when `progress` (0 to 1) of the run is done: `start` all along, or on half a cosine from `start` to 1."""
    if schedule == "constant":
        return start
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
