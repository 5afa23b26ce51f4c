"""Encoders: one file each; the file name is the name. `build_encoder(name, in_channels)` makes one.

A file defines a frozen `Config`, and `build(config, in_channels) -> nn.Module` whose forward returns `Features` and
which carries `dim`, the length of the pooled vector.
"""

from typing import NamedTuple

from torch import Tensor, nn

from dsengine import plugin


class Features(NamedTuple):
    """What every encoder returns."""

    pooled: Tensor  # (B, D)
    dense: Tensor | None  # (B, D, h, w), or None where there is no map


def build_encoder(name: str, in_channels: int = 14, **config) -> nn.Module:
    """A freshly initialised encoder. in_channels: bands of the view. config: the encoder's own settings.

    Raises UsageError for an unknown name or setting, with the nearest legal ones.
    """
    settings = plugin.configure(__name__, name, config)
    return plugin.find(__name__, name).build(settings, in_channels)
