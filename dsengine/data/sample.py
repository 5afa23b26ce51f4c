"""The vocabulary shared by methods and loader: what a sample looks like to a method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from dsengine.augment.params import Augment
from dsengine.dist import SOLO, World
from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus import Band


MEMBERS = ("itself", "neighbour", "distant", "marginals")


@dataclass(frozen=True, kw_only=True)
class View:
    """One look at the sample, as a method wants it: a crop of a patch, or bands of a pixel or series.

    Views of one patch share the crop's base offset. Pixels and series have no size, no draw_bands and no augment.
    """

    size: int | None = None  # side of the crop, pixels of the finest ground resolution; None is the run's data.size
    bands: tuple[str, ...] | None = None  # names in corpus order; None is every band, S2 then S1
    sensor: str | None = None  # the bands of this sensor alone; None: of all
    draw_bands: int | None = None  # as many of these bands, drawn anew for each sample; None: all of them
    # Whose: the sample's; of patches, one drawn near or far from it (data.triples); of tables, each cell that of a row of its own (data.tables).
    of: Literal["itself", "neighbour", "distant", "marginals"] = "itself"
    scale_km: float = 18.2  # of the neighbour's distance: p ~ exp(-km / scale_km)
    augment: Augment = Augment()

    def __post_init__(self) -> None:
        if self.bands is not None and self.sensor is not None:
            raise UsageError(f"view: sensor={self.sensor!r} and bands={self.bands}: give one of them")
        if self.of not in MEMBERS:
            raise UsageError(f"view: of={self.of!r} is not legal: {', '.join(MEMBERS)}")
        if self.draw_bands is not None and (self.draw_bands < 1 or max(self.augment.band_dropout) > 0):
            raise UsageError(f"view: draw_bands={self.draw_bands} is not legal: 1 or more, and with no band_dropout beside it")


class Batch(NamedTuple):
    """What a method's forward receives: this rank's rows of one global batch."""

    # One per View, z-scored, nodata 0: (B, C, h, w) channels-last, (B, C) of pixels, (B, T, C) of series; a date that is missing is NaN in all C.
    views: tuple[Tensor, ...]
    sample_id: Tensor  # (B,) int64 row in the corpus
    label: Tensor | None = None
    seed: int = 0  # with step, the key of every draw the method makes itself
    step: int = 0
    world: World = SOLO  # whose rows make up the global batch


def band_names(view: View, bands: Sequence["Band"]) -> tuple[str, ...]:
    """Names of what `view` is made of, out of a corpus's `bands`: before any are drawn. UsageError for a sensor that is not there."""
    return view.bands if view.bands is not None else tuple(bands[k].name for k in band_numbers(view, bands))


def band_numbers(view: View, bands: Sequence["Band"]) -> list[int]:
    """Places in `bands` of what `view` is made of; names that are not there have none."""
    if view.sensor is not None and view.sensor not in (sensors := {band.sensor for band in bands}):
        raise UsageError(f"sensor {view.sensor!r} is not in the corpus, {nearest(view.sensor, sensors)}")
    return [k for k, band in enumerate(bands) if view.sensor in (None, band.sensor) and (view.bands is None or band.name in view.bands)]


def num_channels(view: View, bands: Sequence["Band"]) -> int:
    """Channels that an encoder of `view` takes, in a corpus of `bands`."""
    return view.draw_bands or len(band_names(view, bands))


def default_crop(patch_size: int) -> int:
    """Side of the crop when none is asked for: leaves 16 px to move in, at most the papers' 128, a multiple of 16."""
    return min(128, (patch_size - 16) // 16 * 16) if patch_size >= 32 else patch_size


def sized(views: tuple[View, ...], size: int) -> tuple[View, ...]:
    """The same views, with `size` where a view names none."""
    return tuple(replace(view, size=size) if view.size is None else view for view in views)
