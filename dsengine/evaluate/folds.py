"""Which rows are trained on, chosen with and judged on.

    corpus            the corpus's own split: by place (blocks of a quarter degree) unless it was built otherwise
    block             by place anew, with `fractions`
    random            patch by patch, for parity with the papers; patches of one place fall on both sides
    column:NAME       whole groups of equal value in an index column
    leave-out:NAME    as many folds as the column has values: each is the test set once, the next one chooses, the others train
A corpus split, or one by block or column, can be told from what pretraining saw; `Fold.leak` says how far test lies from train.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsengine.corpus.build.grid import COLUMN, SplitRule, assign, blocks
from dsengine.corpus.schema import SPLITS
from dsengine.corpus.splits import site_places
from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus import Corpus

LEAVE = "leave-out:"
FRACTIONS = (0.7, 0.2, 0.1)  # of the first paper


@dataclass(frozen=True)
class Fold:
    """One division of the labelled rows; ascending int64, no row in two of them."""

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def make_folds(corpus: "Corpus", rows: np.ndarray, *, split: str, fractions: tuple[float, ...], seed: int) -> list[Fold]:
    """The folds of `rows` (those with a label). UsageError names a rule or column that is not legal, and a part that is empty."""
    if split.startswith(LEAVE):
        return _leave_out(corpus, rows, split.removeprefix(LEAVE))
    if split == "corpus":
        codes = corpus.index.split[rows]
    elif split in ("block", "random") or split.startswith(COLUMN):
        codes = _assigned(corpus, SplitRule(split, fractions), seed=seed)[rows]
    else:
        raise UsageError(f"split={split!r} is not legal: corpus, block, random, column:NAME, leave-out:NAME")
    parts = [rows[codes == k] for k in range(len(SPLITS))]
    for name, part in zip(SPLITS, parts):
        if not len(part):
            counts = ", ".join(f"{other} {len(has)}" for other, has in zip(SPLITS, parts))
            raise UsageError(f"split={split}: no labelled patch in {name} ({counts}); legal: a corpus or a rule that fills all three, such as "
                             "split=block, split=random or other fractions")
    return [Fold(split, *parts)]


def described(corpus: "Corpus", *, split: str, fractions: tuple[float, ...], seed: int) -> dict[str, Any]:
    """The rule, for results.json."""
    if split == "corpus":
        return {"by": "corpus", **{f"corpus_{key}": value for key, value in corpus.attributes.get("splits", {}).items()}}
    if split.startswith(LEAVE):
        return {"by": split}
    return SplitRule(split, fractions).described(seed)


def some(rows: np.ndarray, classes: np.ndarray | None, fraction: float, *, seed: int) -> np.ndarray:
    """That share of `rows` (N,), ascending, at least 2: of each class alike and at least one of it, where `classes` (N,) are given.

    Smaller shares are parts of larger ones.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"label_fraction={fraction:g} is not legal: above 0, up to 1")
    lot = np.random.Philox(key=np.array([seed, 0x4C41], np.uint64)).random_raw(len(rows))
    order = np.argsort(lot, kind="stable")
    groups = np.zeros(len(rows), np.int64) if classes is None else np.asarray(classes)
    kept = [of[:max(1, math.ceil(fraction * len(of) - 1e-9))] for value in np.unique(groups) if len(of := order[groups[order] == value])]
    chosen = np.concatenate(kept) if kept else order
    rest = order[~np.isin(order, chosen)]
    return np.sort(rows[np.concatenate((chosen, rest[:max(0, 2 - len(chosen))]))])


def groups_of(corpus: "Corpus", rows: np.ndarray, unit: str) -> np.ndarray:
    """(N,) int64, equal for rows that intervals draw together: the same place (block of a quarter degree), or each its own."""
    if unit == "sample":
        return np.arange(len(rows))
    columns = _columns(corpus)
    lon, lat = (values[rows] for values in site_places(columns, 0.25))
    if not (np.isfinite(lon) & np.isfinite(lat)).all():
        return np.arange(len(rows))
    return np.unique(blocks(lon, lat), axis=0, return_inverse=True)[1].reshape(-1)


def _assigned(corpus: "Corpus", rule: SplitRule, *, seed: int) -> np.ndarray:
    columns = _columns(corpus)
    lon, lat = site_places(columns, rule.block_deg)
    return assign({**columns, "split_lon": lon, "split_lat": lat}, rule, seed=seed)


def _leave_out(corpus: "Corpus", rows: np.ndarray, name: str) -> list[Fold]:
    columns = _columns(corpus)
    legal = [known for known in columns if known not in ("id", "split")]
    if name not in legal:
        raise UsageError(f"split={LEAVE}{name}: no such index column; {nearest(name, legal)}")
    values = np.asarray(columns[name])[rows].astype(str)
    sites = sorted(set(values))
    if len(sites) < 3:
        raise UsageError(f"split={LEAVE}{name}: {len(sites)} different values among the labelled patches; legal: a column with 3 or more")
    if len(sites) > 100:
        raise UsageError(f"split={LEAVE}{name}: {len(sites)} different values would be as many folds; legal: at most 100, or split=column:{name}")
    return [Fold(site, *_parts(rows, values, test=site, val=sites[(k + 1) % len(sites)])) for k, site in enumerate(sites)]


def _parts(rows: np.ndarray, values: np.ndarray, *, test: str, val: str) -> Sequence[np.ndarray]:
    return rows[(values != test) & (values != val)], rows[values == val], rows[values == test]


def _columns(corpus: "Corpus") -> dict[str, np.ndarray]:
    return {**corpus.index._asdict(), **{name: np.asarray(column[...]) for name, column in corpus.columns.items()}}
