"""The settings of a run's loop and loader; nothing heavy is imported, so that `--help` stays fast. Method and encoder bring their own."""

import math
from dataclasses import dataclass
from typing import Literal

from dsengine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`train.*`. Where a field may be None, the run decides at its first start and keeps the answer in config.yaml, unless each start is to decide."""

    epochs: int = 20
    max_steps: int | None = None  # stop after this many steps, if the epochs are not over before
    batch_size: int | None = None  # global, over all ranks; None: largest multiple of 8 up to 1024 with 4 steps an epoch
    optimizer: Literal["adam", "adamw", "sgd", "lars"] = "adam"  # weight decay: part of the gradient, but decoupled in adamw
    lr: float = 5e-4
    min_lr: float = 0.0  # where a cosine ends
    weight_decay: float = 0.0
    decay_vectors: bool = False  # decay biases and norms too, and let LARS adapt them
    betas: tuple[float, float] = (0.9, 0.999)  # of adam and adamw
    momentum: float = 0.9  # of sgd and lars
    nesterov: bool = False  # of sgd and lars
    schedule: Literal["constant", "cosine", "restarts"] = "constant"  # restarts: a cosine again and again
    warmup_steps: int = 0  # linear from 0
    restart_epochs: int = 5  # length of the first cosine of `restarts`
    restart_mult: int = 1  # each later one is so many times as long as the one before
    seed: int = 0
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = "auto"  # auto: bf16 where the device computes in it, else fp32
    compile: bool = False  # encoders by torch.compile
    first_conv: Literal["as_is", "padded", "space_to_depth"] = "as_is"  # another way to compute a ResNet's first convolution, see `nn.stem`
    cuda_graphs: bool = False  # encoders as CUDA graphs, for small batches a GPU
    micro_batch: int | None = None  # samples a rank takes through the encoder at a time, to save memory; the step is the same. None: all of its batch
    # Samples of one view that share BatchNorm statistics; global: all, over all ranks. None: at most 128, of a rank's pass.
    bn_group: int | Literal["global"] | None = None
    log_steps: int | None = None  # None: about 10 lines an epoch
    checkpoint_steps: int | None = None  # None: at the end of every epoch
    # Steps go on while a checkpoint is written: a kill meanwhile costs the interval before it too. None: each start decides, on a GPU yes; on a CPU both want the same cores.
    async_save: bool | None = None
    keep_checkpoints: int = 2  # at least 2: the newest may be the one that a crash cut off
    heldout_samples: int = 512  # most samples of the val split that heldout_loss looks at
    knn_epochs: int | None = None  # k-NN accuracy every so many epochs, and at the end; None: never
    knn_label: str | None = None  # of these; None: the only label of classes that the corpus has
    capture_step: int | None = None  # this step, counted from 1, is written to captures/ for `dsengine replay`, as a step that fails is
    capture_alarms: bool = False  # the step after a loss spike, collapse or dead gradients too
    profile: bool = False  # a few steps after a warm-up are traced, into profile/
    monitor: Literal["none", "wandb", "mlflow"] = "none"  # a service that is told every record besides metrics.jsonl and TensorBoard

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "micro_batch", "log_steps", "checkpoint_steps", "restart_epochs", "restart_mult", "knn_epochs",
                     "capture_step"):
            _at_least(self, name, 1)
        if self.bn_group != "global":
            _at_least(self, "bn_group", 1)
        elif self.micro_batch is not None:
            raise UsageError(f"micro_batch={self.micro_batch}: bn_group=global needs every sample in one pass; legal: leave micro_batch out, or a bn_group of samples")
        if self.cuda_graphs and (self.compile or self.micro_batch is not None or self.bn_group == "global"):
            raise UsageError("cuda_graphs=true: legal without compile, micro_batch and bn_group=global")
        for name in ("weight_decay", "warmup_steps", "min_lr", "momentum"):
            _at_least(self, name, 0)
        _at_least(self, "batch_size", 2, why="a sample needs others to differ from")
        _at_least(self, "keep_checkpoints", 2, why="a crash may cut off the newest")
        _at_least(self, "heldout_samples", 2, why="a sample needs others to differ from")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UsageError(f"lr={self.lr}: must be a number above 0")
        if self.min_lr > self.lr:
            raise UsageError(f"min_lr={self.min_lr}: must be at most lr={self.lr}")
        for name, values in (("betas", self.betas), ("momentum", (self.momentum,))):
            if not all(0 <= value < 1 for value in values):
                raise UsageError(f"{name}={getattr(self, name)}: must be in [0, 1)")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed={self.seed}: must be in [0, 2**32)")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """`data.*`."""

    size: int | None = None  # side of the crops in pixels; None: leaves 16 px of the patch to move in, at most 128
    threads: int | None = None  # reading and decoding threads; None: as many as this process may use, at most 8
    prefetch: int | None = None  # batches made ahead of the step; None: each start decides, 2, but on a CPU with local files 0: both want the same cores
    resident: Literal["auto", "gpu", "ram", "none"] = "auto"  # where patches stay once they are decoded; auto: where half of what is free holds them
    timeout_s: float = 900.0  # a batch that takes longer ends the run
    where: str | None = None  # a condition on index columns, such as "cloud < 0.4 and gap <= 3"; the patches that do not meet it are not there

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("threads", 1), ("prefetch", 0)):
            _at_least(self, name, least)
        if not self.timeout_s > 0:
            raise UsageError(f"timeout_s={self.timeout_s}: must be more than 0")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """`device.*`: where the run happens; no figure of the run depends on it beyond rounding."""

    gpus: int | None = None  # None: all that are visible; 0: CPU
    procs: int = 1  # ranks on CPU, of each machine
    nodes: int = 1  # machines, each with as many ranks; the same command is started on every one
    rendezvous: str | None = None  # HOST:PORT where the machines meet, HOST being one of them; None: from SLURM
    max_restarts: int = 0  # after a rank was killed or hung: so often from the last checkpoint
    restart_ranks: int | None = None  # with so many ranks then; None: as many as before
    collective_timeout_s: float = 1200.0  # a rank that gets no further for so long ends the run; above data.timeout_s, which says more

    def __post_init__(self) -> None:
        for name, least in (("gpus", 0), ("procs", 1), ("nodes", 1), ("max_restarts", 0), ("restart_ranks", 1)):
            _at_least(self, name, least)
        if not self.collective_timeout_s > 0:
            raise UsageError(f"collective_timeout_s={self.collective_timeout_s}: must be more than 0")


def _at_least(settings: object, name: str, least: int, *, why: str = "") -> None:
    value = getattr(settings, name)
    if value is not None and not value >= least:
        raise UsageError(f"{name}={value}: must be at least {least}" + (f", {why}" if why else ""))
