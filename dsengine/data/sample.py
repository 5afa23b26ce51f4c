"""The vocabulary shared by methods and loader: what a sample looks like to a method."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dsengine.augment.params import Augment
from dsengine.dist import SOLO, World


@dataclass(frozen=True, kw_only=True)
class View:
    """One crop of the sample, as a method wants it. Views of one sample share the crop's base offset."""

    size: int  # side of the crop, pixels of the finest ground resolution
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
