"""An encoder whose step costs next to nothing, so that what the engine adds can be seen."""

from dataclasses import dataclass

import torch
from torch import nn

from dsengine.encoders import Features


@dataclass(frozen=True, kw_only=True)
class Config:
    """No settings."""


class Tiny(nn.Module):
    """One small convolution: (B, C, h, w) -> Features((B, 8), (B, 8, h/4, w/4))."""

    dim = 8

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, self.dim, 4, 4)

    def forward(self, x: torch.Tensor) -> Features:
        dense = self.conv(x)
        return Features(dense.mean((2, 3)), dense)


def build(config: Config, in_channels: int) -> nn.Module:
    """A fresh encoder."""
    return Tiny(in_channels)
