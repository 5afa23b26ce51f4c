"""Land cover, pixel by pixel: the deconvolution head on an encoder's maps, and the loop that trains it.

    logits = head(map)          (B, D, h, w) -> (B, channels, 16h, 16w), cut or resampled to the label's size (`_sized`)
    loss   = cross entropy of logits, over the pixels that have a class
Frozen: the maps come from a feature file and only the head is trained. Fine-tuned: the encoder is in the loop, all is trained, crops are
drawn anew each epoch. Either way the weights of the epoch with the best weighted mean IoU on val are kept, and training stops when
that has not risen for `patience` epochs.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.errors import RunError, UsageError
from dsengine.evaluate.metrics import IGNORED, confusions, scores
from dsengine.nn.heads import Decoder

_FEW = 20  # batches an epoch
Pairs = Iterator[tuple[Tensor, Tensor]]  # (input (B, ...), label (B, H, W) int64 with -1 for none)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a head is trained."""

    epochs: int
    patience: int  # epochs without a better val figure before it stops
    lr: float
    weight: Tensor | None  # (K,) of the classes in the loss
    autocast: bool  # bf16


class Data(NamedTuple):
    """What the loop reads."""

    train: Callable[[], Pairs]  # endless
    steps: int  # of train in an epoch
    val: Callable[[], Pairs]  # once


class Segmenter(nn.Module):
    """Images (B, C, H, W), or maps (B, D, h, w) without an encoder -> logits (B, channels, 16h, 16w)."""

    def __init__(self, encoder: nn.Module | None, dim: int, channels: int, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = Decoder(dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.encoder is None:
            return self.head(x)
        dense = self.encoder(x).dense
        if dense is None:
            raise UsageError("landcover needs an encoder that makes maps, as those of images do")
        return self.head(dense)


def loss_of(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross entropy of logits (B, K, h, w) over the labelled pixels of (B, H, W); 0 where there are none."""
    logits = _sized(logits, label.shape[1:]).float()
    if weight is not None:
        weight = F.pad(weight, (0, logits.shape[1] - len(weight)), value=1.0)
    total = F.cross_entropy(logits, label, weight, ignore_index=IGNORED, reduction="sum")
    per_pixel = (label != IGNORED) if weight is None else weight[label.clamp(min=0)] * (label != IGNORED)
    return total / per_pixel.sum().clamp(min=1e-9)


def fit(model: nn.Module, data: Data, schedule: Schedule, *, num_classes: int, device: torch.device,
        each: Callable[[dict[str, float]], None] = lambda record: None) -> list[dict[str, float]]:
    """Train `model` in place; returns a record an epoch and leaves the best epoch's weights in it. RunError for a loss that is not finite."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=schedule.lr, fused=True)
    history: list[dict[str, float]] = []
    best, kept = -1.0, copy.deepcopy(model.state_dict())
    batches = data.train()
    try:
        for epoch in range(schedule.epochs):
            loss = _train_epoch(model, batches, data.steps, optimizer, schedule, device)
            counts = sum(judge(model, data.val(), num_classes=num_classes, device=device, autocast=schedule.autocast))
            figures = scores(counts)
            record = {"epoch": epoch + 1, "loss": loss, "val_iou_weighted": float(np.nan_to_num(figures["iou_weighted"])),
                      "val_accuracy": float(np.nan_to_num(figures["accuracy"]))}
            history.append(record)
            each(record)
            if record["val_iou_weighted"] > best:
                best, kept, since = record["val_iou_weighted"], copy.deepcopy(model.state_dict()), 0
            else:
                since += 1
            if since >= schedule.patience:
                break
    finally:
        batches.close()
    model.load_state_dict(kept)
    return history


@torch.inference_mode()
def judge(model: nn.Module, pairs: Pairs, *, num_classes: int, device: torch.device, autocast: bool = False) -> Iterator[np.ndarray]:
    """(K, K) int64 confusion of each sample in turn."""
    model.eval()
    for x, label in pairs:
        found = predicted(model, x.to(device), label.shape[1:], num_classes=num_classes, autocast=autocast)
        yield from confusions(found, label.to(device), num_classes).cpu().numpy()


@torch.inference_mode()
def predicted(model: nn.Module, x: Tensor, size: torch.Size, *, num_classes: int, autocast: bool = False) -> Tensor:
    """(B, H, W) int64 classes of x; channels of the head beyond the classes never win."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
        logits = model(x)
    return _sized(logits[:, :num_classes].float(), size).argmax(1)


def _average_statistics(model: nn.Module, *, of_epoch: bool) -> None:
    """BatchNorm's running statistics: the mean of this epoch's batches, or as usual, a tenth of each new batch.

    With few batches an epoch a tenth a batch is still the initial values for many epochs, and val figures say nothing of the weights.
    """
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            layer.momentum = None if of_epoch else 0.1
            if of_epoch:
                layer.reset_running_stats()


def _train_epoch(model: nn.Module, batches: Pairs, steps: int, optimizer: torch.optim.Optimizer, schedule: Schedule, device: torch.device) -> float:
    model.train()
    _average_statistics(model, of_epoch=steps <= _FEW)
    total, weight = [], None if schedule.weight is None else schedule.weight.to(device)
    for x, label in islice(batches, steps):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=schedule.autocast):
            logits = model(x.to(device))
        loss = loss_of(logits, label.to(device), weight)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total.append(loss.detach())
    mean = float(torch.stack(total).mean())
    if not np.isfinite(mean):
        raise RunError(f"the loss is not finite ({mean}); a smaller lr than {schedule.lr:g} may help")
    return mean


def _sized(logits: Tensor, size: torch.Size) -> Tensor:
    """(B, K, h, w) at `size`: by a power of two where the encoder's stride is not 16, then cut, because the cells of a size that the stride
    does not divide reach over its right and lower edge."""
    factor = 2.0 ** round(math.log2(size[0] / logits.shape[2]))
    if factor != 1:
        logits = F.interpolate(logits, scale_factor=factor, mode="bilinear")
    if logits.shape[2] < size[0] or logits.shape[3] < size[1]:
        return F.interpolate(logits, size, mode="bilinear")
    return logits[:, :, :size[0], :size[1]]
