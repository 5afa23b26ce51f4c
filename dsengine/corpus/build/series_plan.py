"""A build of series or pixels, decided before anything is written; the twin of `build.plan`."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsengine.corpus.build import journal
from dsengine.corpus.build.cluster import run_on_cluster
from dsengine.corpus.build.grid import SplitRule
from dsengine.corpus.build.series_block import SeriesBlock, SeriesOutline, Spread, write_block
from dsengine.corpus.build.series_writer import SeriesWriter
from dsengine.corpus.build.workers import run_in_processes
from dsengine.corpus.series_schema import SeriesLayout
from dsengine.corpus.storage import Storage, Url, absolute, storage_at
from dsengine.errors import UsageError


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
    prepare: Callable[[], None] | None = None  # here, before the first cut of each start, such as unpacking to a scratch folder
    cleanup: Callable[[], None] | None = None  # here, after the corpus is complete

    @property
    def num_patches(self) -> int:
        """What a progress bar counts to."""
        return self.num_rows


def build_series(out: str | os.PathLike[str] | Url, plan: SeriesPlan, *, workers: int = 1, scheduler: str | None = None,
                 progress: Callable[[int, int], None] | None = None) -> Path | Url:
    """Carry out `plan` at `out`, or continue an equal build. Returns the path; arguments and promises as in `build.plan.build_corpus`."""
    if workers < 1 or (scheduler is not None and workers > 1):
        raise UsageError(f"workers={workers}, scheduler={scheduler}: legal: 1 worker or more, or a scheduler")
    with SeriesWriter(out, layout=plan.layout, num_rows=plan.num_rows, made_by=plan.made_by, columns=plan.columns, split=plan.split,
                      seed=plan.seed) as writer:
        job = BlockJob(storage=storage_at(absolute(out)), outline=writer.outline, cut=plan.cut, worker_name=writer.worker_name)
        missing = writer.missing
        if plan.prepare and missing:
            plan.prepare()

        def done(block: int) -> None:
            writer.written(block)
            if progress:
                progress(writer.num_written, plan.num_rows)

        if scheduler is not None:
            run_on_cluster(job, missing, address=scheduler, done=done)
        elif workers > 1 and len(missing) > 1:
            run_in_processes(job, missing, workers=min(workers, len(missing)), done=done)
        else:
            for block in missing:
                job(block, spread=writer.spread)
                done(block)
        path = writer.finish()
    if plan.cleanup:
        plan.cleanup()
    return path


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """Cut, encode and write any one block of a build, in whatever process."""

    storage: Storage
    outline: SeriesOutline
    cut: Callable[[range], SeriesBlock]
    worker_name: str  # as the writer was admitted

    def prepare(self, block: int, *, spread: Spread = map) -> Callable[[], None]:
        """Cut it; calling what is returned, in any thread, encodes and writes it."""
        with ExitStack() as stack:
            stack.enter_context(journal.task(self.storage, self.worker_name))
            values = self.cut(self.outline.rows(block))
            admitted = stack.pop_all()  # for as long as the writing takes

        def write() -> None:
            with admitted:
                write_block(self.storage, self.outline, block, values, spread=spread)

        return write

    def __call__(self, block: int, *, spread: Spread = map) -> None:
        self.prepare(block, spread=spread)()
