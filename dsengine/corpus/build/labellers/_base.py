"""What every kind of label has in common: a labeller, its options, a choice of unused values."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from dsengine.corpus.build.plan import Grid
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import UsageError, nearest

DTYPES = ("uint8", "uint16", "int16")


class Drawn(NamedTuple):
    """One patch's label. `faults` name what was wrong in the file and how it was met."""

    values: np.ndarray  # spec.dtype: (H, W) for a class map, () for a class, (K,) for a multilabel
    faults: tuple[str, ...] = ()


class Labeller(ABC):
    """Labels any place. It pickles: what it reads is found again in each process."""

    spec: LabelSpec

    @abstractmethod
    def draw(self, grid: Grid) -> Drawn:
        """The label of the patch on `grid`. RunError when a file cannot be read or holds a value that is not legal."""

    def __call__(self, grid: Grid) -> np.ndarray:
        """The values of `draw`."""
        return self.draw(grid).values


class Options:
    """The `option=value` parts of one --label; errors name the label."""

    def __init__(self, label: str, given: Mapping[str, str]) -> None:
        self.label = label
        self.given = dict(given)

    def text(self, key: str) -> str | None:
        """As given, or None."""
        return self.given.get(key)

    def choice(self, key: str, legal: Iterable[str]) -> str:
        """One of `legal`; the first is the default."""
        legal = list(legal)
        value = self.given.get(key, legal[0])
        if value not in legal:
            raise UsageError(f"--label {self.label}: {key}={value}: {nearest(value, legal)}")
        return value

    def flag(self, key: str) -> bool:
        """yes or no, by default no."""
        return self.choice(key, ("no", "yes")) == "yes"

    def number(self, key: str, default: float | None, *, low: float, whole: bool = False) -> float | None:
        """A finite number from `low` up, an int if `whole`."""
        if key not in self.given:
            return default
        try:
            value = (int if whole else float)(self.given[key])
        except ValueError:
            value = np.nan
        if not low <= value < np.inf:
            raise UsageError(f"--label {self.label}: {key}={self.given[key]}: legal: {'a whole' if whole else 'a'} number from {low:g}")
        return value


def fitting_dtype(values: Iterable[int], *, label: str) -> str:
    """The smallest of uint8, uint16, int16 that holds all `values`."""
    values = list(values)
    for dtype in DTYPES:
        info = np.iinfo(dtype)
        if all(info.min <= value <= info.max for value in values):
            return dtype
    raise UsageError(f"--label {label}: values {min(values)} to {max(values)} do not fit; legal: 0 to 65535, or -32768 to 32767")


def unused_value(classes: Iterable[int]) -> int:
    """A value for pixels without a class: 0 where it is free, else 255, else the largest free one."""
    taken = set(classes)
    return next(value for value in (0, 255, *range(65535, 0, -1)) if value not in taken)
