"""`encoder.whiten`: the covariance of what an encoder is shown, measured once before the first step; what comes of it is saved with the weights."""

from typing import NamedTuple

import torch
from torch import Tensor

from dsengine.config import RunConfig
from dsengine.corpus import Corpus
from dsengine.data.open import open_heldout
from dsengine.data.sample import View, sized
from dsengine.errors import UsageError
from dsengine.methods import inputs
from dsengine.nn.whitening import whitener

PATCHES = 512  # at most this many of the training split


class Measured(NamedTuple):
    """The whitening of one encoder."""

    matrix: Tensor  # (C, C) float64
    says: str


def measure(config: RunConfig, corpus: Corpus) -> dict[str, Measured]:
    """What each encoder with the setting `whiten` begins with, by its key. UsageError for bands that are drawn anew for each sample."""
    found = {}
    for key, view in inputs(config.method, config.method_config).items():
        _, settings = config.encoder_of(key)
        if not getattr(settings, "whiten", False):
            continue
        if view.draw_bands:
            raise UsageError("encoder.whiten=true: the encoder sees bands drawn anew for each sample, which have no covariance; legal: false")
        bands = covariance(corpus, view, where=config.data.where, size=config.data.size)
        widths = torch.linalg.eigvalsh(bands)
        says = f"bands whitened; the widest of {len(bands)} directions held {float(widths[-1] / widths.sum()):.0%} of their variance"
        found[key] = Measured(whitener(bands), says)
    return found


def covariance(corpus: Corpus, view: View, *, where: str | None, size: int) -> Tensor:
    """(C, C) float64 covariance of the z-scored bands of `view` over the pixels of training patches that have data in every band."""
    total, squares, count = 0.0, 0.0, 0
    with open_heldout(corpus, sized((View(bands=view.bands, sensor=view.sensor),), size), 64, split="train", where=where, limit=PATCHES) as batches:
        for batch in batches:
            pixels = batch.views[0].permute(0, 2, 3, 1).flatten(0, 2).double()
            pixels = pixels[(pixels != 0).all(1)]
            total, squares, count = total + pixels.sum(0), squares + pixels.T @ pixels, count + len(pixels)
    if count <= len(squares):
        raise UsageError(f"encoder.whiten=true: {count} pixels of the training split have data in all bands, too few for their covariance; legal: false")
    mean = total / count
    return squares / count - torch.outer(mean, mean)
