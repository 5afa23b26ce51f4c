"""`dsengine.train(...)`: the command line's train, as a function."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from dsengine.engine.checkpoint import load_encoder
from dsengine.engine.launch import configure, run
from dsengine.engine.log import read_metrics


class Run(NamedTuple):
    """A finished run."""

    dir: Path
    encoder: nn.Module  # pretrained, in eval mode, on CPU
    metrics: list[dict]  # the records of metrics.jsonl


def train(*, resume: bool = False, **config) -> Run:
    """Pretrain an encoder; returns the finished run.

    config: the settings of the YAML file, as nested dicts or plain values, for example
    `train(corpus="path", out="runs/a", encoder="resnet18", train={"epochs": 5})`,
    or `method={"name": NAME, SETTING: VALUE}`.
    resume: go on with the run in `out`. Raises UsageError or RunError, as the command line does.
    """
    folder = run(configure(config, resume=resume), resume=resume)
    return Run(folder, load_encoder(folder)[0], read_metrics(folder))
