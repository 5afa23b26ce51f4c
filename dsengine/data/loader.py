"""`Loader` (endless, shuffled, resumable) and `FixedViews` (one pass, repeatable): batches from a background thread.

The thread reads, decodes and augments ahead of training, or, with prefetch 0, while the consumer waits; what it waits inside `next` is all that
loading costs.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine.augment.apply import augment
from dsengine.augment.params import HELDOUT_EPOCH
from dsengine.corpus import Corpus
from dsengine.data import order
from dsengine.data.labels import LabelReader
from dsengine.data.pipeline import Patches
from dsengine.data.plan import LoadPlan, make_plan, members, out_channels, requests
from dsengine.data.prefetch import Prefetcher, batches_ahead
from dsengine.data.resident import Tier, choose_tier, free_memory, open_kept
from dsengine.data.ring import Ring
from dsengine.data.sample import Batch, View
from dsengine.dist import World
from dsengine.errors import RunError, UsageError

TIMEOUT_S = 900.0  # an object store gives up on its own before; a network file system may never
NOTHING_KEPT = Tier("none", "as asked")


class Pace(NamedTuple):
    """How fast batches come; never what is in them."""

    num_threads: int  # that read and decode
    prefetch: int  # finished batches ahead of the consumer
    tier: Tier  # where decoded patches are kept
    timeout_s: float  # the longest that a consumer waits for a batch


class Made(NamedTuple):
    """A batch and, on CUDA, the event after which its tensors are written."""

    batch: Batch
    ready: torch.cuda.Event | None


class Loader:
    """Endless batches of one split, the same global batches for any number of ranks and after any restart.

    where: a condition on index columns (`corpus.where`); patches that do not meet it are left out. None: no condition.
    batch_size is global: each rank gets batch_size / world rows of it. level None follows each view's curriculum by
    epoch, a number in [0, 1] fixes it. num_threads None is as many as this rank's share of the cores, at most 8. prefetch: batches made ahead of
    the consumer, None as `batches_ahead` has it.
    pad_channels fills the channels up to a multiple of 8 with zeros. label: name of what `Batch.label` holds (`data.labels`).
    The last partial batch of an epoch is dropped. resident: where patches are kept once they are decoded (`data.resident`); `tier` says what
    became of it. A batch that takes longer than timeout_s seconds is a RunError with its samples.
    Raises UsageError for a request that cannot be met; damaged data is a RunError out of `next`.
    Close it, or use it as a context manager; a forgotten one ends its threads when it is collected.
    """

    def __init__(self, corpus: Corpus, views: Sequence[View], batch_size: int, seed: int = 0, rank: int = 0,
                 world: int = 1, device: str | torch.device = "cpu", *, split: str = "train",
                 where: str | None = None, dtype: torch.dtype = torch.float32, shuffle: bool = True, level: float | None = None,
                 num_threads: int | None = None, prefetch: int | None = None, pad_channels: bool = False, label: str | None = None,
                 resident: str = "none", timeout_s: float = TIMEOUT_S) -> None:
        plan = make_plan(corpus, views, split=split, where=where, global_batch=batch_size, seed=seed, rank=rank,
                         world=world, device=device, dtype=dtype, pad_channels=pad_channels, label=label)
        if level is not None and not 0 <= level <= 1:
            raise UsageError(f"level: {level} is not legal, it must be in [0, 1] or None")
        self._level = level
        self._begin(plan, make_pace(num_threads, prefetch, plan, timeout_s=timeout_s, tier=plan_tier(plan, resident, ranks=world)),
                    split=split, shuffle=shuffle)

    def _begin(self, plan: LoadPlan, pace: Pace, *, split: str, shuffle: bool) -> None:
        """Stand at step 0 of `plan`."""
        rows = len(plan.rows)
        if plan.global_batch > rows:
            raise UsageError(f"batch_size: {plan.global_batch} is more than the {rows} {plan.corpus.kind} of split {split!r} in "
                             f"{plan.corpus.path}; legal: 1 to {rows}")
        if plan.global_batch % plan.world:
            raise UsageError(f"batch_size: {plan.global_batch} is not divisible by world={plan.world}; legal: multiples of {plan.world}")
        self._plan, self._pace, self._shuffle = plan, pace, shuffle
        self._step = 0
        self._ahead: Prefetcher | None = None

    def _produce(self, steps: Iterator[order.Step]) -> Iterator[Made]:
        return produce(self._plan, steps, pace=self._pace, level=self._level)

    @staticmethod
    def heldout(corpus: Corpus, views: Sequence[View], batch_size: int, seed: int = 0, rank: int = 0, world: int = 1,
                device: str | torch.device = "cpu", *, split: str = "val", where: str | None = None, limit: int | None = None,
                dtype: torch.dtype = torch.float32, num_threads: int | None = None, prefetch: int | None = None,
                pad_channels: bool = False, label: str | None = None, timeout_s: float = TIMEOUT_S) -> "FixedViews":
        """The same views of a split at every pass; see `FixedViews`. `limit`: at most so many rows, evenly spread."""
        plan = make_plan(corpus, views, split=split, where=where, limit=limit, global_batch=batch_size, seed=seed, rank=rank,
                         world=world, device=device, dtype=dtype, pad_channels=pad_channels, label=label)
        return FixedViews(plan, make_pace(num_threads, prefetch, plan, timeout_s=timeout_s))

    @property
    def tier(self) -> Tier:
        """Where decoded patches are kept, and why there."""
        return self._pace.tier

    @property
    def prefetch(self) -> int:
        """Batches made ahead of the consumer."""
        return self._pace.prefetch

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return order.steps_per_epoch(len(self._plan.rows), self._plan.global_batch)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        """This rank's rows of the next global batch. Raises what failed in the background, with its traceback."""
        if self._ahead is None:
            self._ahead = Prefetcher(self._produce(self._walk()), depth=self._pace.prefetch)
        try:
            batch = received(self._ahead.next(self._pace.timeout_s))
        except TimeoutError:
            self._ahead, hung = None, self._ahead
            raise late(self._plan, self._pace, hung, next(self._walk())) from None
        self._step = batch.step + 1
        return batch

    def _walk(self) -> Iterator[order.Step]:
        """What comes, from the consumer's position on."""
        return order.walk(self._plan.rows, seed=self._plan.seed, start=self._step, global_batch=self._plan.global_batch, shuffle=self._shuffle)

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts, and what must be equal for it to be the same batch."""
        return {"step": self._step, "seed": self._plan.seed, "batch_size": self._plan.global_batch,
                "num_rows": len(self._plan.rows), "rows_crc": zlib.crc32(self._plan.rows.tobytes()),
                **({} if self._plan.triples is None else {"table_crc": self._plan.triples.crc})}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`; only "step" is required. UsageError where another loader would give other batches."""
        for key, ours in self.state_dict().items():
            if key != "step" and state.get(key, ours) != ours:
                raise UsageError(f"{key}: the saved position is of {key} {state[key]}, this loader has {ours}; legal: {ours}")
        if state["step"] < 0:
            raise UsageError(f"step: {state['step']} is not legal, it must be 0 or more")
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """End all threads. Iterating again starts new ones where the consumer stopped."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FixedViews:
    """A split once, in its own order, at full strength, the last batch as small as it comes; each pass is bitwise the same.

    `Batch.step` counts batches. Where world does not divide a batch, ranks differ by a row, and a rank may get none.
    """

    def __init__(self, plan: LoadPlan, pace: Pace) -> None:
        self._plan = plan
        self._pace = pace
        self._passes: list[Prefetcher] = []

    def __len__(self) -> int:
        return -(-len(self._plan.rows) // self._plan.global_batch)

    def __iter__(self) -> Iterator[Batch]:
        batches = order.walk_once(self._plan.rows, global_batch=self._plan.global_batch)
        steps = [order.Step(k, HELDOUT_EPOCH, ids) for k, ids in enumerate(batches)]
        ahead = Prefetcher(self._produce(iter(steps)), depth=self._pace.prefetch)
        self._passes.append(ahead)
        try:
            for step in steps:
                try:
                    made = ahead.next(self._pace.timeout_s)
                except TimeoutError:
                    raise late(self._plan, self._pace, ahead, step) from None
                yield received(made)
        finally:
            ahead.close()
            self._passes.remove(ahead)

    def _produce(self, steps: Iterator[order.Step]) -> Iterator[Made]:
        return produce(self._plan, steps, pace=self._pace, level=1.0)

    def close(self) -> None:
        """End the threads of passes that were left unfinished."""
        for ahead in list(self._passes):
            ahead.close()

    def __enter__(self) -> "FixedViews":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def plan_tier(plan: LoadPlan, resident: str, *, ranks: int) -> Tier:
    """Where the patches of `plan` are kept by each of `ranks` ranks. UsageError where that is not legal here."""
    num_bytes = len(plan.pool) * sum(layout.patch_bytes for layout in plan.layouts)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))  # the launcher's number of ranks on this machine
    return choose_tier(resident, num_bytes, free_memory(plan.device), ranks=here)


def make_pace(num_threads: int | None, prefetch: int | None, plan: LoadPlan, *, tier: Tier = NOTHING_KEPT, timeout_s: float = TIMEOUT_S) -> Pace:
    """The checked pace of `plan`; num_threads None: this rank's share of the cores, at most 8."""
    threads = max(1, min(8, len(os.sched_getaffinity(0)) // plan.world)) if num_threads is None else num_threads
    ahead = batches_ahead(on_cpu=plan.device.type == "cpu", local=isinstance(plan.corpus.path, Path)) if prefetch is None else prefetch
    for name, value, least in (("num_threads", threads, 1), ("prefetch", ahead, 0)):
        if value < least:
            raise UsageError(f"{name}: {value} is not legal, it must be {least} or more")
    if not timeout_s > 0:
        raise UsageError(f"timeout_s: {timeout_s} is not legal, it must be more than 0")
    return Pace(threads, ahead, tier, timeout_s)


def late(plan: LoadPlan, pace: Pace, hung: Prefetcher, step: order.Step) -> RunError:
    """What to say of a batch that does not come. Its thread is left to its fate: nothing can wake it."""
    hung.abandon()
    ids = step.ids[order.local_slice(len(step.ids), plan.rank, plan.world)]
    return RunError(f"no batch within {pace.timeout_s:g} s (data.timeout_s) from {plan.corpus.path}: step {step.step}, rank {plan.rank}, "
                    f"samples {', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}; does the file system or store hang?")


def produce(plan: LoadPlan, steps: Iterator[order.Step], *, pace: Pace, level: float | None) -> Iterator[Made]:
    """Batches of `steps`, made one after the other; owns the threads and slabs that make them."""
    stream = torch.cuda.Stream(plan.device) if plan.device.type == "cuda" else None
    most = -(-plan.global_batch // plan.world) * len({view.of for view in plan.views})
    # Batches ahead, the one being made, the consumer's, and its last one until the next is in its hands; a block a view at most.
    ring = Ring((pace.prefetch + 3) * len(plan.views)) if plan.device.type == "cpu" else None
    labels = None if plan.label is None else LabelReader(plan.corpus, plan.label, keep=pace.tier.kind != "none")
    with torch.cuda.stream(stream) if stream else nullcontext():  # what is kept is allocated where it is written
        kept = open_kept(plan.layouts, plan.pool, pace.tier, max_batch=most, num_threads=pace.num_threads, device=plan.device)
    with kept as pipeline:
        for step in steps:
            yield make(plan, pipeline, step, level=level, stream=stream, memory=ring, labels=labels)  # no name holds it: it is the consumer's


def make(plan: LoadPlan, pipeline: Patches, step: order.Step, *, level: float | None,
         stream: torch.cuda.Stream | None, memory: Ring | None, labels: LabelReader | None) -> Made:
    """This rank's rows of `step` as a batch on the plan's device, written on `stream`, in `memory` where there is one."""
    ids = step.ids[order.local_slice(len(step.ids), plan.rank, plan.world)]
    with torch.cuda.stream(stream) if stream else nullcontext():
        views = read_views(plan, pipeline, ids, epoch=step.epoch, level=level, memory=memory) if len(ids) else no_views(plan)
        label = None
        if labels is not None:
            label = labels.read(ids, requests(plan, members(plan, ids, epoch=step.epoch), epoch=step.epoch, level=level)[0]).to(plan.device)
        batch = Batch(views=views, sample_id=torch.tensor(ids, device=plan.device), label=label, seed=plan.seed, step=step.step,
                      world=World(plan.rank, plan.world))
        return Made(batch, stream.record_event() if stream else None)


def read_views(plan: LoadPlan, pipeline: Patches, ids: np.ndarray, *, epoch: int, level: float | None,
               memory: Ring | None = None) -> tuple[Tensor, ...]:
    """The views of samples `ids`, in order; one call of `augment` for each number of output channels and each member of a triple."""
    of = members(plan, ids, epoch=epoch)
    asked = requests(plan, of, epoch=epoch, level=level)
    groups = [(view.of, out_channels(plan, k)) for k, view in enumerate(plan.views)]
    views: dict[int, Tensor] = {}
    with pipeline.lease(np.concatenate(list(of.values()))) as raw:
        sources = [x.to(plan.device) for x in raw]  # nothing to do where the pipeline ends on the device
        parts = {kind: [x[k * len(ids):(k + 1) * len(ids)] for x in sources] for k, kind in enumerate(of)}
        for group in dict.fromkeys(groups):
            mine = [k for k, other in enumerate(groups) if other == group]
            made = augment(parts[group[0]], [asked[k] for k in mine], dtype=plan.dtype, out_channels=group[1], memory=memory)
            views.update(zip(mine, made, strict=True))
    return tuple(views[k] for k in range(len(asked)))


def no_views(plan: LoadPlan) -> tuple[Tensor, ...]:
    """The views of a rank without a row in a held-out batch: (0, C, size, size)."""
    return tuple(torch.empty((0, view.draw_bands or out_channels(plan, k), view.size, view.size), dtype=plan.dtype, device=plan.device)
                 for k, view in enumerate(plan.views))


def received(made: Made) -> Batch:
    """The batch, safe to use on the consumer's current stream."""
    if made.ready is not None:
        stream = torch.cuda.current_stream(made.batch.sample_id.device)
        stream.wait_event(made.ready)
        for tensor in (*made.batch.views, made.batch.sample_id, *(() if made.batch.label is None else (made.batch.label,))):
            tensor.record_stream(stream)  # else the allocator could give the memory to the loader's stream too early
    return made.batch
