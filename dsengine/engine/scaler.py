"""fp16's loss scale, on the device: gradients of a scaled loss do not vanish in fp16, and one that overflows costs a step.

    g <- g / scale;  overflow = any g is not finite        the update is withheld, as for any step that is not finite
    scale <- scale / 2 after an overflow, 2 scale after 2,000 steps without one, within [1, 2^24]

Source: Micikevicius et al., "Mixed precision training", ICLR 2018. An overflow at scale 1 is none of fp16's doing, and stops the run.
The state lies in the optimiser's first group, so a checkpoint has it; it is replaced, never written to, so one being saved stays as it was.
"""

import torch
from torch import Tensor

_KEY = "loss_scale"  # (2,): scale, steps since it changed
_START, _MOST, _INTERVAL = 2.0**16, 2.0**24, 2000


class LossScale:
    """The scale of the optimiser's run."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        optimizer.param_groups[0].setdefault(_KEY, torch.tensor([_START, 0.0], device=device))

    @property
    def scale(self) -> Tensor:
        """() fp32."""
        return self.optimizer.param_groups[0][_KEY][0]

    def unscale_(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Divide `gradients` by the scale, then move it. (1.0 where any is not finite, 1.0 where that is so at scale 1), both ()."""
        scale, calm = self.optimizer.param_groups[0][_KEY].unbind()
        overflow = torch.zeros_like(scale)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, scale.reciprocal())
        grows = calm + 1 >= _INTERVAL
        factor = torch.where(overflow > 0, 0.5, torch.where(grows, 2.0, 1.0))
        calm = torch.where((overflow > 0) | grows, 0.0, calm + 1)
        self.optimizer.param_groups[0][_KEY] = torch.stack(((scale * factor).clamp(1.0, _MOST), calm))
        return overflow, overflow * (scale <= 1)
