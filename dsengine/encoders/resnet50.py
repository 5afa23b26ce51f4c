"""ResNet50 of the third paper, one band or several: 23,542,528 parameters at 14 bands, 23,501,760 at one."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from dsengine.encoders import Start
from dsengine.encoders._resnet import ResNet


@dataclass(frozen=True, kw_only=True)
class Config(Start):
    """torchvision's shape; `paper` leaves out the max-pool, as the first paper's ResNets do."""

    stem: Literal["paper", "imagenet"] = "imagenet"
    whiten: bool = False  # decorrelate the bands first (`nn.whitening`), by their covariance in the training split
    zero_init_residual: bool = False  # start each block as its shortcut (torchvision's option of that name)


def build(config: Config, in_channels: int) -> nn.Module:
    """A fresh encoder for (B, in_channels, H, W); pooled features have 2048 entries."""
    return ResNet((3, 4, 6, 3), in_channels, bottleneck=True, stem=config.stem, whiten=config.whiten, zero_init_residual=config.zero_init_residual)
