"""Floating-point operations of a cell, counted before it is begun.

    training     steps x batch x those of one sample: forward and backward of the method on a small batch
    landcover    frozen: all rows once through the encoder, then the head alone; fine-tuned: encoder and head.
                 epochs x (train rows forward and backward, thrice the forward + val rows forward) + test rows forward
    other        all rows once through the encoder, for each band that is judged alone

Epochs of land cover are at most: early stopping ends most. Not in it: probes after the encoder, floors, reading, crop networks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dsengine import config as configuration
from dsengine.config import RunConfig
from dsengine.corpus import Band, Corpus, open_corpus
from dsengine.corpus.build.grid import FRACTIONS
from dsengine.corpus.schema import SPLITS, standard_layout
from dsengine.data.sample import Batch, default_crop, num_channels, sized
from dsengine.encoders import build_encoder
from dsengine.engine.plan import total_steps
from dsengine.engine.train import fresh_method
from dsengine.evaluate.segment import Segmenter
from dsengine.methods import corpus_kind
from dsengine.study.cells import Cell
from dsengine.study.spec import Synth

_SIDE = 64  # pixels that operations are counted at, and scaled from by area
_FEW = 4  # samples that they are counted with
_CLASSES = 9  # of the head, where the corpus is not made yet


class Images(NamedTuple):
    """A corpus of patches, there or to be made."""

    bands: tuple[Band, ...]
    patch_size: int
    rows: int
    parts: tuple[float, ...]  # rows of train, val, test by its own split; expected ones, where it is not made yet

    @property
    def train(self) -> int:
        """Rows that pretraining sees."""
        return max(2, round(self.parts[0]))


def operations(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Of the whole cell; None where it cannot be told: crops, corpora of series or pixels, methods that learn from labels."""
    if cell.kind == "corpus":
        return 0.0
    images = images_of(cell, cells)
    if images is None:
        return None
    return _training(cell, images) if cell.kind == "train" else _evaluation(cell, cells, images)


def images_of(cell: Cell, cells: Sequence[Cell]) -> Images | None:
    """Of the cell's corpus; None for series and pixels."""
    recipe = next((other.task for other in cells if other.id == cell.corpus), None)
    if isinstance(recipe, Synth):
        if recipe.kind != "patches":
            return None
        return Images(standard_layout(recipe.size).bands(), recipe.size, recipe.patches, tuple(recipe.patches * share for share in FRACTIONS))
    corpus = open_corpus(cell.corpus)
    if not isinstance(corpus, Corpus):
        return None
    return Images(corpus.bands, corpus.patch_size, len(corpus), tuple(len(corpus.rows(name)) for name in SPLITS))


def of_sample(config: RunConfig, images: Images) -> float | None:
    """Forward and backward of one sample of a training; None for a method that learns from labels, or not from patches."""
    if corpus_kind(config.method) != "patches":
        return None
    method = fresh_method(config, images.bands)
    if method.label is not None:
        return None
    side = side_of(config, images)
    views = tuple(torch.randn(_FEW, num_channels(view, images.bands), _SIDE, _SIDE) for view in sized(method.views, side))
    with FlopCounterMode(display=False) as counter:
        method(Batch(views, torch.arange(_FEW)))["loss"].backward()
    return counter.get_total_flops() / _FEW * (side / _SIDE) ** 2


def batch_of(config: RunConfig, images: Images) -> int:
    """The global batch that the run will choose."""
    chosen = config.train.batch_size or max(8, min(images.train // 4 // 8 * 8, 1024))
    return min(chosen, images.train)


def side_of(config: RunConfig, images: Images) -> int:
    """Pixels of the crops that the run will choose."""
    return config.data.size or default_crop(images.patch_size)


def _training(cell: Cell, images: Images) -> float | None:
    config = configuration.resolve(cell.task)
    sample, batch = of_sample(config, images), batch_of(config, images)
    return None if sample is None else sample * batch * total_steps(config.train, max(1, images.train // batch))


def _evaluation(cell: Cell, cells: Sequence[Cell], images: Images) -> float | None:
    of, setting = cell.task, cell.task.setting
    if of.command == "crops":
        return None
    encoder, side = _encoder(cell, cells, images), setting.size or images.patch_size
    of_encoder = _forward(encoder, encoder.in_channels, side)
    if of.command != "landcover":
        alone = encoder.in_channels < len(images.bands)
        return of_encoder * images.rows * (len(setting.bands or images.bands) if of.command == "scene" and alone else 1)
    whole = _forward(Segmenter(encoder, encoder.dim, setting.channels or _CLASSES, seed=0), encoder.in_channels, side)
    train, val, test = images.parts if setting.split == "corpus" else (images.rows * share for share in setting.fractions)
    crop = (setting.crop or min(side, default_crop(images.patch_size))) if setting.finetune else side
    each = whole if setting.finetune else whole - of_encoder
    once = test * each if setting.finetune else test * each + images.rows * of_encoder
    return setting.epochs * (train * 3 * each * (crop / side) ** 2 + val * each) + once


def _encoder(cell: Cell, cells: Sequence[Cell], images: Images) -> nn.Module:
    if cell.about["untrained"]:
        return build_encoder(cell.about["untrained"], len(images.bands))
    run = next(other for other in cells if other.id in cell.runs.values())
    return next(iter(fresh_method(configuration.resolve(run.task), images.bands).encoders.values()))


@torch.no_grad()
def _forward(module: nn.Module, channels: int, side: int) -> float:
    """Of one image."""
    with FlopCounterMode(display=False) as counter:
        module.eval()(torch.randn(1, channels, _SIDE, _SIDE))
    return counter.get_total_flops() * (side / _SIDE) ** 2
