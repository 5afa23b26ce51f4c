"""Do two sensors in a file see the same places? A test by band correlation, for pairs made elsewhere.

The published point-wise pairs of Sentinel-2 and Planet may be scrambled: their making reshaped (4, N * 9) as (4, 9, N), so that a row has
nine Planet pixels of nine other places. Means and shapes stay right; only correlation tells. Rows of one date follow each other and dates
differ in season and cloud, so that even scrambled rows correlate over a whole file: the test ranks differences of consecutive rows, where
a change of date is one value among many.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from dsengine.corpus.schema import NODATA

TWINS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}  # Sentinel-2 band -> Planet band of about the same wavelengths
PAIRED = 0.3  # scrambled runs of 256 rows stay below 0.15; true pairs of clear dates are well above 0.5
UPPER = 0.9
MIN_ROWS = 32  # of a run that counts


class PairTest(NamedTuple):
    """What the test found."""

    paired: bool
    correlation: float  # upper decile over runs of the mean over bands; clouds in one sensor spoil many runs of true pairs
    by_band: dict[str, float]  # the same a band
    num_runs: int

    def described(self) -> dict[str, object]:
        """As JSON."""
        return {"paired": self.paired, "correlation": round(self.correlation, 4), "num_runs": self.num_runs,
                "by_band": {name: round(value, 4) for name, value in self.by_band.items()}}


def pair_test(runs: Sequence[tuple[np.ndarray, np.ndarray]], s2_bands: Sequence[str], planet_bands: Sequence[str]) -> PairTest:
    """Test runs of rows. A run is Sentinel-2 (n, C) and Planet (n, 4, 9), in any linear unit, -32768 or NaN where there is no data; the rows
    of one run are of one date, or means over time. Runs without enough data or without variation do not count."""
    rows = {f"{band}-{twin}": [] for band, twin in TWINS.items() if band in s2_bands and twin in planet_bands}
    for s2, planet in runs:
        found = {name: _correlation(_clean(s2)[:, s2_bands.index(name.partition("-")[0])],
                                    _mean(_clean(planet)[:, planet_bands.index(name.partition("-")[2])])) for name in rows}
        if not any(np.isnan(value) for value in found.values()):
            for name, value in found.items():
                rows[name].append(value)
    table = np.array(list(rows.values())).reshape(len(rows), -1)
    if not table.size:
        return PairTest(False, float("nan"), dict.fromkeys(rows, float("nan")), 0)
    correlation = float(np.quantile(table.mean(axis=0), UPPER))
    by_band = {name: float(np.quantile(values, UPPER)) for name, values in rows.items()}
    return PairTest(correlation >= PAIRED, correlation, by_band, table.shape[1])


def _clean(x: np.ndarray) -> np.ndarray:
    values = x.astype(np.float64)
    return np.where(values == NODATA, np.nan, values)


def _mean(x_NK: np.ndarray) -> np.ndarray:
    """Mean over the pixels with data, NaN where there is none."""
    has = np.isfinite(x_NK)
    return np.where(has.any(axis=1), np.where(has, x_NK, 0).sum(axis=1) / np.maximum(has.sum(axis=1), 1), np.nan)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of the differences of consecutive rows, NaN without enough of them or where one does not vary."""
    a, b = np.diff(a), np.diff(b)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < MIN_ROWS:
        return float("nan")
    x, y = rankdata(a[both]), rankdata(b[both])
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / size) if size > 0 else float("nan")
