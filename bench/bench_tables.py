"""Batches of pixels out of memory: `TableLoader` against index-select in numpy and against DataLoader, on the same numbers.

Run `pytest bench/bench_tables.py --benchmark-enable -s`. Synthetic pixels of 12 + 36 int16, batch 2048, z-scored float32 out;
$DSENGINE_BENCH_ROWS asks for another number than 1,000,000 (the second paper has 14,400,000). The corpus is kept in the user's cache. A ratio is
the other side's time for a batch over ours, paired and interleaved, with a 95 % interval of its median.
What moves these numbers: data/tables.py, data/table_loader.py.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from paired import paired_times
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

import dsengine
from dsengine.corpus import SeriesCorpus
from dsengine.corpus.default import cache_folder
from dsengine.corpus.synth.series import SERIES_VERSION, synthesize_series
from dsengine.data.sample import View
from dsengine.data.table_loader import TableLoader

BATCH, OURS = 2048, 64
BOTH = (View(sensor="s2"), View(sensor="planet"))
CORRUPTED = (View(), View(of="marginals"))


class Held(NamedTuple):
    """The corpus as numpy has it: one (N, 48) int16 array and the affine of its columns."""

    stored: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class Rows(Dataset):
    """One row an item, or with `many` one batch an item."""

    def __init__(self, held: Held) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held.stored)

    def __getitem__(self, row: int | list[int]) -> torch.Tensor:
        return torch.from_numpy((self.held.stored[row].astype(np.float32) - self.held.mean) / self.held.std)


@pytest.fixture(scope="module")
def corpus(request: pytest.FixtureRequest) -> SeriesCorpus:
    timed = request.config.getoption("benchmark_enable")
    rows = int(os.environ.get("DSENGINE_BENCH_ROWS", 1_000_000 if timed else 8192))
    path = cache_folder() / f"bench-pixels-v{SERIES_VERSION}-{rows}"
    if not path.exists():
        synthesize_series(path.with_name(path.name + ".part"), kind="pixels", num_rows=rows)
        os.rename(path.with_name(path.name + ".part"), path)
    return dsengine.open_corpus(path)


@pytest.fixture(scope="module")
def loader(corpus: SeriesCorpus) -> Iterator[TableLoader]:
    before, start = _peak_mb(), time.perf_counter()
    with TableLoader(corpus, BOTH, BATCH, split="all", prefetch=4) as made:
        print(f"\n{len(corpus):,} rows held ({made.tier.kind}: {made.tier.reason}) in {time.perf_counter() - start:.1f} s; "
              f"peak memory {before:,.0f} -> {_peak_mb():,.0f} MB, {len(corpus) * 96 / 1e6:,.0f} MB of numbers")
        yield made
    print(f"peak memory in the end {_peak_mb():,.0f} MB")


@pytest.fixture(scope="module")
def held(corpus: SeriesCorpus, loader: TableLoader) -> Held:
    rows = np.arange(len(corpus))
    stored = np.concatenate([corpus.read_pixels(rows[:1], sensor) for sensor in corpus.sensors], axis=1)
    stored = np.empty((len(rows), stored.shape[1]), np.int16)
    at = 0
    for sensor in corpus.sensors:
        width = corpus.values[sensor].shape[1]
        for lo in range(0, len(rows), 65536):
            stored[lo:lo + 65536, at:at + width] = corpus.values[sensor][lo:lo + 65536]
        at += width
    contract = corpus.contract()
    return Held(stored, *(np.float32(np.array(x) * 1e4) for x in (contract.mean, contract.std)))


def numpy_pass(held: Held, batches: int) -> Callable[[], None]:
    """Random rows by fancy indexing, the affine in float32: what a hand-written loop does."""
    rng, rows = np.random.default_rng(1), Rows(held)

    def one_pass() -> None:
        for _ in range(batches):
            rows[rng.integers(0, len(held.stored), BATCH)]

    return one_pass


def loader_pass(made: Iterator, batches: int) -> Callable[[], None]:
    def one_pass() -> None:
        for _ in range(batches):
            next(made)

    return one_pass


def endless(data: DataLoader) -> Iterator:
    while True:
        yield from data


def dataloader(held: Held, *, whole: bool, workers: int) -> Iterator:
    """torch's DataLoader: `whole` asks the dataset for a batch at once, else it collates rows."""
    sampler = RandomSampler(held.stored, replacement=True, num_samples=1 << 24)
    if whole:
        return endless(DataLoader(Rows(held), batch_size=None, sampler=BatchSampler(sampler, BATCH, drop_last=True), num_workers=workers))
    return endless(DataLoader(Rows(held), batch_size=BATCH, sampler=sampler, num_workers=workers))


RIVALS = {
    "numpy, fancy indexing": lambda held: (numpy_pass(held, OURS), OURS),
    "DataLoader, a row an item": lambda held: (loader_pass(dataloader(held, whole=False, workers=0), 2), 2),
    "DataLoader, a row an item, two workers": lambda held: (loader_pass(dataloader(held, whole=False, workers=2), 4), 4),
    "DataLoader, a batch an item": lambda held: (loader_pass(dataloader(held, whole=True, workers=0), 16), 16),
}


@pytest.mark.parametrize("name", RIVALS)
def test_batches_of_both_sensors_against(name: str, loader: TableLoader, held: Held, benchmark: Callable) -> None:
    theirs, batches = RIVALS[name](held)
    mine = loader_pass(loader, OURS)
    times = paired_times(theirs, mine, pairs=15 if benchmark.enabled else 1)
    ratio, scale = times.ratio(), OURS / batches
    rates = [num * BATCH / float(np.median(x)) for num, x in ((batches, times.a), (OURS, times.b))]
    print(f"\n| {name} | {ratio.median * scale:.1f} [{ratio.low * scale:.1f}, {ratio.high * scale:.1f}] | {rates[0]:,.0f} | {rates[1]:,.0f} |")
    benchmark.extra_info.update(ratio=ratio.median * scale, their_samples_per_s=rates[0], our_samples_per_s=rates[1])
    benchmark.pedantic(mine, rounds=3)


def test_batches_with_their_marginals(corpus: SeriesCorpus, benchmark: Callable) -> None:
    """What random feature corruption needs: of every cell one of another row."""
    with TableLoader(corpus, CORRUPTED, BATCH, split="all", prefetch=4) as made:
        mine = loader_pass(made, 16)
        mine()
        benchmark.pedantic(mine, rounds=5)
        if benchmark.enabled:
            print(f"\nwith marginals: {16 * BATCH / benchmark.stats.stats.median:,.0f} samples/s")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
