"""Encoders: one file each; the file name is the name. `build_encoder(name, in_channels)` makes one.

A file defines a frozen `Config`, and `build(config, in_channels) -> nn.Module` whose forward returns `Features` and
which carries `in_channels` and `dim`, the length of the pooled vector. INPUT says what it takes: "image" (B, C, H, W), where it is
absent, "pixel" (B, C) or "series" (B, T, C). A Config that extends `Start` can begin with weights that exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from dsengine import plugin
from dsengine.errors import UsageError


class Features(NamedTuple):
    """What every encoder returns."""

    pooled: Tensor  # (B, D)
    dense: Tensor | None  # (B, D, h, w), or None where there is no map


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where an encoder's weights come from; none of it is part of its shape."""

    weights: str | None = None  # a file of public ResNet weights, a run folder, or an export of ours; None: from the seed
    weights_bands: tuple[str, ...] = ()  # names of the file's input channels, where their number does not tell
    # What the file's network was shown: z-scored bands (ImageNet's), or physical values (SSL4EO-S12's Sentinel-2 networks: reflectance).
    weights_input: Literal["zscore", "physical"] = "zscore"


def build_encoder(name: str, in_channels: int = 14, *, bands: Sequence[str] | None = None, **config) -> nn.Module:
    """An encoder: freshly initialised, or with the public weights of the setting `weights`. config: the encoder's own settings.

    in_channels: bands of the view. bands: their names, which public weights are fitted to. Raises UsageError for an unknown name or setting,
    with the nearest legal ones, and for weights that do not fit. Its `recipe` is its name and the settings of its shape.
    """
    settings = plugin.configure(__name__, name, config)
    if in_channels < 1:
        raise UsageError(f"build_encoder: in_channels={in_channels}: must be 1 or more")
    encoder = plugin.find(__name__, name).build(settings, in_channels)
    encoder.recipe = {"name": name, **shape_of(vars(settings))}
    if (path := getattr(settings, "weights", None)) is None:
        return encoder
    if Path(path).is_dir():
        raise UsageError(f"encoder.weights={path}: is a folder; legal: a file, or dsengine.load_encoder for the encoder of a run")
    if bands is None or len(bands) != in_channels:
        raise UsageError(f"build_encoder: weights={path} are fitted by band; legal: bands=[...] with {in_channels} names")
    if settings.weights_input == "physical":
        raise UsageError("build_encoder: weights_input=physical needs the statistics of a corpus; legal: zscore, or train with --set encoder.weights")
    from dsengine.encoders._weights import load_public

    load_public(encoder, path, bands, channels=settings.weights_bands)
    return encoder


def shape_of(settings: dict[str, Any]) -> dict[str, Any]:
    """An encoder's settings without those of `Start`: what has to be equal for saved weights to fit."""
    return {key: value for key, value in settings.items() if key not in Start.__dataclass_fields__}
