"""95 % intervals: the test set drawn again and again from itself, by whole groups.

A group is a place (patches near each other are not independent) or a sample. Draws are a function of (seed, number of groups), so
two encoders judged on the same test set are judged on the same draws, and the interval of their difference is a paired one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dsengine.evaluate import metrics

LEVEL = 0.95
_AT_ONCE = 64  # draws


class Interval(NamedTuple):
    """A figure and where it lies in 95 % of the draws; NaN where there is nothing to draw from."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """NaN as null."""
        return {key: float(number) if np.isfinite(number) else None for key, number in self._asdict().items()}


def summed(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(G, ...) sums of `values` (N, ...) over equal `groups` (N,), in the order of the groups' values."""
    unique, inverse = np.unique(groups, return_inverse=True)
    out = np.zeros((len(unique), *values.shape[1:]), np.float64)
    np.add.at(out, inverse, values)
    return out


def draws(num_groups: int, *, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (d, G) float64: how often each draw takes each group."""
    for lo in range(0, num_draws, _AT_ONCE):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, lo], np.uint64)))
        picked = rng.integers(num_groups, size=(min(_AT_ONCE, num_draws - lo), num_groups))
        yield np.stack([np.bincount(row, minlength=num_groups) for row in picked]).astype(np.float64)


def of_counts(counts: np.ndarray, figures: Callable[[np.ndarray], np.ndarray], *, num_draws: int, seed: int) -> list[Interval]:
    """The intervals of M figures, from the counts (G, ...) of the groups; figures: counts (d, ...) -> (d, M)."""
    values = figures(counts.sum(0, keepdims=True))[0]
    drawn = [figures(np.tensordot(weight, counts, 1)) for weight in _drawn(len(counts), num_draws, seed)]
    every = np.concatenate(drawn) if drawn else np.zeros((0, len(values)))
    return [_interval(float(value), column) for value, column in zip(values, every.T)]


def of_scores(truth: np.ndarray, score: np.ndarray, groups: np.ndarray, *, minus: np.ndarray | None = None, num_draws: int, seed: int) -> Interval:
    """The interval of ROC-AUC; truth, score, groups (N,). minus: other scores of the same samples, whose ROC-AUC is taken off."""
    unique, inverse = np.unique(groups, return_inverse=True)
    ranks = [np.unique(values, return_inverse=True)[1] for values in (score, *([] if minus is None else [minus]))]

    def figure(weight: np.ndarray) -> float:
        first, *others = (metrics.auc_of_places(truth == 1, place, weight) for place in ranks)
        return first - sum(others)

    drawn = [figure(weight[inverse]) for block in _drawn(len(unique), num_draws, seed) for weight in block]
    return _interval(figure(np.ones(len(truth))), np.array(drawn))


def _drawn(num_groups: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    return draws(num_groups, num_draws=num_draws, seed=seed) if num_groups > 1 else iter(())


def _interval(value: float, drawn: np.ndarray) -> Interval:
    drawn = drawn[np.isfinite(drawn)]  # a draw without a class has no figure of it
    if not len(drawn) or not np.isfinite(value):
        return Interval(value, np.nan, np.nan)
    tail = 50 * (1 - LEVEL)
    return Interval(value, *np.percentile(drawn, [tail, 100 - tail]).tolist())
