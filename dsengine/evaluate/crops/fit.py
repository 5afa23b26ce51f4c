"""Training of one configuration on one input: Adam, cross-entropy, the epoch with the lowest val loss."""

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.errors import RunError

_AT_ONCE = 1024  # series of a forward pass without gradients


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How networks are trained; the same for every input."""

    epochs: int
    patience: int | None  # epochs without a better val loss; None: none is too many
    keep: str  # best | last epoch
    batch_size: int
    weight_decay: float
    class_weight: str  # none | inverse


class Part(NamedTuple):
    """Series and classes of some rows, standardised."""

    x: Tensor  # (N, T, C) float32
    y: Tensor  # (N,) int64


class Fitted(NamedTuple):
    """A trained network, and how it went."""

    network: nn.Module
    best_epoch: int  # from 1; the one whose weights it has
    history: list[dict[str, Any]]


def fit(network: nn.Module, train: Part, val: Part, recipe: Recipe, *, lr: float, classes: int, seed: int, what: str) -> Fitted:
    """Train `network` in place. `what` names it in RunError, which a loss that is not finite ends in.

    Order of rows and dropout are functions of `seed`.
    """
    weight = class_weights(train.y, classes) if recipe.class_weight == "inverse" else None
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=recipe.weight_decay, fused=True)
    shuffle = torch.Generator().manual_seed(seed)
    best, best_epoch, state, history = math.inf, 0, None, []
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(train.y), generator=shuffle)
        loss = _epoch(network, train, order, optimizer, weight, recipe.batch_size)
        val_loss = _loss(network, val)
        if not math.isfinite(loss) or not math.isfinite(val_loss):
            raise RunError(f"{what}: the loss is not finite in epoch {epoch}")
        history.append({"epoch": epoch, "loss": loss, "val_loss": val_loss})
        if recipe.keep == "last" or val_loss < best:
            best, best_epoch = val_loss, epoch
            state = copy.deepcopy(network.state_dict()) if recipe.keep == "best" else None
        if recipe.patience is not None and epoch - best_epoch >= recipe.patience:
            break
    if state is not None:
        network.load_state_dict(state)
    return Fitted(network.eval(), best_epoch, history)


@torch.inference_mode()
def predict(network: nn.Module, x: Tensor) -> np.ndarray:
    """(N,) int64 classes of x (N, T, C)."""
    network.eval()
    return torch.cat([network(part).argmax(1) for part in x.split(_AT_ONCE)]).cpu().numpy()


def class_weights(y: Tensor, classes: int) -> Tensor:
    """(K,) float32: N / (number of classes there are * rows of the class), so that each class has the same say; 0 where it has no row."""
    counts = torch.bincount(y, minlength=classes).double()
    return torch.where(counts > 0, len(y) / ((counts > 0).sum() * counts.clamp(min=1)), 0).float()


def _epoch(network: nn.Module, train: Part, order: Tensor, optimizer: torch.optim.Optimizer, weight: Tensor | None, batch_size: int) -> float:
    """One pass; the mean loss."""
    network.train()
    total = torch.zeros((), dtype=torch.float64, device=train.y.device)
    for rows in _batches(order, batch_size):
        rows = rows.to(train.y.device)
        x, y = train.x[rows], train.y[rows]
        # The sum over the batch, not over its weights: torch's weighted mean would undo the weights where a batch has one class.
        loss = F.cross_entropy(network(x), y, weight=weight, reduction="sum") / len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(y)
    return float(total) / len(order)


def _batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Parts of `order`; a last one of a single row goes to the one before it, as BatchNorm has no variance of one."""
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@torch.inference_mode()
def _loss(network: nn.Module, part: Part) -> float:
    network.eval()
    sums = [F.cross_entropy(network(x), y, reduction="sum").double() for x, y in zip(part.x.split(_AT_ONCE), part.y.split(_AT_ONCE))]
    return float(torch.stack(sums).sum()) / len(part.y)
