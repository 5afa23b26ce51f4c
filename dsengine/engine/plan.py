"""What a run leaves open (`None`) is decided here, once, from the corpus and the machine, and checked."""

import math
import os
from dataclasses import replace

import torch

from dsengine.config import RunConfig
from dsengine.corpus import Corpus
from dsengine.data.sample import default_crop
from dsengine.engine.settings import TrainConfig
from dsengine.errors import UsageError


def choose_device(gpus: int | None) -> tuple[str, int]:
    """("cuda", ranks) or ("cpu", 0) for `device.gpus`; UsageError says how many GPUs there are."""
    found = torch.cuda.device_count()
    wanted = found if gpus is None else gpus
    if wanted < 0 or wanted > found:
        raise UsageError(f"device.gpus={wanted}: this machine shows {found} GPU{'s' * (found != 1)}; legal: 0 (CPU) to {found}")
    return ("cuda", wanted) if wanted else ("cpu", 0)


def complete(config: RunConfig, corpus: Corpus, *, ranks: int, device: torch.device) -> RunConfig:
    """`config` with nothing left open in `train` and `data`; UsageError where the numbers do not fit."""
    size = config.data.size or default_crop(corpus.patch_size)
    if not 0 < size <= corpus.patch_size:
        raise UsageError(f"data.size={size} does not fit the corpus's patches of {corpus.patch_size} px")
    rows = len(corpus.rows("train"))
    train = config.train
    batch = train.batch_size or _batch_size(rows, ranks)
    _check_batch(batch, rows, ranks)
    group = train.bn_group or _largest_divisor(batch // ranks, at_most=128)
    _check_group(group, batch // ranks)
    steps = rows // batch
    train = replace(train, batch_size=batch, bn_group=group, precision=_precision(train.precision, device),
                    log_steps=train.log_steps or max(1, steps // 10), checkpoint_steps=train.checkpoint_steps or steps)
    _check_train(train)
    data = replace(config.data, size=size, threads=config.data.threads or min(8, len(os.sched_getaffinity(0))))
    return replace(config, train=train, data=data)


def total_steps(train: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the whole run."""
    steps = train.epochs * steps_per_epoch
    return steps if train.max_steps is None else min(steps, train.max_steps)


def _batch_size(rows: int, ranks: int) -> int:
    step = math.lcm(8, ranks)
    return min(max(rows // 4 // step * step, step), 1024 // step * step)


def _check_batch(batch: int, rows: int, ranks: int) -> None:
    if batch > rows:
        raise UsageError(f"train.batch_size={batch} is larger than the corpus's train split of {rows} patches")
    if batch < 2:
        raise UsageError(f"train.batch_size={batch}: at least 2, a sample needs others to differ from")
    if batch % ranks:
        raise UsageError(f"train.batch_size={batch} does not divide among {ranks} ranks; "
                         f"legal near it: {batch // ranks * ranks or ranks}, {(batch // ranks + 1) * ranks}")


def _check_group(group: int, local_batch: int) -> None:
    if group < 1 or local_batch % group:
        legal = [d for d in range(1, local_batch + 1) if local_batch % d == 0]
        raise UsageError(f"train.bn_group={group}: each rank's {local_batch} samples must be whole groups; "
                         f"legal: {', '.join(map(str, legal))}")


def _check_train(train: TrainConfig) -> None:
    for key in ("epochs", "log_steps", "checkpoint_steps", "heldout_samples"):
        if getattr(train, key) < 1:
            raise UsageError(f"train.{key}={getattr(train, key)}: must be at least 1")
    if train.max_steps is not None and train.max_steps < 1:
        raise UsageError(f"train.max_steps={train.max_steps}: must be at least 1")
    if train.keep_checkpoints < 2:
        raise UsageError(f"train.keep_checkpoints={train.keep_checkpoints}: at least 2, a crash may cut off the newest")
    if not train.lr > 0:
        raise UsageError(f"train.lr={train.lr}: must be above 0")


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)


def _precision(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # Without AMX a CPU only emulates bf16 and fp32 is faster.
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
