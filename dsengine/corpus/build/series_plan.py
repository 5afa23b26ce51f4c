"""A build of series or pixels, decided before anything is written; the twin of `build.plan`."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dsengine.corpus.build.grid import SplitRule
from dsengine.corpus.build.grid import SplitRule
from dsengine.corpus.build.series_writer import SeriesBlock, SeriesWriter
from dsengine.corpus.series_schema import SeriesLayout
from dsengine.corpus.storage import Url


@dataclass(frozen=True, kw_only=True)
class SeriesPlan:
    """All that a build will do. `cut(rows)` is pure and pickles, as in `build.plan.Plan`; it raises RunError for input that cannot be read."""

    layout: SeriesLayout
    num_rows: int
    cut: Callable[[range], SeriesBlock]
    made_by: dict[str, Any]  # JSON; a build continues only under an equal one
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str | SplitRule = "given"
    seed: int = 0
    prepare: Callable[[], None] | None = None  # before the first cut of each start, such as unpacking to a scratch folder
    cleanup: Callable[[], None] | None = None  # after the corpus is complete

    @property
    def num_patches(self) -> int:
        """What a progress bar counts to."""
        return self.num_rows


def build_series(out: str | os.PathLike[str] | Url, plan: SeriesPlan, *, progress: Callable[[int, int], None] | None = None,
                 workers: int = 1) -> Path | Url:
    """Carry out `plan` at `out`, or continue an equal build. Returns the path; the bytes do not depend on `workers` processes."""
    with SeriesWriter(out, layout=plan.layout, num_rows=plan.num_rows, made_by=plan.made_by, columns=plan.columns, split=plan.split,
                      seed=plan.seed) as writer:
        if plan.prepare and writer.next_row < plan.num_rows:
            plan.prepare()
        step = plan.layout.rows_a_block()
        todo = [range(start, min(start + step, plan.num_rows)) for start in range(writer.next_row, plan.num_rows, step)]
        with _cut_in_order(plan.cut, todo, workers) as blocks:
            for block in blocks:
                writer.append(block)
                if progress:
                    progress(writer.next_row, plan.num_rows)
        path = writer.finish()
    if plan.cleanup:
        plan.cleanup()
    return path


@contextmanager
def _cut_in_order(cut: Callable[[range], SeriesBlock], todo: list[range], workers: int) -> Iterator[Iterator[SeriesBlock]]:
    """The blocks of `todo`, in order; at most one more than `workers` are under way, so memory stays bounded."""
    if workers <= 1:
        yield map(cut, todo)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield _ahead(pool, cut, todo, workers + 1)


def _ahead(pool: ProcessPoolExecutor, cut: Callable[[range], SeriesBlock], todo: list[range], depth: int) -> Iterator[SeriesBlock]:
    waiting = deque(pool.submit(cut, rows) for rows in todo[:depth])
    for number in range(len(todo)):
        block = waiting.popleft().result()
        if number + depth < len(todo):
            waiting.append(pool.submit(cut, todo[number + depth]))
        yield block
