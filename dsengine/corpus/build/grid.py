"""Where patches lie: windows on a raster, and the rule that parts them into train, val and test.

A rule parts units, not patches: blocks on the ground, the groups of an index column, or single patches. A unit's split is a hash of (seed,
unit) against the fractions, so it is the same in every corpus with that unit, whatever else is in it; the only exception is `_filled`.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsengine.corpus.schema import SPLITS
from dsengine.errors import UsageError, nearest

BLOCK_DEG = 0.25  # about 28 km north-south
FRACTIONS = (0.8, 0.1, 0.1)
COLUMN = "column:"


@dataclass(frozen=True)
class SplitRule:
    """How patches are parted into train, val and test."""

    by: str = "block"  # block | random | column:NAME, whole groups of equal value | given, the source fills index column `split`
    fractions: tuple[float, ...] = FRACTIONS  # of the units, not of the patches; given: not used
    block_deg: float = BLOCK_DEG  # side of a block; only where `by` is block

    def __post_init__(self) -> None:
        if self.by not in ("block", "random", "given") and not (self.by.startswith(COLUMN) and self.by != COLUMN):
            raise UsageError(f"split={self.by!r} is not legal: block, random, column:NAME, given")
        if len(self.fractions) != len(SPLITS) or not all(0 <= f <= 1 for f in self.fractions) or abs(sum(self.fractions) - 1) > 1e-6:
            raise UsageError(f"fractions={self.fractions}: legal: {len(SPLITS)} numbers from 0 to 1 for {', '.join(SPLITS)}, together 1")
        if not 0 < self.block_deg <= 90:
            raise UsageError(f"block_deg={self.block_deg}: legal: above 0, to 90 degrees")

    def needs(self) -> tuple[str, ...]:
        """The index columns that `assign` looks at."""
        named = {"block": ("split_lon", "split_lat"), "random": ("lon",), "given": ("split",)}
        return named.get(self.by) or (self.by.removeprefix(COLUMN),)

    def described(self, seed: int) -> dict[str, Any]:
        """As root attribute `splits`."""
        if self.by == "given":
            return {"by": "given"}
        block = {"block_deg": self.block_deg} if self.by == "block" else {}
        return {"by": self.by, "seed": seed, **block, "fractions": list(self.fractions)}


def split_rule(split: str | SplitRule) -> SplitRule:
    """The rule that `by` alone stands for."""
    return SplitRule(split) if isinstance(split, str) else split


def windows(height: int, width: int, *, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """(y, x) of each whole window, row by row. What is left at the right and lower edge, less than a stride, is not covered."""
    if size < 1 or stride < 1:
        raise UsageError(f"size={size}, stride={stride}: both must be at least 1 pixel")
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            yield y, x


def blocks(lon: np.ndarray, lat: np.ndarray, *, block_deg: float = BLOCK_DEG) -> np.ndarray:
    """(N, 2) int64 row and column of each point's block; columns are widened by 1/cos(latitude) to stay about square.

    180 degrees east and west are one meridian, an edge of blocks; those on both sides of it are narrower than the others.
    """
    lon = np.where((lon >= -180) & (lon < 180), lon, (lon + 180) % 360 - 180)
    row = np.floor(lat / block_deg).astype(np.int64)
    middle = np.clip((row + 0.5) * block_deg, -89.0, 89.0)
    column = np.floor(lon * np.cos(np.radians(middle)) / block_deg).astype(np.int64)
    return np.stack([row, column], axis=1)


def assign(columns: Mapping[str, np.ndarray], rule: SplitRule, *, seed: int) -> np.ndarray:
    """(N,) uint8 split of each patch.

    columns: index columns by name, (N,) each: `split_lon` and `split_lat` for blocks, the named one for groups, `split` where it is given.
    UsageError when the named column is not there.
    """
    if rule.by == "given":
        return np.asarray(columns["split"], np.uint8)
    if rule.by == "block":
        return split_codes(columns["split_lon"], columns["split_lat"], seed=seed, fractions=rule.fractions, block_deg=rule.block_deg)
    if rule.by == "random":
        keys, inverse = [f"patch {row}" for row in range(len(columns["lon"]))], slice(None)
    else:
        values = _group_column(columns, rule.by.removeprefix(COLUMN))
        unique, inverse = np.unique(values, return_inverse=True)
        keys = [f"{rule.by} {value}" for value in unique.tolist()]
    return _codes(keys, seed=seed, fractions=rule.fractions)[inverse]


def split_codes(lon: np.ndarray, lat: np.ndarray, *, seed: int, fractions: tuple[float, ...] = FRACTIONS,
                block_deg: float = BLOCK_DEG) -> np.ndarray:
    """(N,) uint8 split of each point, one for all points of a block. UsageError for a point without a place."""
    if unknown := int(np.count_nonzero(~(np.isfinite(lon) & np.isfinite(lat)))):
        raise UsageError(f"split=block: {unknown} of {len(lon)} rows have no place; legal: random, column:NAME")
    unique, inverse = np.unique(blocks(lon, lat, block_deg=block_deg), axis=0, return_inverse=True)
    return _codes([f"{row} {column}" for row, column in unique.tolist()], seed=seed, fractions=fractions)[inverse.reshape(-1)]


def _group_column(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    legal = [known for known in columns if known not in ("id", "split", "split_lon", "split_lat") and not known.startswith("label ")]
    if name not in legal:
        raise UsageError(f"split={COLUMN}{name}: no such index column; {nearest(name, legal)}")
    return np.asarray(columns[name])


def _codes(keys: list[str], *, seed: int, fractions: tuple[float, ...]) -> np.ndarray:
    """(len(keys),) uint8 split of each unit."""
    draw = np.array([_uniform(seed, key) for key in keys])
    code = np.searchsorted(np.round(np.cumsum(fractions[:-1]), 12), draw, side="right").astype(np.uint8)
    return _filled(code, draw, [fraction > 0 for fraction in fractions])


def _filled(code: np.ndarray, draw: np.ndarray, wanted: list[bool]) -> np.ndarray:
    """No split with a fraction is empty while there are units for it: first train, then val, then test take one."""
    train, val, test = (SPLITS.index(name) for name in SPLITS)
    if wanted[train] and len(code) and not (code == train).any():
        code[np.argmin(draw)] = train
    # Train first: it may take the only val unit, and then the highest draw, never the same unit, becomes val.
    if wanted[val] and len(code) > wanted[train] and not (code == val).any():
        code[np.argmax(draw)] = val
    if wanted[test] and len(code) > wanted[train] + wanted[val] and not (code == test).any():
        spare = np.bincount(code, minlength=len(SPLITS))[code] > 1
        code[np.argmax(np.where(spare, draw, -1.0))] = test
    return code


def _uniform(seed: int, key: str) -> float:
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / math.ldexp(1.0, 64)
