"""The optimiser, its groups of parameters, and its learning rate: a pure function of the step."""

import math

import torch
from torch import nn

from dsengine.engine.settings import TrainConfig
from dsengine.engine.sgd import SGD
from dsengine.errors import UsageError
from dsengine.methods import Group

LARS_TRUST = 1e-3


def make_optimizer(module: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that `train` names over the trainable parameters of `module`, in groups (see `groups`)."""
    parameters = groups(module, train)
    if train.optimizer in ("sgd", "lars"):
        return SGD(parameters, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov)
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    return cls(parameters, lr=train.lr, betas=train.betas, fused=True)


def groups(module: nn.Module, train: TrainConfig) -> list[dict]:
    """Parameter groups: those of the method's `param_groups()` if it has one, each split in what is decayed and what is not.

    Vectors and scalars (biases, norms) are not decayed, nor adapted by LARS, unless `train.decay_vectors` asks for it.
    Raises UsageError unless the method's groups hold every trainable parameter once.
    """
    asked = module.param_groups() if hasattr(module, "param_groups") else [Group(list(module.parameters()))]
    found = []
    for group in asked:
        trainable = [p for p in group.params if p.requires_grad]
        for is_vector in (False, True):
            members = [p for p in trainable if (p.ndim <= 1) == is_vector]
            decays = group.decay and (not is_vector or train.decay_vectors)
            settings = {"params": members, "weight_decay": train.weight_decay if decays else 0.0, "lr_scale": group.lr_scale, "scheduled": group.scheduled}
            if train.optimizer == "lars":
                settings["eta"] = LARS_TRUST if decays else 0.0
            found += [settings] if members else []
    _check_all_once(module, [p for group in found for p in group["params"]])
    return found


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, *, base: float) -> None:
    """Give each group the rate `lr` of this step, or `base` where it does not follow the schedule, times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = (lr if group.get("scheduled", True) else base) * group.get("lr_scale", 1.0)


def learning_rate(train: TrainConfig, *, step: int, total: int, per_epoch: int = 1) -> float:
    """Learning rate of `step` (from 0) out of `total`, `per_epoch` of them an epoch: linear warm-up, then the schedule.

    constant; cosine: half a cosine from lr down to min_lr; restarts: the same over `restart_epochs`, then again, each time over
    `restart_mult` times as many epochs (Loshchilov, Hutter, "SGDR", ICLR 2017).
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    since = step - train.warmup_steps
    if train.schedule == "cosine":
        done = since / max(1, total - train.warmup_steps)
    else:
        done = _since_restart(since / per_epoch, train.restart_epochs, train.restart_mult)
    return train.min_lr + (train.lr - train.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _since_restart(epochs: float, first: int, mult: int) -> float:
    """Share of its period that is over, `epochs` after the start."""
    period = first
    while epochs >= period:
        epochs -= period
        period *= mult
    return epochs / period


def _check_all_once(module: nn.Module, found: list[nn.Parameter]) -> None:
    wanted = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    if missing := [name for key, name in wanted.items() if key not in {id(p) for p in found}]:
        raise UsageError(f"{type(module).__name__}.param_groups() leaves out trainable parameters: {', '.join(missing[:5])}")
    if len(found) != len(wanted):
        raise UsageError(f"{type(module).__name__}.param_groups() names a parameter twice, or one that is not its own")
