"""Ratios of two timings taken in pairs, because these machines drift by 10-30 % within a minute."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """Time of a over time of b: median over pairs, and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Times(NamedTuple):
    """Seconds of a and of b, each (pairs,)."""

    a: np.ndarray
    b: np.ndarray

    def ratio(self) -> Ratio:
        """Time of a over time of b."""
        ratios = self.a / self.b
        return Ratio(float(np.median(ratios)), *_interval(ratios))


def paired_times(a: Callable[[], object], b: Callable[[], object], *, pairs: int = 30) -> Times:
    """Time a and b in turn, `pairs` times, the first of each pair alternating; both run once before, untimed.

    Both must return when their work is done (synchronise the device inside).
    """
    a(), b()
    times = Times(np.empty(pairs), np.empty(pairs))
    for pair in range(pairs):
        for which in ((0, 1), (1, 0))[pair % 2]:
            times[which][pair] = _seconds((a, b)[which])
    return times


def paired_ratio(a: Callable[[], object], b: Callable[[], object], *, pairs: int = 30) -> Ratio:
    """Time of a over time of b, by `paired_times`."""
    return paired_times(a, b, pairs=pairs).ratio()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _interval(ratios: np.ndarray) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of the median of 2,000 resamples."""
    rows = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[rows], axis=1), (0.025, 0.975))
    return float(low), float(high)
