"""`TableLoader` and `FixedRows`: what `Loader` and `FixedViews` are for patches, for corpora of series and of pixels.

Order, state, slices of ranks and exact resume are `Loader`'s own; what differs is where a batch comes from (`data.tables`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields

import numpy as np
import torch

from dsengine.augment.params import Augment
from dsengine.corpus import SeriesCorpus
from dsengine.data import order
from dsengine.data.labels import LabelReader, label_tables
from dsengine.data.loader import TIMEOUT_S, FixedViews, Loader, Made, Pace, make_pace
from dsengine.data.plan import DTYPES, check_numbers, find_device, spread
from dsengine.data.resident import Tier, choose_tier, free_memory
from dsengine.data.sample import Batch, View, band_names
from dsengine.data.tables import Part, Tables, parts_of, table_bytes
from dsengine.dist import World
from dsengine.errors import UsageError, nearest

_OF = ("itself", "marginals")


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """What `LoadPlan` is for patches."""

    corpus: SeriesCorpus
    views: tuple[View, ...]
    parts: tuple[tuple[Part, ...], ...]  # one tuple a view
    rows: np.ndarray  # (N,) int64, ascending
    global_batch: int
    seed: int
    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype
    label: str | None
    triples: None = None  # rows have no neighbours

    @property
    def every_part(self) -> tuple[Part, ...]:
        """Of all views."""
        return tuple(part for parts in self.parts for part in parts)


def make_table_plan(corpus: SeriesCorpus, views: Sequence[View], *, global_batch: int, split: str = "train", where: str | None = None,
                    limit: int | None = None, seed: int = 0, rank: int = 0, world: int = 1, device: str | torch.device = "cpu",
                    dtype: torch.dtype = torch.float32, label: str | None = None) -> TablePlan:
    """The checked plan of the split's rows that meet `where`; `limit` keeps that many, evenly spread. Raises UsageError."""
    if not views:
        raise UsageError("views: none given; legal: one View or more")
    for number, view in enumerate(views, 1):
        _check_view(corpus, view, f"view {number}")
    corpus.contract()  # that there are statistics
    rows = spread(corpus.rows(split, where), limit)
    if not len(rows):
        met = "" if where is None else f" with {where}"
        raise UsageError(f"split: {split!r} of {corpus.path} has no {corpus.kind}{met}; legal: a split that has some")
    check_numbers(global_batch=global_batch, seed=seed, rank=rank, world=world)
    if label is not None and label not in (tables := label_tables(corpus)):
        raise UsageError(f"label {label!r} is not in {corpus.path}" + (f", {nearest(label, tables)}" if tables else ", which has no labels"))
    if dtype not in DTYPES:
        raise UsageError(f"dtype: {dtype} is not legal: {', '.join(map(str, DTYPES))}")
    return TablePlan(corpus=corpus, views=tuple(views), parts=tuple(parts_of(view, corpus.bands) for view in views), rows=rows,
                     global_batch=global_batch, seed=seed, rank=rank, world=world, device=find_device(device), dtype=dtype, label=label)


def _check_view(corpus: SeriesCorpus, view: View, what: str) -> None:
    """UsageError, naming the field, for a view that rows of a table cannot give."""
    of_images = [("size", view.size, None), ("draw_bands", view.draw_bands, None)]
    of_images += [(f"augment.{f.name}", getattr(view.augment, f.name), getattr(Augment(), f.name)) for f in fields(Augment)]
    for name, value, plain in of_images:
        if value != plain:
            raise UsageError(f"{what}: {name}={value} is for image patches, and {corpus.path} holds {corpus.kind}; legal: {plain}")
    if view.of not in _OF:
        raise UsageError(f"{what}: of={view.of!r} is for image patches, and {corpus.path} holds {corpus.kind}; legal: {', '.join(_OF)}")
    known = [band.name for band in corpus.bands]
    for name in band_names(view, corpus.bands):
        if name not in known:
            raise UsageError(f"{what}: band {name!r} is not in the corpus, {nearest(name, known)}")
    dates = {part.sensor: corpus.values[part.sensor].shape[1] for part in parts_of(view, corpus.bands)}
    if corpus.kind == "series" and len(set(dates.values())) > 1:
        lengths = ", ".join(f"{sensor} {count}" for sensor, count in dates.items())
        raise UsageError(f"{what}: sensors differ in their number of dates ({lengths}) and cannot lie side by side; legal: one of them, by its name")


def table_tier(plan: TablePlan, resident: str, *, ranks: int) -> Tier:
    """Where each of `ranks` ranks holds the rows of `plan`: like patches, but always in memory. UsageError where they do not fit."""
    if resident == "none":
        raise UsageError(f"resident: 'none' is not legal here: {plan.corpus.kind} are always held in memory; legal: auto, gpu, ram")
    num_bytes, free = table_bytes(plan.corpus, plan.every_part, len(plan.rows)), free_memory(plan.device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    tier = choose_tier(resident, num_bytes, free, ranks=here)
    if tier.kind != "none":
        return tier
    if num_bytes > free.ram // here:
        raise UsageError(f"corpus: {len(plan.rows):,} {plan.corpus.kind} of {plan.corpus.path} take {num_bytes / 1e9:.1f} GB a rank, and "
                         f"{free.ram / here / 1e9:.1f} GB are free; legal: fewer rows, by data.where, or fewer ranks on this machine")
    return Tier("ram", f"{num_bytes / 1e9:.1f} GB, more than half of the {free.ram / here / 1e9:.1f} GB free, but {plan.corpus.kind} are always held in memory")


def open_tables(plan: TablePlan, pace: Pace) -> Tables:
    """Read what `plan` needs to where the pace's tier says, with its threads."""
    home = plan.device if pace.tier.kind == "gpu" else torch.device("cpu")
    return Tables(plan.corpus, plan.every_part, plan.rows, home=home, device=plan.device, num_threads=pace.num_threads)


class TableLoader(Loader):
    """`Loader` for a corpus of series or pixels: views are (B, T, C) or (B, C); see `Tables.take`. Reads its rows when it is made."""

    def __init__(self, corpus: SeriesCorpus, views: Sequence[View], batch_size: int, seed: int = 0, rank: int = 0, world: int = 1,
                 device: str | torch.device = "cpu", *, split: str = "train", where: str | None = None, dtype: torch.dtype = torch.float32,
                 shuffle: bool = True, num_threads: int | None = None, prefetch: int | None = None, label: str | None = None, resident: str = "auto",
                 timeout_s: float = TIMEOUT_S) -> None:
        plan = make_table_plan(corpus, views, split=split, where=where, global_batch=batch_size, seed=seed, rank=rank, world=world,
                               device=device, dtype=dtype, label=label)
        pace = make_pace(num_threads, prefetch, plan, timeout_s=timeout_s, tier=table_tier(plan, resident, ranks=world))
        self._begin(plan, pace, split=split, shuffle=shuffle)
        self._tables = open_tables(plan, pace)

    @staticmethod
    def heldout(corpus: SeriesCorpus, views: Sequence[View], batch_size: int, seed: int = 0, rank: int = 0, world: int = 1,
                device: str | torch.device = "cpu", *, split: str = "val", where: str | None = None, limit: int | None = None,
                dtype: torch.dtype = torch.float32, num_threads: int | None = None, prefetch: int | None = None, label: str | None = None,
                timeout_s: float = TIMEOUT_S) -> "FixedRows":
        """The same rows of a split at every pass; see `FixedViews`. `limit`: at most so many, evenly spread."""
        plan = make_table_plan(corpus, views, split=split, where=where, limit=limit, global_batch=batch_size, seed=seed, rank=rank,
                               world=world, device=device, dtype=dtype, label=label)
        return FixedRows(plan, make_pace(num_threads, prefetch, plan, timeout_s=timeout_s, tier=table_tier(plan, "auto", ranks=world)))

    def _produce(self, steps: Iterator[order.Step]) -> Iterator[Made]:
        return produce(self._plan, self._tables, steps)


class FixedRows(FixedViews):
    """`FixedViews` of rows of a table; what is drawn is drawn out of these rows."""

    def __init__(self, plan: TablePlan, pace: Pace) -> None:
        super().__init__(plan, pace)
        self._tables = open_tables(plan, pace)

    def _produce(self, steps: Iterator[order.Step]) -> Iterator[Made]:
        return produce(self._plan, self._tables, steps)


def produce(plan: TablePlan, tables: Tables, steps: Iterator[order.Step]) -> Iterator[Made]:
    """Batches of `steps`, made one after the other on a stream of their own."""
    stream = torch.cuda.Stream(plan.device) if plan.device.type == "cuda" else None
    labels = None if plan.label is None else LabelReader(plan.corpus, plan.label)
    for step in steps:
        yield make(plan, tables, step, stream=stream, labels=labels)  # no name holds it: it is the consumer's


def make(plan: TablePlan, tables: Tables, step: order.Step, *, stream: torch.cuda.Stream | None, labels: LabelReader | None) -> Made:
    """This rank's rows of `step` as a batch on the plan's device, written on `stream`."""
    ids = step.ids[order.local_slice(len(step.ids), plan.rank, plan.world)]
    with torch.cuda.stream(stream) if stream else nullcontext():
        views = tuple(_view(plan, tables, number, ids, step.epoch) for number in range(len(plan.views)))
        label = None if labels is None else labels.read(ids, None).to(plan.device)
        batch = Batch(views=views, sample_id=torch.tensor(ids, device=plan.device), label=label, seed=plan.seed, step=step.step,
                      world=World(plan.rank, plan.world))
        return Made(batch, stream.record_event() if stream else None)


def _view(plan: TablePlan, tables: Tables, number: int, ids: np.ndarray, epoch: int) -> torch.Tensor:
    if plan.views[number].of == "itself":
        return tables.take(plan.parts[number], ids, dtype=plan.dtype)
    return tables.marginals(plan.parts[number], ids, dtype=plan.dtype, seed=plan.seed, epoch=epoch, view=number)
