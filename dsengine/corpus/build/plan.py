"""A build, decided in full before anything is written: what a source makes of its flags, and what the writer carries out."""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dsengine.corpus.build import journal
from dsengine.corpus.build.cluster import run_on_cluster
from dsengine.corpus.build.grid import SplitRule
from dsengine.corpus.build.shard import Block, Outline, Spread, encode_shard, write_shard
from dsengine.corpus.build.workers import run_in_processes
from dsengine.corpus.build.writer import CorpusWriter
from dsengine.corpus.schema import LabelSpec, Layout
from dsengine.corpus.storage import Storage, Url, absolute, storage_at
from dsengine.errors import UsageError


class Grid(NamedTuple):
    """Where one patch lies: north-up, square pixels."""

    epsg: int
    x: float  # upper left corner, metres
    y: float
    size: int  # pixels of the finest grid
    resolution_m: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a build will do. It pickles, so that any process can cut any rows of it.

    `cut(rows)` returns the patches of consecutive rows as a `Block`. It is pure: the same rows are the same bytes in every process
    and after every restart. It raises RunError for input that cannot be read.
    """

    layout: Layout
    num_patches: int
    cut: Callable[[range], Block]
    made_by: dict[str, Any]  # JSON: command, source, options, files; a build continues only under an equal one
    columns: Mapping[str, str] = field(default_factory=dict)  # index columns beyond the standard ones: name -> dtype (or "str")
    seed: int = 0  # of the split
    split: str | SplitRule = "block"  # what `build.grid.SplitRule` says; given: the source fills index column `split`

    def then(self, step: Callable[[Block], Block], *, labels: tuple[LabelSpec, ...] = ()) -> "Plan":
        """The plan whose blocks go through `step` too, which adds the arrays of `labels`, or index columns."""
        layout = replace(self.layout, labels=(*self.layout.labels, *labels))
        return replace(self, layout=layout, cut=_Then(self.cut, step))


@dataclass(frozen=True)
class _Then:
    """`cut`, then `step`; a class because a lambda does not pickle."""

    cut: Callable[[range], Block]
    step: Callable[[Block], Block]

    def __call__(self, rows: range) -> Block:
        return self.step(self.cut(rows))


def build_corpus(out: str | os.PathLike[str], plan: Plan, *, workers: int = 1, scheduler: str | None = None,
                 progress: Callable[[int, int], None] | None = None) -> Path | Url:
    """Carry out `plan` at `out`, a folder or URL, or continue an equal build. Returns where it is.

    workers: processes of this machine, 1 is this process alone. scheduler: address of a Dask cluster that makes the shards instead.
    The corpus is the same for all of them. `progress(done, total)` is called once a shard.
    """
    if workers < 1:
        raise UsageError(f"workers={workers}: legal: 1 or more")
    if scheduler is not None and workers > 1:
        raise UsageError("workers and scheduler exclude each other: a cluster has workers of its own")
    with CorpusWriter(out, layout=plan.layout, num_patches=plan.num_patches, made_by=plan.made_by, seed=plan.seed, columns=plan.columns,
                      split=plan.split) as writer:
        return carry_out(writer, plan, workers=workers, scheduler=scheduler, progress=progress)


def carry_out(writer: CorpusWriter, plan: Plan, *, workers: int = 1, scheduler: str | None = None,
              progress: Callable[[int, int], None] | None = None) -> Path | Url:
    """The same with the writer of `plan` at hand."""
    job = ShardJob(storage=storage_at(absolute(writer.path)), outline=writer.outline, cut=plan.cut, worker_name=writer.worker_name)
    missing = writer.missing

    def done(shard: int) -> None:
        writer.written(shard)
        if progress:
            progress(writer.num_written, plan.num_patches)

    if scheduler is not None:
        run_on_cluster(job, missing, address=scheduler, done=done)
    elif workers > 1 and len(missing) > 1:
        run_in_processes(job, missing, workers=min(workers, len(missing)), done=done)
    else:
        _run_here(job, missing, spread=writer.spread, done=done)
    return writer.finish()


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Cut, encode and write any one shard of a build, in whatever process."""

    storage: Storage
    outline: Outline
    cut: Callable[[range], Block]
    worker_name: str  # as the writer was admitted

    def prepare(self, shard: int, *, spread: Spread = map) -> Callable[[], None]:
        """Cut and encode it; calling what is returned, in any thread, writes it."""
        with ExitStack() as stack:
            stack.enter_context(journal.task(self.storage, self.worker_name))
            encoded = encode_shard(self.outline, shard, self.cut(self.outline.rows(shard)), spread=spread)
            admitted = stack.pop_all()  # for as long as the writing takes

        def write() -> None:
            with admitted:
                write_shard(self.storage, shard, encoded)

        return write

    def __call__(self, shard: int) -> None:
        self.prepare(shard)()


def _run_here(job: ShardJob, shards: Iterable[int], *, spread: Spread, done: Callable[[int], None]) -> None:
    """Shards one after the other in this process; while one is written, the next is cut."""
    with ThreadPoolExecutor(1, thread_name_prefix="dsengine-write") as pool:
        before = None
        for shard in shards:
            write = job.prepare(shard, spread=spread)
            if before is not None:
                before[0].result()
                done(before[1])
            before = pool.submit(write), shard
        if before is not None:
            before[0].result()
            done(before[1])
