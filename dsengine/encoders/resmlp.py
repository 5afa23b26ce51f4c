"""ResMLP of the second paper, for one pixel of a table: 598,016 parameters at 12 bands, 604,160 at 36.

    h = Linear(in, 256)(x)
    h = h + dropout(Linear(dropout(relu(Linear(BN(h))))))      four times: the paper's eight layers
    y = Linear(256, 256)(relu(BN(h)))

Source: Patnala et al.; shape and initialisation (torch's own of a Linear and a BatchNorm) as in their code. 12 inputs are the bands of a
Sentinel-2 pixel, 36 the four bands of the 3 x 3 Planet pixels in it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.encoders import Features, Start
from dsengine.errors import UsageError
from dsengine.nn.dropout import KeyedDropout
from dsengine.nn.heads import GroupedBatchNorm1d

INPUT = "pixel"


@dataclass(frozen=True, kw_only=True)
class Config(Start):
    """The defaults are the paper's."""

    width: int = 256  # of every layer and of the features
    blocks: int = 4  # residual blocks, two Linear layers each
    dropout: float = 0.0  # after each Linear of a block

    def __post_init__(self) -> None:
        for name in ("width", "blocks"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout={self.dropout}: must be in [0, 1)")


class Block(nn.Module):
    """(B, width) -> the same: x plus two Linear layers of its BatchNorm."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.bn = GroupedBatchNorm1d(width)
        self.linear1, self.dropout1 = nn.Linear(width, width), KeyedDropout(dropout)
        self.linear2, self.dropout2 = nn.Linear(width, width), KeyedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout1(F.relu(self.linear1(self.bn(x))))
        return x + self.dropout2(self.linear2(y))


class ResMLP(nn.Module):
    """(B, in_channels) -> Features((B, width), None)."""

    def __init__(self, config: Config, in_channels: int) -> None:
        super().__init__()
        self.in_channels, self.dim = in_channels, config.width
        self.inlet = nn.Linear(in_channels, config.width)
        self.blocks = nn.Sequential(*(Block(config.width, config.dropout) for _ in range(config.blocks)))
        self.bn = GroupedBatchNorm1d(config.width)
        self.outlet = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Features:
        if x.shape[1:] != (self.in_channels,):
            raise UsageError(f"resmlp takes pixels (B, {self.in_channels}), got {tuple(x.shape)}; legal: a corpus of pixels")
        y = self.outlet(F.relu(self.bn(self.blocks(self.inlet(x)))))
        return Features(y.to(torch.promote_types(y.dtype, torch.float32)), None)


def build(config: Config, in_channels: int) -> nn.Module:
    """A fresh encoder for (B, in_channels); pooled features have `width` entries."""
    return ResMLP(config, in_channels)
