"""How long training is held up by a checkpoint: written in the step, as a baseline, and beside training, as the engine does.

Run `python bench/bench_saves.py [--encoder resnet18] [--pairs 15]`. Each pair takes one checkpoint each way, of an encoder with Adam's state, amid
steps of a small batch; what is held up is what the steps took longer than as many steps without a save, until the files are on the disk. A copy of the
state that is slower, or a thread that holds Python's lock, moves "beside: start" or "beside: steps meanwhile".
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import dsengine
from dsengine.corpus.schema import Band, Contract
from dsengine.engine import checkpoint
from dsengine.engine.saver import Saver

CONTRACT = Contract(bands=(Band("B02", "s2", "s2", 0, 1),), units=("reflectance",), scale=(1e-4,), offset=(0.0,), mean=(0.1,), std=(0.05,),
                    nodata=-32768, patch_size=32, resolution_m=10.0)
FIXED = {"config": {}, "contract": CONTRACT, "inputs": {}}
STEPS = 60


class Work:
    """An encoder, its optimiser, and a step of them."""

    def __init__(self, encoder: str) -> None:
        self.method = dsengine.build_encoder(encoder).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.method.parameters(), 1e-4, fused=True)
        self.x = torch.randn(4, 14, 32, 32).to(memory_format=torch.channels_last)

    def step(self) -> float:
        """Seconds of one."""
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.method(self.x).pooled.square().mean().backward()
        self.optimizer.step()
        return time.perf_counter() - began

    def size_mb(self) -> float:
        """Of the state that is saved."""
        tensors = [*self.method.state_dict().values(), *(v for s in self.optimizer.state.values() for v in s.values())]
        return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def in_the_step(work: Work, run: Path, step: int) -> float:
    """Seconds of a checkpoint that is waited for."""
    began = time.perf_counter()
    checkpoint.sync(run / "metrics.jsonl")
    checkpoint.save(run, step=step, method=work.method, optimizer=work.optimizer, loader={}, keep=2, **FIXED)
    return time.perf_counter() - began


def beside(work: Work, saver: Saver, step: int, plain: float) -> tuple[float, float, float]:
    """Seconds of the start; by which the steps until the files are written took longer; until they are written."""
    began = time.perf_counter()
    saver.start(step, method=work.method, optimizer=work.optimizer, loader={}, heldout_loss=None)
    held = time.perf_counter() - began
    meanwhile = []
    while saver._thread.is_alive():
        meanwhile.append(work.step())
    return held, sum(meanwhile) - plain * len(meanwhile), time.perf_counter() - began


def _shown(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75]) * 1e3
    return f"{middle:8.1f} ms   [{low:.1f}, {high:.1f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--folder", default=None, help="where checkpoints go (default: a temporary folder)")
    given = parser.parse_args()
    torch.manual_seed(0)
    work, rows = Work(given.encoder), {"in the step": [], "beside: start": [], "beside: steps meanwhile": [], "beside: until written": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        run = Path(folder)
        (run / "metrics.jsonl").write_text("")
        with Saver(run, beside=True, keep=2, **FIXED) as saver:
            for pair in range(given.pairs + 1):
                plain = float(np.median([work.step() for _ in range(STEPS)]))
                results = [in_the_step(work, run, 2 * pair), *beside(work, saver, 2 * pair + 1, plain)]
                saver.finish()
                for name, value in zip(rows, results if pair else []):  # the first start makes the memory of the copies
                    rows[name].append(value)
    print(f"{given.encoder}: {work.size_mb():.0f} MB of state, step {plain * 1e3:.1f} ms, {given.pairs} pairs, {torch.get_num_threads()} threads; medians "
          "[quartiles]")
    for name, values in rows.items():
        print(f"  {name:26s}{_shown(values)}")


if __name__ == "__main__":
    main()
