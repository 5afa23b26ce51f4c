"""SimCLR that goes wrong from step `at` (counted from 1) on, in the way `fault` says."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsengine.data.sample import Batch, View
from dsengine.kernels import nt_xent
from dsengine.methods import Method
from dsengine.augment.params import Augment
from dsengine.nn.collapse import spread


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    fault: str = "none"
    at: int = 1
    until: int = 1_000_000
    rank: int = 0  # whose loss goes wrong


class Breaking(nn.Module):
    """The identity, or a division by zero."""

    broken = False

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.detach() - x.detach()).abs() if self.broken else x


class Sound(nn.Module):
    """The identity, whose gradient is not finite where it is broken."""

    broken = False

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum(1, keepdim=True).sqrt() if self.broken else x


class Faulty(Method):
    """One encoder, two views."""

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config, self.encoders = config, nn.ModuleDict(encoders)
        self.head = nn.Linear(encoders["all"].dim, 16)
        self.silent = nn.Parameter(torch.ones(3))
        self.breaking, self.sound = Breaking(), Sound()
        self.views = (View(augment=Augment(dihedral="shared")), View(augment=Augment(dihedral="shared", shift_px=(2, 2))))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        on = self.config.at <= batch.step + 1 <= self.config.until
        fault = self.config.fault if on else "none"
        self.breaking.broken, self.sound.broken = fault == "module", fault == "gradient"
        pooled = self.encoders["all"](torch.cat(batch.views)).pooled
        if fault == "collapse":
            pooled = pooled * 1e-4 + torch.ones_like(pooled)
        z = self.head(self.sound(self.breaking(pooled)))
        loss = nt_xent(torch.stack(z.chunk(2)), 0.5, batch.world.group)
        kept = self.silent.square().sum() * (0 if fault == "dead" else 1e-3)
        mine = batch.world.rank == self.config.rank
        wrong = {"loss": float("nan") if mine else 1.0, "spike": 3.0}.get(fault, 1.0)
        return {"loss": loss * wrong + kept, "kept": kept.detach(), **spread(pooled.detach())}


def build(config: Config, encoders: dict[str, nn.Module]) -> Faulty:
    """The method around its encoder."""
    return Faulty(config, encoders)
