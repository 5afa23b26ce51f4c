"""What the profile compares a step with: the loader by itself, and the time that the machine needs at least for a step's operations and bytes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsengine import config as configuration
from dsengine.corpus import Corpus, open_corpus
from dsengine.data import order
from dsengine.data.chunks import ShardIndex, read_chunks
from dsengine.data.loader import read_views
from dsengine.data.native import SLACK
from dsengine.data.patches import windows
from dsengine.data.pipeline import open_pipeline
from dsengine.data.plan import LoadPlan, make_plan, members
from dsengine.data.sample import sized
from dsengine.engine import profile
from dsengine.engine.dry_run import GPUS, cost_like
from dsengine.engine.history import read_history
from dsengine.engine.precision import view_dtype
from dsengine.engine.train import fresh_method

_BATCHES = 3


def finish(run: Path) -> list[str]:
    """Add to the profile of a finished run, and tell all of it.

    {"loader_s" (of patches alone), "flops", "moved_bytes", "bound_s", "bound"} of rank 0's step; RunError where there is no profile.
    """
    found, config = profile.read(run), configuration.resolve(configuration.load_file(run / "config.yaml"))
    begun = [event for event in read_history(run) if event["event"] == "start"][-1]
    corpus, device, ranks = open_corpus(config.corpus), torch.device(begun["machine"]["device"]), begun["ranks"]
    cost, passes = cost_like(config, corpus, ranks=ranks)
    found |= {"flops": passes * cost.flops * (1 if cost.backward else 3), "moved_bytes": passes * cost.moved_bytes}
    flops, memory, what = _rates(config.train.precision, device)
    if flops:
        found |= {"bound_s": found["flops"] / flops + found["moved_bytes"] / memory, "bound": f"{what}; operations, then bytes, one after the other"}
    if isinstance(corpus, Corpus):
        method = fresh_method(config, corpus.bands)
        plan = make_plan(corpus, sized(method.views, config.data.size), global_batch=config.train.batch_size, world=ranks, device=device,
                         seed=config.train.seed, dtype=view_dtype(config.train.precision), where=config.data.where, label=method.label)
        found["loader_s"] = loader_seconds(plan, num_threads=config.data.threads)
    profile.write(run, found)
    return [*profile.lines(found), f"trace        {run / 'profile' / 'trace.json'}"]


def loader_seconds(plan: LoadPlan, *, num_threads: int) -> dict[str, float]:
    """{"load", "decode", "augment"}: seconds of a batch of this rank, nothing kept in memory, one after the other; medians of a few batches."""
    steps = order.walk(plan.rows, seed=plan.seed, start=0, global_batch=plan.global_batch)
    most = -(-plan.global_batch // plan.world) * len({view.of for view in plan.views})
    rows = []
    with open_pipeline(plan.layouts, max_batch=most, num_threads=num_threads, device=plan.device) as pipeline:
        for _, step in zip(range(_BATCHES + 1), steps):
            ids = step.ids[order.local_slice(len(step.ids), plan.rank, plan.world)]
            wanted = np.concatenate(list(members(plan, ids, epoch=step.epoch).values()))
            start = time.perf_counter()
            _read_alone(plan, wanted)
            read = time.perf_counter()
            with pipeline.lease(wanted) as raw:
                _wait(plan.device)
                leased = time.perf_counter()
                held = _Held(tuple(x.clone() for x in raw))
            _wait(plan.device)
            begin = time.perf_counter()
            read_views(plan, held, ids, epoch=step.epoch, level=None)
            _wait(plan.device)
            rows.append((read - start, max(0.0, leased - read - (read - start)), time.perf_counter() - begin))
    return dict(zip(("load", "decode", "augment"), np.median(rows[1:], axis=0).tolist()))


class _Held:
    """Lends patches that are decoded already."""

    def __init__(self, raw: tuple[torch.Tensor, ...]) -> None:
        self._raw = raw

    @contextmanager
    def lease(self, ids: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
        yield self._raw


def _read_alone(plan: LoadPlan, ids: np.ndarray) -> None:
    """The chunks' bytes, not decoded; by one thread."""
    for layout in plan.layouts:
        for window in windows(ShardIndex(layout).locate(ids)):
            read_chunks(layout, window, np.empty(int(window.size.sum()) + SLACK, dtype=np.uint8))


def _rates(precision: str, device: torch.device) -> tuple[float, float, str]:
    """Operations and bytes a second that this machine is capable of, and how that is known; zeros for a GPU that is not in the table."""
    if device.type == "cpu":
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}.get(precision, torch.float32)
        return (*_measured(dtype), "as large products and copies run here")
    name = torch.cuda.get_device_name(device)
    known = next((gpu for title, gpu in GPUS.items() if title.split()[0] in name), None)
    if known is None:
        return 0.0, 0.0, ""
    return known.half_flops if precision in ("bf16", "fp16") else known.single_flops, known.memory_rate, f"peaks of the {name}"


def _measured(dtype: torch.dtype) -> tuple[float, float]:
    a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    x, y = torch.empty(32 * 2**20), torch.zeros(32 * 2**20)
    product, copy = (_best(action) for action in (lambda: a @ b, lambda: x.copy_(y)))
    return 2 * 1024**3 / product, 2 * x.nbytes / copy


def _best(action: Any) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
