"""What the loop adds to a step: engine.train against a bare forward, backward, step, zero_grad loop on the same batch in memory.

Run `pytest bench/bench_step.py --benchmark-enable -s`. Both have the same method, optimiser, memory formats and batch; the engine's loop besides
checks gradients, follows the schedule and the sample order, and writes every 50th step to metrics.jsonl and TensorBoard. A stretch of steps is timed
between two of its calls for a batch, so set-up, the first steps and the last checkpoint are outside. Anything done in every step of the loop, or a
host synchronisation, moves this number. CPU time of the main thread is given beside wall time: on a machine that others use it is the steadier one.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dsengine
from dsengine import config as configuration
from dsengine.corpus.synth import synthesize
from dsengine.data.sample import Batch
from dsengine.dist import SOLO
from dsengine.engine import plan, train as engine
from dsengine.engine.optim import make_optimizer
from dsengine.engine.precision import place

FIRST, STEPS, PAIRS, ROWS = 50, 200, 40, 8
CPU = torch.device("cpu")


class OneBatch:
    """Stands in for the loader: the same batch for ever, at no cost; notes when it was asked for the first and the last of the timed stretch."""

    steps_per_epoch = 1_000_000
    tier = SimpleNamespace(kind="none", reason="a bench")
    prefetch = 0

    def __init__(self, batch: Batch) -> None:
        self.batch, self.asked, self.times = batch, 0, []

    def __enter__(self) -> "OneBatch":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __next__(self) -> Batch:
        self.asked += 1
        if self.asked in (FIRST, FIRST + STEPS):
            self.times.append((time.perf_counter(), time.thread_time()))
        return self.batch

    def state_dict(self) -> dict[str, int]:
        return {"step": 0}

    def stretch_ms(self) -> np.ndarray:
        """(wall, CPU of this thread) a step."""
        return (np.array(self.times[1]) - np.array(self.times[0])) / STEPS * 1e3


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(ROWS, 14, 16, 16, generator=generator).to(memory_format=torch.channels_last) for _ in range(2))
    return Batch(views, torch.arange(ROWS))


def _bare(batch: Batch) -> np.ndarray:
    """A step of the loop anybody would write."""
    torch.manual_seed(0)
    loader = OneBatch(batch)
    method = place(dsengine.build_method("csf", encoder=dsengine.build_encoder("bench.tiny")), "fp32", CPU)
    optimizer = make_optimizer(method, configuration.resolve({}).train)
    for step in range(FIRST + STEPS):
        batch = next(loader)
        optimizer.zero_grad(set_to_none=True)
        method(batch._replace(step=step))["loss"].backward()
        optimizer.step()
    return loader.stretch_ms()


def _engine(config: configuration.RunConfig, out: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A step of a whole run."""
    loader = OneBatch(batch)
    monkeypatch.setattr(engine, "open_loader", lambda *_, **__: loader)
    out.mkdir(parents=True)
    engine.train(config, out, world=SOLO, device=CPU, resume=False)
    return loader.stretch_ms()


def _interval(values: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    low, high = np.percentile([np.median(rng.choice(values, len(values))) for _ in range(2000)], [2.5, 97.5])
    return f"{np.median(values):.3f} [{low:.3f}, {high:.3f}]"


@pytest.mark.parametrize("log_steps", [50, 10])
def test_overhead_of_a_step(log_steps: int, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable) -> None:
    torch.set_num_threads(1)
    corpus = synthesize(tmp_path / "corpus", num_patches=2048, size=32, seed=0)  # 200 steps an epoch: an order is drawn once a timed stretch
    train = {"batch_size": ROWS, "precision": "fp32", "log_steps": log_steps, "checkpoint_steps": 1_000_000, "epochs": 1_000_000,
             "max_steps": FIRST + STEPS}
    config = configuration.resolve({"corpus": str(corpus), "encoder": "bench.tiny", "train": train})
    config = plan.complete(config, dsengine.open_corpus(corpus), ranks=1, device=CPU)
    monkeypatch.setattr(engine, "_heldout", lambda *_, **__: None)
    monkeypatch.setattr(engine.figures, "draw_views", lambda *_: None)
    monkeypatch.setattr(engine.figures, "draw_losses", lambda *_: None)
    monkeypatch.setattr(engine.RunLog, "say", lambda *_: None)
    folders = (tmp_path / f"run{k}" for k in itertools.count())
    forms = (lambda: _engine(config, next(folders), batch, monkeypatch), lambda: _bare(batch))
    forms[0](), forms[1]()
    ours, bare = np.empty((PAIRS, 2)), np.empty((PAIRS, 2))
    for pair in range(PAIRS):
        for form in ((0, 1), (1, 0))[pair % 2]:
            (ours, bare)[form][pair] = forms[form]()
    wall, cpu = (ours - bare).T
    print(f"\na line every {log_steps} steps: the loop adds {_interval(wall)} ms a step to {np.median(bare[:, 0]):.3f} ms; "
          f"CPU time {_interval(cpu)} ms to {np.median(bare[:, 1]):.3f} ms (tiny model, CPU, 1 thread, {PAIRS} pairs)")
    benchmark.extra_info.update(overhead_ms=float(np.median(wall)), overhead_cpu_ms=float(np.median(cpu)), bare_ms=float(np.median(bare[:, 0])))
    benchmark.pedantic(forms[0], rounds=1)
