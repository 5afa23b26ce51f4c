"""What the loop adds to a step: engine.train against a bare forward, backward, step loop on the same batch.

Run `pytest bench/bench_step.py --benchmark-enable -s`. The engine's time per step is the difference of a long and a short
run, so set-up and the final checkpoint cancel; it includes logging every 10th step to metrics.jsonl and TensorBoard.
Anything done in every step of the loop, or a host synchronisation, moves this number.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

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

SHORT, LONG, PAIRS, ROWS = 50, 250, 30, 8


class OneBatch:
    """Stands in for the loader: the same batch for ever, at no cost."""

    steps_per_epoch = 1_000_000

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __enter__(self) -> "OneBatch":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __next__(self) -> Batch:
        return self.batch

    def state_dict(self) -> dict[str, int]:
        return {"step": 0}


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(ROWS, 14, 16, 16, generator=generator) for _ in range(2))
    return Batch(views, torch.arange(ROWS))


def _bare(batch: Batch) -> float:
    """Seconds of LONG - SHORT steps of the loop anybody would write."""
    torch.manual_seed(0)
    method = dsengine.build_method("csf", encoder=dsengine.build_encoder("bench.tiny"))
    optimizer = make_optimizer(method, configuration.resolve({}).train)
    start = time.perf_counter()
    for step in range(LONG - SHORT):
        optimizer.zero_grad(set_to_none=True)
        method(batch._replace(step=step))["loss"].backward()
        optimizer.step()
    return time.perf_counter() - start


def _engine(config: configuration.RunConfig, out: Path, steps: int) -> float:
    """Seconds of a whole run of `steps`."""
    train = configuration.resolve(configuration.merge(configuration.dump(config), {"train": {"max_steps": steps}}))
    out.mkdir(parents=True)
    start = time.perf_counter()
    engine.train(train, out, world=SOLO, device=torch.device("cpu"), resume=False)
    return time.perf_counter() - start


def test_overhead_of_a_step(batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable) -> None:
    torch.set_num_threads(1)
    corpus = synthesize(tmp_path / "corpus", num_patches=64, size=32, seed=0)
    settings = {"corpus": str(corpus), "encoder": "bench.tiny",
                "train": {"batch_size": ROWS, "precision": "fp32", "log_steps": 10, "checkpoint_steps": 1_000_000, "epochs": 1_000_000}}
    config = plan.complete(configuration.resolve(settings), dsengine.open_corpus(corpus), ranks=1, device=torch.device("cpu"))
    monkeypatch.setattr(engine, "Loader", lambda *_, **__: OneBatch(batch))
    monkeypatch.setattr(engine, "_heldout", lambda *_: None)
    monkeypatch.setattr(engine.figures, "draw_views", lambda *_: None)
    monkeypatch.setattr(engine.figures, "draw_losses", lambda *_: None)
    monkeypatch.setattr(engine.RunLog, "say", lambda *_: None)
    folders = (tmp_path / f"run{k}" for k in itertools.count())
    overhead_ms, bare_ms = [], []
    for _ in range(PAIRS):
        bare = _bare(batch)
        ours = _engine(config, next(folders), LONG) - _engine(config, next(folders), SHORT)
        overhead_ms.append((ours - bare) / (LONG - SHORT) * 1e3)
        bare_ms.append(bare / (LONG - SHORT) * 1e3)
    low, median, high = np.percentile([np.median(np.random.default_rng(k).choice(overhead_ms, PAIRS)) for k in range(2000)], [2.5, 50, 97.5])
    print(f"\nthe loop adds {median:.3f} ms a step [{low:.3f}, {high:.3f}] to {np.median(bare_ms):.3f} ms (tiny model, CPU, 1 thread)")
    benchmark.extra_info.update(overhead_ms=median, low=low, high=high, bare_ms=float(np.median(bare_ms)))
    benchmark.pedantic(lambda: _engine(config, next(folders), SHORT), rounds=1)
