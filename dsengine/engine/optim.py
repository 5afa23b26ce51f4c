"""The optimiser and its learning rate, a pure function of the step."""

import math

import torch
from torch import nn

from dsengine.engine.settings import TrainConfig


def make_optimizer(module: nn.Module, train: TrainConfig) -> torch.optim.Adam:
    """Fused Adam (decoupled decay when weight_decay > 0) over the trainable parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    cls = torch.optim.AdamW if train.weight_decay else torch.optim.Adam
    return cls(parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True)


def learning_rate(train: TrainConfig, *, step: int, total: int) -> float:
    """Learning rate of `step` (from 0) out of `total`: linear warm-up, then constant or half a cosine down to 0."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    done = (step - train.warmup_steps) / max(1, total - train.warmup_steps)
    return train.lr * 0.5 * (1 + math.cos(math.pi * done))
