"""`dsengine.train(...)`: the command line's train, as a function."""

from pathlib import Path
from typing import Literal, NamedTuple

from torch import nn

from dsengine.engine.checkpoint import load_encoder
from dsengine.engine.launch import begun, configure, run
from dsengine.engine.log import read_metrics
from dsengine.methods import inputs


class Run(NamedTuple):
    """A finished run."""

    dir: Path
    encoder: nn.Module  # pretrained, in eval mode, on CPU; the first where there are several
    metrics: list[dict]  # the records of metrics.jsonl
    encoders: dict[str, nn.Module]  # all of them, by the method's names


def train(*, resume: bool | Literal["auto"] = False, **config) -> Run:
    """Pretrain an encoder; returns the finished run.

    config: the settings of the YAML file, as nested dicts or plain values, for example
    `train(corpus="path", out="runs/a", encoder="resnet18", train={"epochs": 5})`,
    or `method={"name": NAME, SETTING: VALUE}`.
    resume: go on with the run in `out`; "auto": if it holds one. Raises UsageError or RunError, as the command line does, and
    `dsengine.errors.Stopped` after SIGTERM or SIGUSR1, which the run answers with a checkpoint.
    """
    resume = begun(config) if resume == "auto" else resume
    settings = configure(config, resume=resume)
    folder = run(settings, resume=resume).folder
    encoders = {name: load_encoder(folder, name)[0] for name in inputs(settings.method, settings.method_config)}
    return Run(folder, next(iter(encoders.values())), read_metrics(folder), encoders)
