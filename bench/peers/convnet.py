"""A small encoder from outside the package, beside which loading matters: four convolutions, each halving the map or more.

(B, 14, 112, 112) -> 4 x 4 stride 4 to 32, then 3 x 3 stride 2 to 64, 128, 256 channels; 395,000 parameters. Both sides build the same trunk,
ours with grouped BatchNorm, peers with torch's, and both name parameters alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsengine.encoders import Features
from dsengine.nn.norm import GroupedBatchNorm2d

WIDTHS = (32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Config:
    """No settings."""


class Plain(nn.Module):
    """(B, in_channels, h, w) -> (B, 256): as a user of torch writes it. `num_features` and `children()` are what timm's users look for."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.trunk, self.num_features = trunk(in_channels, nn.BatchNorm2d), WIDTHS[-1]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(self.pool(self.trunk(x)))


class ConvNet(nn.Module):
    """(B, in_channels, h, w) -> Features((B, 256), (B, 256, h/32, w/32)): as an encoder of ours is written."""

    dim = WIDTHS[-1]

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels, self.trunk = in_channels, trunk(in_channels, GroupedBatchNorm2d)

    def forward(self, x: Tensor) -> Features:
        dense = self.trunk(x)
        return Features(dense.mean((2, 3), dtype=torch.promote_types(dense.dtype, torch.float32)), dense)


def trunk(in_channels: int, norm: type[nn.BatchNorm2d]) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, four times."""
    parts: list[nn.Module] = [nn.Conv2d(in_channels, WIDTHS[0], 4, 4, bias=False), norm(WIDTHS[0]), nn.ReLU(inplace=True)]
    for wide, next_wide in zip(WIDTHS, WIDTHS[1:]):
        parts += [nn.Conv2d(wide, next_wide, 3, 2, 1, bias=False), norm(next_wide), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts)


def build(config: Config, in_channels: int) -> nn.Module:
    """A fresh encoder."""
    return ConvNet(in_channels)
