"""CSF in the style of DeepSentinel's published loader: a compressed npz a patch, and each jitter on an 8-bit Pillow image of three bands.

A stand-in, written here after what that code does (github.com/Lkruitwagen/deepsentinel, pretrain_csf.py), because the repository is no package:
DataLoader with workers that decompress, crop, jitter ten random triples of each view and drop bands; two passes of the encoder; a triplet
against rolled positives. Kinder than the original: no set_detect_anomaly, no DataParallel, one batch format, Adam with tensors together.
"""

import numpy as np
import torch
import torch.nn.functional as F
from peers import job as common
from peers import plain
from peers.job import Data, Job
from pil_chain import view
from torch import Tensor, nn
from torch.utils.data import Dataset

from dsengine.data.sample import Batch
from dsengine.methods.csf import _shift

WHITE = 3.0  # standard deviations from the mean that 8 bits span each way


class Patches(Dataset):
    """One patch in two jittered crops of it, at most SHIFT apart."""

    def __init__(self, data: Data, size: int) -> None:
        self.folder, self.names, self.ids, self.size = data.npz(), data.names, data.ids, size
        self.mean, self.std = data.mean.numpy(), data.std.numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        with np.load(self.folder / f"{self.ids[index]}.npz") as file:
            image = np.concatenate([file[name] for name in self.names])
        grey = np.clip(((image - self.mean) / self.std / WHITE + 1) * 127.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        rng, room = np.random.default_rng(), grey.shape[0] - self.size
        first = rng.integers(0, room + 1, 2)
        second = np.clip(first + rng.integers(-common.SHIFT, common.SHIFT + 1, 2), 0, room)
        return self._view(grey, first, rng), self._view(grey, second, rng)

    def _view(self, grey: np.ndarray, at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(14, s, s) float32, z-scored again."""
        crop = grey[at[0]:at[0] + self.size, at[1]:at[1] + self.size]
        triples = np.stack([rng.choice(14, 3, replace=False) for _ in range(common.JITTERS)])
        factors = rng.uniform(-common.STRENGTH, common.STRENGTH, (common.JITTERS, 4)) + (1, 1, 1, 0)
        keep = (rng.random(14) >= common.DROPOUT).astype(np.float32)
        return view(crop, triples, factors, keep, np.float32(127.5), np.float32(127.5 / WHITE))


class Pil(plain.Loop):
    """See `Side`."""

    def dataset(self) -> Dataset:
        return Patches(self.data, self.job.size)

    def model(self) -> nn.Module:
        return plain.encoder(self.job)

    def criterion(self, first: Tensor, second: Tensor) -> Tensor:
        return triplet(first, second, int(torch.randint(1, len(first), ())))

    def loss(self, weights: dict[str, Tensor], views: tuple[Tensor, Tensor]) -> tuple[float, float]:
        encoder = self.model()
        plain.load_weights(encoder, [], weights)
        shift = _shift(Batch(views, torch.arange(len(views[0]))))  # the one that ours draws at this step
        loss = triplet(encoder(views[0]), encoder(views[1]), shift)
        loss.backward()
        return loss.item(), plain.grad_norm([encoder])


def triplet(first: Tensor, second: Tensor, shift: int) -> Tensor:
    """Mean of max(0, |a - p| - |a - n| + margin) of unit vectors; negatives are the positives, rolled."""
    anchor, positive = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    near, far = ((anchor - other).square().sum(1).add(1e-12).sqrt() for other in (positive, positive.roll(shift, 0)))
    return F.relu(near - far + common.MARGIN).mean()
