"""What every evaluation can be told; each adds its own. All of it is stored with the numbers."""

from dataclasses import dataclass
from typing import Literal

from dsengine.errors import UsageError
from dsengine.evaluate.folds import FRACTIONS


@dataclass(frozen=True, kw_only=True)
class Common:
    """Settings of all evaluations."""

    label: str | None = None  # its name in the corpus; None: the only one that fits
    where: str | None = None  # a condition on index columns; the patches that do not meet it are not there
    split: str = "corpus"  # corpus | block | random | column:NAME | leave-out:NAME (evaluate.folds)
    fractions: tuple[float, ...] = FRACTIONS  # of train, val, test; for block, random and column:NAME
    label_fractions: tuple[float, ...] = (1.0,)  # shares of the train labels, a row each
    size: int | None = None  # side of the crop in pixels; None: whole patches
    missing: Literal["refuse", "zero"] = "refuse"  # bands that an encoder takes and the corpus lacks
    floors: tuple[str, ...] | None = None  # None: all that the evaluation has
    unit: Literal["place", "sample"] = "place"  # what intervals draw
    num_draws: int = 1000  # of the bootstrap
    seed: int = 0
    batch_size: int = 64  # of feature extraction; no figure depends on it beyond rounding
    device: str | None = None  # cpu | cuda | cuda:N; None: a GPU if there is one
    input: str | None = None  # which encoder of runs that have several, such as s2

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("num_draws", 1), ("batch_size", 1), ("seed", 0)):
            at_least(self, name, least)
        if not self.label_fractions or not all(0 < share <= 1 for share in self.label_fractions):
            raise UsageError(f"label_fractions={list(self.label_fractions)}: legal: numbers above 0, up to 1")
        if self.seed >= 2**32:
            raise UsageError(f"seed={self.seed}: must be in [0, 2**32)")


def at_least(settings: object, name: str, least: float) -> None:
    """UsageError when that setting is below `least`; None is legal."""
    value = getattr(settings, name)
    if value is not None and not value >= least:
        raise UsageError(f"{name}={value}: must be at least {least}")
