"""ResNet34 of the first paper (Table 6): 21,319,168 parameters at 14 bands."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from dsengine.encoders import Start
from dsengine.encoders._resnet import ResNet


@dataclass(frozen=True, kw_only=True)
class Config(Start):
    """The shape is the paper's; `imagenet` adds the max-pool that public weights were trained with."""

    stem: Literal["paper", "imagenet"] = "paper"
    whiten: bool = False  # decorrelate the bands first (`nn.whitening`), by their covariance in the training split
    zero_init_residual: bool = False  # start each block as its shortcut (torchvision's option of that name)


def build(config: Config, in_channels: int) -> nn.Module:
    """A fresh encoder for (B, in_channels, H, W); pooled features have 512 entries."""
    return ResNet((3, 4, 6, 3), in_channels, stem=config.stem, whiten=config.whiten, zero_init_residual=config.zero_init_residual)
