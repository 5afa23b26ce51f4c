"""An encoder whose step takes milliseconds, and one that one rank is slow with."""

import os
import time
from dataclasses import dataclass

from torch import Tensor, nn

from dsengine.encoders import Features
from dsengine.nn.norm import GroupedBatchNorm2d


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    slow_rank: int = -1  # this rank sleeps
    sleep_s: float = 0.0


class Small(nn.Module):
    """Two convolutions with a BatchNorm between them: (B, C, h, w) -> Features((B, 24), (B, 24, h/8, w/8))."""

    dim = 24

    def __init__(self, config: Config, in_channels: int) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.first = nn.Conv2d(in_channels, 24, 4, 4, bias=False)
        self.norm = GroupedBatchNorm2d(24)
        self.second = nn.Conv2d(24, self.dim, 2, 2)

    def forward(self, x: Tensor) -> Features:
        if int(os.environ.get("RANK", 0)) == self.config.slow_rank:
            time.sleep(self.config.sleep_s)
        dense = self.second(self.norm(self.first(x), relu=True))
        return Features(dense.mean((2, 3)), dense)


def build(config: Config, in_channels: int) -> Small:
    """A fresh encoder."""
    return Small(config, in_channels)
