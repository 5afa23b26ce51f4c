"""A procedural world for pixels and time series: what Sentinel-2 and Planet store of single places with a land cover, from a seed and nothing else.

A row is a Sentinel-2 pixel and the 3 x 3 Planet pixels in it: a class, some of a second one, each a mixture of `spectra`'s endmembers between
its dormant state and full leaf, which comes and goes with the class's season. Soils and leaves differ from cluster to cluster of 16 rows,
light, air, dates and sensors from row to row. Every value is a function of (SERIES_VERSION, seed, row): not of the block, the number of
rows or the machine, for it takes only products, sums and rounding in float64, in a fixed order.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsengine import noise
from dsengine.corpus.build.series_plan import SeriesPlan, build_series
from dsengine.corpus.build.series_writer import SeriesBlock
from dsengine.corpus.schema import NODATA, LabelSpec
from dsengine.corpus.series_schema import KINDS, SeriesLayout
from dsengine.corpus.sources import _planet
from dsengine.corpus.synth.seasons import DORMANT, FULL_LEAF, HALF_SEASON, PEAK, PEAK_SPREAD
from dsengine.corpus.synth.spectra import CLASSES, HAZE, SPECTRA
from dsengine.errors import UsageError

SERIES_VERSION = 1
CLUSTER = 16
DAYS = np.arange(5, 365, 10)  # of 2019, of a series: 36 dates
LABEL = LabelSpec(name="landcover", kind="class", classes=CLASSES)
VALID = "clear sky over the place"
_YEAR_NS, _DAY_NS = 17_897 * 86_400 * 10**9, 86_400 * 10**9  # 2019-01-01
_PLANET_FROM = (1, 2, 3, 7)  # B02 B03 B04 B08: near enough to Planet's blue, green, red, nir
_CLOUDY, _GAP = 0.36, 0.03  # bound of the sky's draw; share of Planet's dates that are missing
_NUM_BANDS, _NUM_CELLS = SPECTRA.shape[1], len(_planet.CELLS)


def synthesize_series(out: str | os.PathLike[str], *, kind: str, num_rows: int, seed: int = 0, workers: int = 1,
                      progress: Callable[[int, int], None] | None = None) -> Path:
    """Write a corpus of `num_rows` pixels or series with sensors s2 (12 bands) and planet (36) and label landcover to `out`; returns its path.

    workers: processes; the corpus does not depend on them. An interrupted call continues. Raises UsageError for what is out of range.
    """
    if kind not in KINDS:
        raise UsageError(f"kind: {kind!r} is not legal: {', '.join(KINDS)}")
    for name, value, least, most in (("num_rows", num_rows, 1, 2**31), ("seed", seed, 0, 2**32 - 1), ("workers", workers, 1, 256)):
        if not least <= value <= most:
            raise UsageError(f"{name}: {value} is not legal, it must be in [{least}, {most}]")
    steps = len(DAYS) if kind == "series" else 0
    time = tuple(int(_YEAR_NS + day * _DAY_NS) for day in DAYS[:steps])
    arrays = (_planet.sentinel2(steps, time, VALID if steps else ""), _planet.planet(steps, time, VALID if steps else ""))
    plan = SeriesPlan(layout=SeriesLayout(kind=kind, arrays=arrays, labels=(LABEL,)), num_rows=num_rows, cut=Rows(seed, kind), split="block",
                      made_by={"source": "synth", "series_version": SERIES_VERSION, "seed": seed, "kind": kind})
    return build_series(out, plan, workers=workers, progress=progress)


@dataclass(frozen=True)
class Rows:
    """Blocks of the world of `seed`."""

    seed: int
    kind: str

    def __call__(self, rows: range) -> SeriesBlock:
        """These rows."""
        ids = np.arange(rows.start, rows.stop)
        draw, shared = self._draws("row", ids, 32), self._draws("cluster", ids // CLUSTER, 8)
        label, other = (np.minimum(draw[:, k] * len(CLASSES), len(CLASSES) - 1).astype(np.int64) for k in (0, 1))
        days = np.floor(draw[:, 2:3] * 365) if self.kind == "pixels" else np.broadcast_to(DAYS.astype(np.float64), (len(ids), len(DAYS)))
        first, second = (self._reflectance(ids, which, days, draw[:, start:start + 2]) for which, start in ((label, 3), (other, 5)))
        share = self._shares(ids, draw[:, 7:8])
        light = (0.75 + 0.35 * draw[:, 8:9] + 0.12 * self._draws("light", ids, days.shape[1]))[..., None]
        s2 = self._optical(ids, light, first + share.mean(1)[:, None, None] * (second - first))
        planet = self._planet(ids, light, first[..., _PLANET_FROM], second[..., _PLANET_FROM], share)
        if self.kind == "series":
            s2[self._cloudy(ids, days.shape[1])] = NODATA
            planet[self._draws("gap", ids, days.shape[1]) < _GAP] = NODATA
        arrays = {"s2": s2, "planet": planet} if self.kind == "series" else {"s2": s2[:, 0], "planet": planet[:, 0]}
        place = {"lon": np.round(-5 + 35 * shared[:, 0] + 0.05 * draw[:, 9], 5), "lat": np.round(43 + 13 * shared[:, 1] + 0.05 * draw[:, 10], 5)}
        return SeriesBlock(arrays, place, {"landcover": label.astype(np.uint8)})

    def _draws(self, site: str, ids: np.ndarray, count: int) -> np.ndarray:
        """(n, count) float64 in [0, 1)."""
        return noise.uniform(seed=self.seed, site=f"synth.series.{site}", step=0, ids=ids, count=count)

    def _reflectance(self, ids: np.ndarray, label: np.ndarray, days: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """(n, T, 12) of the classes `label` (n,) alone, in even light; draw (n, 2) moves and stretches their season."""
        peak = PEAK[label] + (2 * draw[:, 0] - 1) * PEAK_SPREAD[label]
        away = (days - peak[:, None]) / (HALF_SEASON[label] * (0.8 + 0.4 * draw[:, 1]))[:, None]
        leaf = np.square(np.maximum(1 - away * away, 0))
        spectra = self._spectra(ids)
        found = np.zeros((*days.shape, _NUM_BANDS))
        for e in range(len(SPECTRA)):  # no matrix product: its order of summation is the machine's
            share = DORMANT[label, e][:, None] + leaf * (FULL_LEAF - DORMANT)[label, e][:, None]
            found += share[..., None] * spectra[:, None, e]
        return found

    def _spectra(self, ids: np.ndarray) -> np.ndarray:
        """(n, endmembers, 12): each with level and slope of its cluster, and half as much of its own."""
        num = len(SPECTRA)
        own, shared = 2 * self._draws("spectra", ids, 2 * num) - 1, 2 * self._draws("spectra.cluster", ids // CLUSTER, 2 * num) - 1
        change = 0.25 * shared + 0.125 * own
        ramp = np.arange(_NUM_BANDS) * (2 / (_NUM_BANDS - 1)) - 1
        return SPECTRA.astype(np.float64) * (1 + change[:, :num, None] + change[:, num:, None] * ramp)

    def _shares(self, ids: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """(n, 9) share of the second class in each Planet pixel; draw (n, 1): how mixed the place is."""
        return np.clip(0.4 * draw * draw + 0.3 * (self._draws("cells", ids, _NUM_CELLS) - 0.5) * draw, 0, 1)

    def _optical(self, ids: np.ndarray, light: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        """(n, T, 12) int16 as Sentinel-2 stores it: light, air, noise of the sensor."""
        air = self._draws("air", ids, mixed.shape[1])[..., None]
        value = (mixed * light + HAZE.astype(np.float64) * (1.2 * air * air)) * 1e4
        grain = 2 * self._draws("noise.s2", ids, value[0].size).reshape(value.shape) - 1
        return _stored(value + grain * (8 + 0.015 * value))

    def _planet(self, ids: np.ndarray, light: np.ndarray, first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
        """(n, T, 36) int16, band by band, nine pixels each: another sensor's gains and more noise."""
        gain = 0.95 + 0.1 * self._draws("gain", ids, len(_PLANET_FROM))[:, None]
        mixed = first[..., None] + share[:, None, None] * (second - first)[..., None]
        value = ((mixed * light[..., None]) * gain[..., None] * 1e4).reshape(*first.shape[:2], -1)
        grain = 2 * self._draws("noise.planet", ids, value[0].size).reshape(value.shape) - 1
        return _stored(value + grain * (15 + 0.03 * value))

    def _cloudy(self, ids: np.ndarray, steps: int) -> np.ndarray:
        """(n, T) bool: about three dates in ten, mostly the same ones in a cluster."""
        return 0.7 * self._draws("sky.cluster", ids // CLUSTER, steps) + 0.3 * self._draws("sky", ids, steps) < _CLOUDY


def _stored(value: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(value), 1, 20000).astype(np.int16)
