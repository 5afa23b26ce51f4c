"""Configurations of the networks, drawn by Optuna from the spaces of Patnala et al.'s code.

    bilstm       hidden {32, 64, 128, 256}, layers 2..6, dropout U(0, 0.6)
    inception    width {128, 256, 512}, layers {2, 4, 6, 8}, kernel {40, 80, 120, 160}
    transformer  width {32, 64, 128}, layers 2..6, heads {2, 4, 8}, dropout U(0, 0.6)
    all          lr in [1e-5, 1e-3], log-uniform; `parity`: uniform, as the original drew it

Draws are independent of results, so that raw and pretrained input are given the same configurations in any order. The original asked a
default Optuna study for 10 trials; no sampler of Optuna looks at results that early (TPE draws its first 10 at random, NSGA-II its first 50).
Configuration k of a network depends on the seed alone, not on how many are drawn.
"""

import zlib
from dataclasses import asdict, dataclass
from typing import Any

from dsengine.corpus.build.optional import need
from dsengine.evaluate.crops.networks import Bilstm, Inception, Transformer

LR = (1e-5, 1e-3)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One draw."""

    network: str
    number: int
    lr: float
    shape: Bilstm | Inception | Transformer

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"network": self.network, "number": self.number, "lr": self.lr, **asdict(self.shape)}


def configurations(network: str, count: int, *, seed: int, parity: bool = False, shrink: int = 1) -> list[Configuration]:
    """The first `count` configurations of `network`. shrink: widths are divided by it."""
    optuna = need("optuna", "evaluate")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=zlib.crc32(f"{network} {seed}".encode()))
    study = optuna.create_study(sampler=sampler)
    drawn = []
    for number in range(count):
        trial = study.ask()
        shape = _SHAPES[network](trial, shrink)
        drawn.append(Configuration(network=network, number=number, lr=trial.suggest_float("lr", *LR, log=not parity), shape=shape))
    return drawn


def _bilstm(trial: Any, shrink: int) -> Bilstm:
    return Bilstm(hidden=trial.suggest_categorical("hidden", [32, 64, 128, 256]) // shrink, layers=trial.suggest_int("layers", 2, 6),
                  dropout=trial.suggest_float("dropout", 0.0, 0.6))


def _inception(trial: Any, shrink: int) -> Inception:
    return Inception(width=trial.suggest_categorical("width", [128, 256, 512]) // shrink, layers=trial.suggest_categorical("layers", [2, 4, 6, 8]),
                     kernel=trial.suggest_categorical("kernel", [40, 80, 120, 160]))


def _transformer(trial: Any, shrink: int) -> Transformer:
    return Transformer(width=trial.suggest_categorical("width", [32, 64, 128]) // shrink, layers=trial.suggest_int("layers", 2, 6),
                       heads=trial.suggest_categorical("heads", [2, 4, 8]), dropout=trial.suggest_float("dropout", 0.0, 0.6))


_SHAPES = {"bilstm": _bilstm, "inception": _inception, "transformer": _transformer}
