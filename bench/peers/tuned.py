"""A plain PyTorch loop, tuned: batches out of uncompressed memory maps, all views of a batch in one resampling, channels-last, bf16, fused Adam.

What was tried and kept or dropped is in README.md. Nothing here is ours but the constants.
"""

import time
from collections.abc import Iterator
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from peers import job as common
from peers import plain
from peers.job import Data, Job
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler


class Patches(Dataset):
    """A batch at once: (B, 14, 128, 128) int16."""

    def __init__(self, data: Data) -> None:
        self.maps, self.ids = data.memmaps(), data.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: list[int]) -> Tensor:
        ids = self.ids[np.sort(rows)]
        out = np.empty((len(ids), sum(x.shape[1] for x in self.maps), *self.maps[0].shape[2:]), dtype=np.int16)
        at = 0
        for x in self.maps:
            for k, row in enumerate(ids):
                out[k, at:at + x.shape[1]] = x[row]
            at += x.shape[1]
        return torch.from_numpy(out)


class Views(nn.Module):
    """Two views of each patch of a batch: crop-resize with flips in one grid_sample of the raw values, the rest of the numbers in one compiled
    pass (z-score, brightness, contrast, rounding), then blur."""

    def __init__(self, data: Data, job: Job) -> None:
        super().__init__()
        self.size = job.size
        self.dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
        self.register_buffer("mean", data.mean)
        self.register_buffer("inv_std", 1 / data.std)
        self.light = torch.compile(_light)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(memory_format=torch.channels_last).float()
        return self._view(x), self._view(x)

    def _view(self, x: Tensor) -> Tensor:
        B, s = len(x), self.size
        area, ratio = torch.empty(B).uniform_(*common.CROP_AREA), torch.empty(B).uniform_(*map(log, common.CROP_RATIO)).exp()
        wide, high = (area * ratio).sqrt().clamp_(max=1), (area / ratio).sqrt().clamp_(max=1)
        theta = torch.zeros(B, 2, 3)
        signs = torch.randint(0, 2, (2, B)) * 2 - 1
        theta[:, 0, 0], theta[:, 1, 1] = wide * signs[0], high * signs[1]
        theta[:, 0, 2], theta[:, 1, 2] = (torch.rand(B) * 2 - 1) * (1 - wide), (torch.rand(B) * 2 - 1) * (1 - high)
        y = F.grid_sample(x, F.affine_grid(theta, [B, 14, s, s], align_corners=False), align_corners=False, padding_mode="border")
        brightness, contrast = (torch.where(torch.rand(B, 1, 1, 1) < 0.8, torch.empty(B, 1, 1, 1).uniform_(0.8, 1.2), 1) for _ in range(2))
        y = self.light(y, self.mean, self.inv_std, brightness, contrast, self.dtype)
        chosen = (torch.rand(B) < common.BLUR).nonzero()[:, 0]
        return y.index_copy_(0, chosen, self._blur(y[chosen]))

    def _blur(self, y: Tensor) -> Tensor:
        """One width for the chosen patches of a batch: a kernel each would take as many convolutions."""
        sigma = torch.empty(1).uniform_(*common.BLUR_SIGMA)
        line = torch.softmax(-0.5 * (torch.arange(-5, 6) / sigma) ** 2, 0).to(y.dtype)
        kernel = line.expand(14, 1, 1, 11)
        return F.conv2d(F.conv2d(y, kernel, padding=(0, 5), groups=14), kernel.mT.contiguous(), padding=(5, 0), groups=14)


def _light(y: Tensor, mean: Tensor, inv_std: Tensor, brightness: Tensor, contrast: Tensor, dtype: torch.dtype) -> Tensor:
    """z-score, contrast about each band's mean, brightness."""
    y = (y - mean) * inv_std
    middle = y.mean((2, 3), keepdim=True)
    return (brightness * (contrast * y + (1 - contrast) * middle)).to(dtype)


class Tuned:
    """See `Side`."""

    def __init__(self, job: Job, data: Data) -> None:
        self.job, self.data = job, data

    def run(self, steps: int) -> list[float]:
        times: list[float] = []
        views = Views(self.data, self.job)
        self._train((views(x) for x in plain.stamped(self._patches(), times)), steps)
        return times[:steps]

    def load(self, batches: int) -> list[float]:
        times, views = [], Views(self.data, self.job)
        for _, x in zip(range(batches), self._patches()):
            views(x)
            times.append(time.perf_counter())
        return times

    def step(self, steps: int) -> list[float]:
        dtype = torch.bfloat16 if self.job.precision == "bf16" else torch.float32
        pair = tuple(torch.randn(self.job.batch, 14, self.job.size, self.job.size).to(dtype, memory_format=torch.channels_last) for _ in range(2))
        return self._train(iter(lambda: pair, None), steps)

    def loss(self, weights: dict[str, Tensor], views: tuple[Tensor, Tensor]) -> tuple[float, float]:
        encoder, head = self._model()
        plain.load_weights(encoder, [head], weights)
        loss = nt_xent(head(encoder(views[0])), head(encoder(views[1])))
        loss.backward()
        return loss.item(), plain.grad_norm([encoder, head])

    def _patches(self) -> Iterator[Tensor]:
        data = Patches(self.data)
        batches = BatchSampler(RandomSampler(data), self.job.batch, drop_last=True)
        return plain.endless(DataLoader(data, batch_size=None, sampler=batches, num_workers=1, prefetch_factor=2, persistent_workers=True))

    def _model(self) -> tuple[nn.Module, nn.Module]:
        encoder = plain.encoder(self.job).to(memory_format=torch.channels_last)
        head = nn.Sequential(nn.Linear(encoder.num_features, common.HIDDEN, bias=False), nn.BatchNorm1d(common.HIDDEN), nn.ReLU(inplace=True),
                             nn.Linear(common.HIDDEN, common.OUT))
        return encoder, head

    def _train(self, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> list[float]:
        encoder, head = self._model()
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=common.LR, fused=True)
        times = []
        for _, (first, second) in zip(range(steps), batches):
            with plain.autocast(self.job):
                loss = nt_xent(head(encoder(first)), head(encoder(second)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter())
        return times


def nt_xent(first: Tensor, second: Tensor) -> Tensor:
    """NT-Xent as a cross entropy over (2B, 2B) similarities in float32."""
    z = F.normalize(torch.cat((first, second)).float(), dim=1)
    B = len(first)
    with torch.autocast("cpu", enabled=False):
        logits = (z @ z.T / common.TEMPERATURE).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(2 * B).roll(B))
