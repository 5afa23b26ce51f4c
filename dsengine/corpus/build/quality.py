"""What the pixels say about a patch where its source says nothing: cloud fraction, and how far S1 lies off S2. A step of every build.

Both go into index columns that a condition can ask for (`corpus.where`): `cloud`, `shift`. A value that the source gave stays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dsengine.corpus.build.clouds import NEEDED, can_tell, cloud_fraction
from dsengine.corpus.build.coregistration import shift_of
from dsengine.corpus.build.plan import Plan
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import SHARD_PATCHES, Band
from dsengine.errors import RunError

if TYPE_CHECKING:
    from dsengine.corpus.index import Corpus

COLUMNS = ("cloud_fraction", "shift_y", "shift_x")
METHOD = {"cloud_fraction": "band thresholds 1", "shift": "phase correlation 1"}  # a number for each change of the figures
RED = "B04"


class Measured(NamedTuple):
    """(n,) float32 each, NaN unknown."""

    cloud_fraction: np.ndarray
    shift_y: np.ndarray
    shift_x: np.ndarray


@dataclass(frozen=True)
class Quality:
    """The step: measures what the index columns of a block leave open."""

    bands: tuple[Band, ...]
    clouds: bool = True  # whether the thresholds of clouds fit what is stored

    def __call__(self, block: Block) -> Block:
        count = len(next(iter(block.arrays.values())))
        known = {name: np.broadcast_to(np.asarray(block.index.get(name, np.nan), np.float32), (count,)) for name in COLUMNS}
        found = measure(block.arrays, self.bands, known, clouds=self.clouds)
        return block._replace(index={**block.index, **found._asdict()})


def with_quality(plan: Plan) -> Plan:
    """The plan with the step, where its bands allow any of it."""
    bands = plan.layout.bands()
    clouds = _can_tell(bands, {spec.name: spec.scale_factor for spec in plan.layout.arrays})
    if not (clouds or _pair(bands)):
        return plan
    return replace(plan.then(Quality(bands, clouds)), made_by={**plan.made_by, "quality": METHOD})


def measure(arrays: Mapping[str, np.ndarray], bands: Sequence[Band], known: Mapping[str, np.ndarray], *,
            clouds: bool = True) -> Measured:
    """What the patches of `arrays` (name -> (n, C, h, w) int16 as stored) show; where `known` has a value, that.

    The same patches give the same figures in any block and process. Shifts are in pixels of the finest grid. `clouds`: the bands and units are
    those that `build.clouds` can tell clouds by.
    """
    cloud, y, x = (np.array(known[name], np.float32) for name in COLUMNS)
    if clouds and np.isnan(cloud).any():
        cloud = np.where(np.isnan(cloud), cloud_fraction(arrays, _optical(bands)), cloud)
    if pair := _pair(bands):
        red, radar = pair
        channels = [band.channel for band in radar]
        for row in np.flatnonzero(np.isnan(y) | np.isnan(x)):
            found = shift_of(arrays[red.array][row, red.channel], arrays[radar[0].array][row, channels])
            y[row], x[row] = (red.factor * pixels for pixels in found)
    return Measured(cloud, y, x)


def measure_corpus(corpus: "Corpus", *, again: bool = False, progress: Callable[[int, int], None] | None = None) -> Measured:
    """Fill the columns of a corpus that is there, all or none; `again` also measures what has a value. Returns the columns as they are now.
    Patches in quarantine keep what they have: they may not be readable.

    RunError when a patch cannot be read or the disk refuses.
    """
    from dsengine.corpus.columns import write_columns

    clouds = _can_tell(corpus.bands, {name: array.attrs["scale_factor"] for name, array in corpus.arrays.items()})
    anew = [name for name in COLUMNS if again and (clouds if name == "cloud_fraction" else _pair(corpus.bands))]
    parts = []
    for start in range(0, len(corpus), SHARD_PATCHES):
        batch = slice(start, min(start + SHARD_PATCHES, len(corpus)))
        known = {name: getattr(corpus.index, name)[batch].copy() for name in COLUMNS}
        if len(rows := start + np.flatnonzero(corpus.index.quarantine[batch] == 0)):
            stated = {name: np.full(len(rows), np.nan) if name in anew else known[name][rows - start] for name in COLUMNS}
            for name, values in measure(_read(corpus, rows), corpus.bands, stated, clouds=clouds)._asdict().items():
                known[name][rows - start] = values
        parts.append(Measured(**known))
        if progress:
            progress(batch.stop, len(corpus))
    found = Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    write_columns(corpus, found._asdict(), root={"made_by": {**corpus.attributes["made_by"], "quality": METHOD}})
    return found


def _read(corpus: "Corpus", rows: np.ndarray) -> dict[str, np.ndarray]:
    try:
        return {name: np.asarray(array.oindex[rows]) for name, array in corpus.arrays.items()}
    except (ValueError, RuntimeError, OSError) as error:
        raise RunError(f"{corpus.path}: patches {rows[0]} to {rows[-1]} cannot be read ({error}); "
                       f"`dsengine corpus verify {corpus.path}` names the patch") from error


def _can_tell(bands: Sequence[Band], scale_factors: Mapping[str, float]) -> bool:
    """Whether the bands are there by which clouds are told, and all hold reflectance x 10000."""
    optical = _optical(bands)
    return can_tell(optical) and all(math.isclose(scale_factors[optical[name].array], 1e-4) for name in NEEDED)


def _optical(bands: Sequence[Band]) -> dict[str, Band]:
    return {band.name: band for band in bands if band.sensor == "s2"}


def _pair(bands: Sequence[Band]) -> tuple[Band, list[Band]] | None:
    """The red band, and the radar bands in the array that has its ground resolution; None where there are none."""
    red = _optical(bands).get(RED)
    radar = [band for band in bands if band.sensor == "s1"]
    if red is None or not radar or any(band.factor != red.factor or band.array != radar[0].array for band in radar):
        return None
    return red, radar
