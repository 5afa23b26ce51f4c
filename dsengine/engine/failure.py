"""Captures of this run's steps (`engine.capture`), and the words with which a run ends whose loss or gradient is not finite."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsengine import config as configuration
from dsengine.config import RunConfig
from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.data import order
from dsengine.data.open import open_loader
from dsengine.data.sample import Batch, View
from dsengine.dist import World, gather_rows
from dsengine.engine import capture
from dsengine.errors import RunError, UsageError

_SHOWN = 8  # sample ids


@dataclass(frozen=True, kw_only=True)
class Captures:
    """What it takes to write down a step. Every rank has one and calls it alike; rank 0 writes."""

    run: Path
    config: RunConfig
    corpus: Corpus | SeriesCorpus
    views: tuple[View, ...]
    loading: dict[str, Any]  # what `open_loader` is given for the run's own batches
    world: World
    device: torch.device

    def keep(self, at: order.Step, batch: Batch, scores: dict[str, Tensor], *, weights: dict[str, Tensor], why: str) -> str:
        """Write down the step `at`, taken with `weights`; returns where, in words. Waits for the device."""
        by_rank = capture.scored(scores, self.world)
        return f"step {at.step + 1} is captured in {self._write(at, batch, by_rank, weights, why)}, {why}" if self.world.rank == 0 else ""

    def failed(self, withheld: list[int], taken: list[tuple[order.Step, dict[str, Tensor]]], batch: Batch, *, method: nn.Module) -> RunError:
        """What to say of the first step `withheld` out of those `taken`, after writing it down: the method still is as that step found it."""
        at, scores = next((at, scores) for at, scores in taken if at.step == withheld[0])
        by_rank = capture.scored(scores, self.world)
        why = capture.blame(by_rank)
        refused = ""
        if self.world.rank == 0:
            try:
                self._write(at, batch, by_rank, capture.weights_of(method), why)
            except (RunError, UsageError, OSError) as error:
                refused = str(error) or type(error).__name__
        # A rank that ended now would take the writer with it, and the launcher shows the words of whichever rank ends first: all have the same.
        lies = bool(gather_rows(torch.tensor([float(not refused)], device=self.device), self.world.group)[0])
        where = f"`dsengine replay {capture.folder_of(self.run, at.step)}` shows where it began" if lies else f"no capture: {refused or 'rank 0 could not write it'}"
        ids = at.ids[order.local_slice(len(at.ids), self._culprit(by_rank), self.world.size)]
        return RunError(f"{why}: not finite at step {at.step + 1}, epoch {at.epoch + 1}; the update was withheld, the weights are good; "
                        f"sample ids: {', '.join(map(str, ids[:_SHOWN]))}{', ...' if len(ids) > _SHOWN else ''}; {where}")

    def _culprit(self, by_rank: list[dict[str, float]]) -> int:
        return next((rank for rank, scores in enumerate(by_rank) if not all(map(math.isfinite, scores.values()))), 0)

    def _write(self, at: order.Step, batch: Batch, by_rank: list[dict[str, float]], weights: dict[str, Tensor], why: str) -> Path:
        mean = {name: sum(scores[name] for scores in by_rank) / len(by_rank) for name in by_rank[0]}
        about = {"why": why, "epoch": at.epoch, "ranks": self.world.size, "device": self.device.type, "scores": mean, "scores_by_rank": by_rank,
                 "config": configuration.dump(self.config), "contract": self.corpus.contract().to_json()}
        return capture.write(self.run, weights=weights, batch=self._global_batch(at, batch), about=about)

    def _global_batch(self, at: order.Step, batch: Batch) -> Batch:
        """Every rank's rows of the step: at hand, or read once more, since views are a function of seed, epoch and sample id."""
        if self.world.size == 1 and batch.step == at.step:
            return capture.joined([batch])
        parts = []
        for rank in range(self.world.size):
            resident = "none" if self.corpus.kind == "patches" else "auto"  # tables are always held in memory
            with open_loader(self.corpus, self.views, self.config.train.batch_size, rank=rank, world=self.world.size, prefetch=1,
                             resident=resident, **self.loading) as loader:
                loader.load_state_dict({"step": at.step})
                parts.append(capture.joined([next(loader)]))
        return capture.joined(parts)
