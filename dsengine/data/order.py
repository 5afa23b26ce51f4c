"""Which samples make up which batch: pure functions of (rows, seed, epoch, global step, global batch).

Nothing here knows ranks except `local_slice`, so every number of ranks sees the same global batches and a restart
continues with the batch that would have come next. The permutation sorts rows by a 64-bit word of numpy's Philox
bit generator: raw streams of bit generators are frozen by NEP 19, those of `Generator.permutation` are not.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """One global batch: `ids` (B,) int64 rows of the corpus in global-batch order."""

    step: int
    epoch: int
    ids: np.ndarray


def epoch_order(rows: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Permutation of `rows` (N,) int64 for one epoch; `seed` and `epoch` are integers in [0, 2**64)."""
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(len(rows))
    found = np.argsort(words)  # less than half the time of a stable sort
    drawn = words[found]
    # Without two equal words there is one answer, whatever sorts; with them only a stable sort is the same on every machine.
    return rows[np.argsort(words, kind="stable") if (drawn[1:] == drawn[:-1]).any() else found]


def steps_per_epoch(num_rows: int, global_batch: int) -> int:
    """Whole global batches in an epoch; the last partial one is dropped in training."""
    return num_rows // global_batch


def batch_ids(rows: np.ndarray, *, seed: int, step: int, global_batch: int) -> tuple[int, np.ndarray]:
    """Epoch and (global_batch,) int64 rows of global step `step`, counted from 0 over all epochs."""
    found = next(walk(rows, seed=seed, start=step, global_batch=global_batch))
    return found.epoch, found.ids


def walk(rows: np.ndarray, *, seed: int, start: int, global_batch: int, shuffle: bool = True) -> Iterator[Step]:
    """Global batches from step `start` on, without end; the order of an epoch is computed once."""
    per_epoch = steps_per_epoch(len(rows), global_batch)
    epoch, first = divmod(start, per_epoch)
    while True:
        order = epoch_order(rows, seed=seed, epoch=epoch) if shuffle else rows
        for k in range(first, per_epoch):
            yield Step(epoch * per_epoch + k, epoch, order[k * global_batch:(k + 1) * global_batch])
        epoch, first = epoch + 1, 0


def walk_once(rows: np.ndarray, *, global_batch: int) -> Iterator[np.ndarray]:
    """Every row once, in the order given, the last batch as small as it comes (evaluation)."""
    for lo in range(0, len(rows), global_batch):
        yield rows[lo:lo + global_batch]


def local_slice(global_batch: int, rank: int, world: int) -> slice:
    """This rank's contiguous rows of a global batch; sizes differ by at most 1 where `world` does not divide it."""
    return slice(global_batch * rank // world, global_batch * (rank + 1) // world)
