"""From what an archive gives for a patch to a `Block`: arrays by ground resolution, index columns, faults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build import utm
from dsengine.corpus.build.archive.http import Unreachable
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.raster import Radiometry, to_stored
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import NODATA, S1_BANDS, S2_BANDS, UNKNOWN_TIME, ArraySpec, Layout
from dsengine.errors import RunError, UsageError

FACTORS = {band: {"B01": 6, "B09": 6, "B02": 1, "B03": 1, "B04": 1, "B08": 1}.get(band, 2) for band in S2_BANDS} | dict.fromkeys(S1_BANDS, 1)
CLOUDS = (8, 9, 10)  # scene classification: cloud of medium and high probability, thin cirrus; not its shadow
COLUMNS = {"scene_s2": "str", "scene_s1": "str", "orbit": "str"}  # index columns besides the standard ones
RESOLUTION_M = 10.0
_OUTAGE_ROWS = 4


class Patch(NamedTuple):
    """What was read for one patch: raw numbers per band at its own resolution and how they become stored values."""

    raw: Mapping[str, np.ndarray]  # band -> (side, side)
    radiometry: Mapping[str, Radiometry]
    cloud: float  # fraction, NaN unknown


Outcome = Patch | RunError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How patches are stored."""

    size: int  # pixels of 10 m
    sensors: tuple[str, ...]
    native: bool  # one array per ground resolution; else one array at 10 m, larger pixels repeated

    def layout(self) -> Layout:
        """UsageError for a size that 60 m pixels do not fill."""
        if self.size < 1:
            raise UsageError(f"--size {self.size}: legal: at least 1")
        if self.native and "s2" in self.sensors and self.size % 6:
            lower = max(self.size - self.size % 6, 6)
            raise UsageError(f"--size {self.size}: 60 m pixels need a multiple of 6, such as {lower} or {lower + 6}; or --bands-at 10m, which "
                             "repeats the larger pixels")
        groups = {"s2": 1, "s2_20m": 2, "s2_60m": 6} if self.native else {"s2": 0}
        arrays = [ArraySpec(name=name, sensor="s2", bands=tuple(b for b in S2_BANDS if not factor or FACTORS[b] == factor), units="reflectance",
                            scale_factor=1e-4, factor=factor or 1) for name, factor in groups.items() if "s2" in self.sensors]
        if "s1" in self.sensors:
            arrays.append(ArraySpec(name="s1", sensor="s1", bands=S1_BANDS, units="dB", scale_factor=0.01))
        return Layout(arrays=tuple(arrays), patch_size=self.size, resolution_m=RESOLUTION_M)


def reading_grid(grid: Grid, band_factor: int) -> Grid:
    """The patch, grown right and down to whole pixels of a band: what is read before it is cut."""
    return grid._replace(size=-(-grid.size // band_factor) * band_factor)


def cloud_fraction(scl: np.ndarray) -> float:
    """Of the classified pixels (not 0); NaN when there is none."""
    valid = scl != 0
    return float(np.isin(scl, CLOUDS).sum() / valid.sum()) if valid.any() else float("nan")


def decibels(power: np.ndarray, nodata: float) -> np.ndarray:
    """float64 dB of linear power; NaN where there is no data and where power is not positive, which no echo has."""
    power = power.astype(np.float64)
    positive = np.isfinite(power) & (power > 0) & (power != nodata)
    return np.where(positive, 10.0 * np.log10(np.where(positive, power, 1.0)), np.nan)


def block(records: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome], *, layout: Layout, first_row: int) -> Block:
    """Patches in row order. What failed is all nodata, in quarantine, with a line that says why.

    RunError when every one of several patches failed for lack of an answer: that is an outage, and the build had better stop.
    """
    failed = [outcome for outcome in outcomes if isinstance(outcome, RunError)]
    if len(failed) == len(outcomes) >= _OUTAGE_ROWS and all(isinstance(error, Unreachable) for error in failed):
        raise RunError(f"no patch of rows {first_row} to {first_row + len(outcomes) - 1} could be read, the archive seems to be out of reach "
                       f"({failed[0]}); the same command continues")
    arrays = {spec.name: np.full((len(outcomes), len(spec.bands), *[layout.side(spec)] * 2), NODATA, np.int16) for spec in layout.arrays}
    saturated: dict[str, Any] = {spec.name: np.zeros(len(spec.bands), np.int64) for spec in layout.arrays}
    for i, outcome in enumerate(outcomes):
        for spec in layout.arrays if isinstance(outcome, Patch) else ():
            for channel, band in enumerate(spec.bands):
                stored, cut = to_stored(_fit(outcome.raw[band], FACTORS[band] // spec.factor, layout.side(spec))[None], outcome.radiometry[band])
                arrays[spec.name][i, channel] = stored[0]
                saturated[spec.name][channel] += cut[0]
    faults = [f"row {first_row + i}: {outcome}" for i, outcome in enumerate(outcomes) if isinstance(outcome, RunError)]
    index = {**_columns(records), "cloud_fraction": [o.cloud if isinstance(o, Patch) else float("nan") for o in outcomes],
             "quarantine": [0 if isinstance(o, Patch) else 1 for o in outcomes]}
    return Block(arrays, index, saturated={name: counts.tolist() for name, counts in saturated.items()}, faults=faults)


def _fit(raw: np.ndarray, repeat: int, side: int) -> np.ndarray:
    return raw.repeat(repeat, 0).repeat(repeat, 1)[:side, :side] if repeat > 1 else raw[:side, :side]


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    grids = [Grid(*record["grid"]) for record in records]
    centres = [utm.centre(grid) for grid in grids]
    scenes = {sensor: [record.get(sensor, {}) for record in records] for sensor in ("s2", "s1")}
    first = [s2 or s1 for s2, s1 in zip(scenes["s2"], scenes["s1"], strict=True)]
    return {"lon": [lon for lon, _ in centres], "lat": [lat for _, lat in centres], "epsg": [g.epsg for g in grids], "x": [g.x for g in grids],
            "y": [g.y for g in grids], "source": [f"{scene['collection']}/{scene['id']}" for scene in first],
            "orbit": [scene.get("orbit", "") for scene in scenes["s1"]],
            **{f"time_{sensor}": [scene.get("time", UNKNOWN_TIME) for scene in found] for sensor, found in scenes.items()},
            **{f"scene_{sensor}": [scene.get("id", "") for scene in found] for sensor, found in scenes.items()}}
