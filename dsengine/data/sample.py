"""The vocabulary shared by methods and loader: what a sample looks like to a method."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from dsengine.augment.params import Augment
from dsengine.dist import SOLO, World


@dataclass(frozen=True, kw_only=True)
class View:
    """One crop of the sample, as a method wants it. Views of one sample share the crop's base offset."""

    size: int | None = None  # side of the crop, pixels of the finest ground resolution; None is the run's data.size
    bands: tuple[str, ...] | None = None  # names in corpus order; None is every band, S2 then S1
    augment: Augment = Augment()


class Batch(NamedTuple):
    """What a method's forward receives: this rank's rows of one global batch."""

    views: tuple[Tensor, ...]  # one per View, (B, C, h, w), channels-last, z-scored, nodata 0
    sample_id: Tensor  # (B,) int64 row in the corpus
    label: Tensor | None = None
    seed: int = 0  # with step, the key of every draw the method makes itself
    step: int = 0
    world: World = SOLO  # whose rows make up the global batch


def default_crop(patch_size: int) -> int:
    """Side of the crop when none is asked for: leaves 16 px to move in, at most the papers' 128, a multiple of 16."""
    return min(128, (patch_size - 16) // 16 * 16) if patch_size >= 32 else patch_size


def sized(views: tuple[View, ...], size: int) -> tuple[View, ...]:
    """The same views, with `size` where a view names none."""
    return tuple(replace(view, size=size) if view.size is None else view for view in views)
