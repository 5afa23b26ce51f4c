"""The settings of a run's loop and loader; nothing heavy is imported, so that `--help` stays fast. Method and encoder bring their own."""

import math
from dataclasses import dataclass
from typing import Literal

from dsengine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`train.*`. Where a field may be None, the run decides at its first start and keeps the answer in config.yaml."""

    epochs: int = 20
    max_steps: int | None = None  # stop after this many steps, if the epochs are not over before
    batch_size: int | None = None  # global, over all ranks; None: largest multiple of 8 up to 1024 with 4 steps an epoch
    lr: float = 5e-4
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0  # linear from 0
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"  # auto: bf16 where the device computes in it, else fp32
    bn_group: int | None = None  # samples of one view that share BatchNorm statistics; None: min(128, batch / ranks)
    log_steps: int | None = None  # None: about 10 lines an epoch
    checkpoint_steps: int | None = None  # None: at the end of every epoch
    keep_checkpoints: int = 2  # at least 2: the newest may be the one that a crash cut off
    heldout_samples: int = 512  # most samples of the val split that heldout_loss looks at

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "bn_group", "log_steps", "checkpoint_steps"):
            _at_least(self, name, 1)
        for name in ("weight_decay", "warmup_steps"):
            _at_least(self, name, 0)
        _at_least(self, "batch_size", 2, why="a sample needs others to differ from")
        _at_least(self, "keep_checkpoints", 2, why="a crash may cut off the newest")
        _at_least(self, "heldout_samples", 2, why="a sample needs others to differ from")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UsageError(f"lr={self.lr}: must be a number above 0")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed={self.seed}: must be in [0, 2**32)")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """`data.*`."""

    size: int | None = None  # side of the crops in pixels; None: leaves 16 px of the patch to move in, at most 128
    threads: int | None = None  # reading and decoding threads; None: as many as this process may use, at most 8
    prefetch: int = 2  # batches read ahead
    where: str | None = None  # a condition on index columns, such as "cloud < 0.4 and gap <= 3"; the patches that do not meet it are not there

    def __post_init__(self) -> None:
        for name in ("size", "threads", "prefetch"):
            _at_least(self, name, 1)


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """`device.*`: where the run happens; no figure of the run depends on it beyond rounding."""

    gpus: int | None = None  # None: all that are visible; 0: CPU
    procs: int = 1  # ranks on CPU

    def __post_init__(self) -> None:
        _at_least(self, "gpus", 0)
        _at_least(self, "procs", 1)


def _at_least(settings: object, name: str, least: int, *, why: str = "") -> None:
    value = getattr(settings, name)
    if value is not None and not value >= least:
        raise UsageError(f"{name}={value}: must be at least {least}" + (f", {why}" if why else ""))
