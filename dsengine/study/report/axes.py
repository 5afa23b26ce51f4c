"""From numbers to places on paper: scales, round ticks, and how a number is written."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Scale(NamedTuple):
    """One axis: `low` lies at `start`, `high` at `end` (SVG units)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Places of `values`."""
        f = np.log10 if self.log else np.asarray
        low, high = f(self.low), f(self.high)
        return self.start + (f(values) - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Round numbers inside the scale."""
        return _log_ticks(self.low, self.high, about) if self.log else _linear_ticks(self.low, self.high, about)


def scale_of(values: np.ndarray, *, start: float, end: float, log: bool = False, zero: bool = False, about: int = 5, exact: bool = False) -> Scale:
    """The scale that holds the finite `values`, which reaches to round numbers unless it is `exact`; zero: it begins at 0."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if log:
        low, high = (low, high) if exact and low < high else (10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.0000001)))
        return Scale(low, high, start, end, log=True)
    if zero:
        low = min(low, 0.0)
    if low == high:
        margin = abs(low) / 2 or 0.5
        low, high = (low if zero and low == 0 else low - margin), high + margin
    elif not exact:
        step = _step(low, high, about)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, start, end)


def written(ticks: Sequence[float]) -> list[str]:
    """Ticks with as many decimals as tell them apart; thousands as k, millions as M."""
    most = max((abs(tick) for tick in ticks), default=0.0)
    if most and (most < 1e-3 or most >= 1e9):
        return [_power(tick) for tick in ticks]
    unit, sign = (1e6, "M") if most >= 2e6 else (1e3, "k") if most >= 1e4 else (1.0, "")
    scaled = [tick / unit for tick in ticks]
    gap = min((abs(b - a) for a, b in zip(scaled, scaled[1:])), default=1.0)
    decimals = 0 if gap >= 1 else min(6, max(0, math.ceil(-math.log10(gap * 0.999))))
    return ["0" if tick == 0 else f"{tick:,.{decimals}f}{sign}" for tick in scaled]


def number(value: float | None, digits: int = 4) -> str:
    """A figure in a sentence or cell: `digits` significant ones, thousands apart; - for none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        return _power(value, digits)
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else digits - 1
    return f"{value:,.{max(0, decimals)}f}"


def duration(seconds: float) -> str:
    """Such as 41 s, 12 min, 3.4 h, 2.1 days."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h"), (math.inf, 86400, "days")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if unit > 60 or seconds < 10 else 0}f} {name}"
    raise AssertionError("unreachable")


def thinned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """x and y as means of runs of so many neighbours that at most `most` are left, the lowest and highest y of each run, and their length."""
    length = -(-len(x) // most) if len(x) else 1
    edges = np.arange(0, len(x), length)
    over: Callable[[np.ufunc, np.ndarray], np.ndarray] = lambda f, values: f.reduceat(values, edges) if len(values) else values  # noqa: E731
    counts = np.diff(np.append(edges, len(x)))
    return over(np.add, x) / counts, over(np.add, y) / counts, over(np.minimum, y), over(np.maximum, y), length


def _step(low: float, high: float, about: int) -> float:
    raw = (high - low) / max(about - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)


def _linear_ticks(low: float, high: float, about: int) -> list[float]:
    step = _step(low, high, about)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    if last == first and about < 8:  # one alone says nothing of the scale
        return _linear_ticks(low, high, about + 1)
    return [k * step for k in range(first, last + 1)] or [low, high]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        return [10.0 ** k for k in range(first, last + 1, max(1, -(-(last - first) // about)))]
    found = [m * 10.0 ** k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001] or [low, high]


def _power(value: float, digits: int = 3) -> str:
    """Such as 5e-4."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
