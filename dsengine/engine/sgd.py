"""SGD with momentum, and LARS: one optimiser, whose update is withheld on the device when a gradient is not finite.

    g <- gradient + weight_decay * p
    g <- g * eta |p| / |g|                    LARS, in groups that adapt, where both norms are above 0
    m <- momentum * m + g                     (or g + momentum * m with `nesterov`)
    p <- p - lr * m

Sources: You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017, in the form that later
contrastive methods' published code has: the decay is inside the adapted gradient, and biases and norms are neither decayed nor adapted. torch's own fused SGD
leaves its momentum unset when the first step is withheld, hence this one.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class SGD(torch.optim.Optimizer):
    """`eta` is LARS's trust coefficient; 0 is plain SGD. Set `found_inf` to a tensor () of 1 to withhold an update, as in torch's fused ones."""

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False,
                 eta: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, eta=eta))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update from the gradients; parameters without one are left."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        gradients = [p.grad for p in parameters]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        if group["eta"]:
            gradients = _adapted(gradients, parameters, group["eta"])
        old_momenta = [self._momentum(p) for p in parameters]
        momenta = torch._foreach_add(torch._foreach_mul(old_momenta, group["momentum"]), gradients)
        moves = torch._foreach_add(gradients, momenta, alpha=group["momentum"]) if group["nesterov"] else momenta
        moved = torch._foreach_add(parameters, moves, alpha=-group["lr"])
        for old, new in zip((*old_momenta, *parameters), (*momenta, *moved), strict=True):
            old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["momentum"]


def _adapted(gradients: list[Tensor], parameters: list[Tensor], eta: float) -> list[Tensor]:
    """Each gradient scaled to eta times its parameter's norm; as it is where either is 0."""
    sizes, lengths = torch._foreach_norm(parameters), torch._foreach_norm(gradients)
    trusts = [torch.where((size > 0) & (length > 0), eta * size / length, 1.0) for size, length in zip(sizes, lengths)]
    return torch._foreach_mul(gradients, trusts)
