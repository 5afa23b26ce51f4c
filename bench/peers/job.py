"""What every side is asked to do, and the files that they do it with."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from loaders import formats
from torch import Tensor

from dsengine.corpus import Corpus
from dsengine.corpus.default import cache_folder

MEGABYTES = 469  # 1,024 patches of 14 x 128 x 128
TEMPERATURE, HIDDEN, OUT, LR = 0.07, 256, 256, 1e-3
JITTERS, STRENGTH, DROPOUT, SHIFT, MARGIN = 10, 0.1, 0.3, 16, 1.0  # of CSF: DeepSentinel's at the end of its curriculum
CROP_AREA, CROP_RATIO, BLUR, BLUR_SIGMA = (0.2, 1.0), (3 / 4, 4 / 3), 0.5, (0.1, 2.0)  # of the other methods
TORCH_THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """One comparison. Views are (14, size, size) of patches of 128 px; bf16 autocast on all sides."""

    name: str
    method: str  # simclr | byol | csf
    encoder: str  # convnet | resnet18
    batch: int
    sides: tuple[str, ...]
    size: int = 112
    precision: str = "bf16"


JOBS = {job.name: job for job in (
    Job(name="simclr-small", method="simclr", encoder="convnet", batch=32, sides=("ours", "torchgeo", "lightly", "tuned")),
    Job(name="csf-small", method="csf", encoder="convnet", batch=32, sides=("ours", "pil")),
    Job(name="byol-small", method="byol", encoder="convnet", batch=32, sides=("ours", "torchgeo")),
    Job(name="simclr-resnet18", method="simclr", encoder="resnet18", batch=16, sides=("ours", "tuned")),
)}


class Side(Protocol):
    """One library at one job. Times are of `time.perf_counter`, one a step or batch, ends or starts alike throughout a list."""

    def run(self, steps: int) -> list[float]:
        """A whole fresh training run, from files to updated weights."""

    def load(self, batches: int) -> list[float]:
        """Batches of finished views, without training."""

    def step(self, steps: int) -> list[float]:
        """Training steps on one batch in memory, whose views are made."""

    def loss(self, weights: dict[str, Tensor], views: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """(loss, norm of its gradient over encoder and heads) of views (B, 14, s, s) in float32 with `weights`, no update.

        weights: the encoder's under "encoder.", the heads' in order under "head.".
        """


class Data:
    """The train split of one synthetic corpus, in each side's format; made once in the user's cache."""

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus itself (blosc-lz4, shards of 64)."""
        return formats.bench_corpus(MEGABYTES)

    @cached_property
    def ids(self) -> np.ndarray:
        """(N,) int64: rows of the train split, which all sides train on."""
        return self.corpus.rows("train", None)

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays, Sentinel-2 first."""
        return tuple(self.corpus.arrays)

    @cached_property
    def mean(self) -> Tensor:
        """(14, 1, 1) float32, of the stored integers."""
        return self._statistic("mean")

    @cached_property
    def std(self) -> Tensor:
        """(14, 1, 1) float32, of the stored integers."""
        return self._statistic("std")

    def geotiff(self) -> Path:
        """A GeoTIFF a patch and sensor, deflate and predictor."""
        return formats.as_geotiff(self.corpus)

    def npz(self) -> Path:
        """A compressed npz a patch."""
        return formats.as_npz(self.corpus)

    def memmaps(self) -> list[np.ndarray]:
        """One (N, C, 128, 128) int16 memory map a sensor, uncompressed."""
        return [np.load(formats.as_npy(self.corpus) / f"{name}.npy", mmap_mode="r") for name in self.names]

    def npy(self) -> Path:
        """An uncompressed (14, 128, 128) .npy a patch."""
        folder = cache_folder() / "bench" / f"{self.corpus.path.name}.each-npy"
        if not folder.exists():
            part = folder.with_name(f".part{os.getpid()}-{folder.name}")
            part.mkdir(parents=True)
            arrays = [self.corpus.arrays[name] for name in self.names]
            for k in range(len(self.corpus)):
                np.save(part / f"{k}.npy", np.concatenate([array[k] for array in arrays]))
            os.rename(part, folder)
        return folder

    def _statistic(self, name: str) -> Tensor:
        contract = self.corpus.contract()
        values = torch.tensor(getattr(contract, name), dtype=torch.float64)
        offset = torch.tensor(contract.offset, dtype=torch.float64) if name == "mean" else 0.0
        return ((values - offset) / torch.tensor(contract.scale, dtype=torch.float64)).float()[:, None, None]
