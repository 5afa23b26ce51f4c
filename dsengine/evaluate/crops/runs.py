"""Finished fits on disk: OUT/runs/KEY.json, one each, KEY being a hash of all that decides it. What is there is not trained again."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.errors import RunError, UsageError
from dsengine.evaluate import metrics
from dsengine.evaluate.book import digest

VERSION = 1
EVALUATION = "crops"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One configuration, trained on one input with one seed."""

    network: str
    configuration: int
    input: str
    seed: int
    num_parameters: int
    best_epoch: int
    history: list[dict[str, Any]]
    seconds: float
    predicted: dict[str, list[int]]  # judged part -> class of each of its rows


class Runs:
    """Where they are kept. UsageError when `out` cannot be written or holds another evaluation."""

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        try:
            old = self.out / "results.json"
            if old.exists() and (was := json.loads(old.read_text()).get("evaluation")) != EVALUATION:
                raise UsageError(f"out={out}: holds the evaluation {was}; give a folder of its own")
            for folder in ("runs", "features", "figures"):
                (self.out / folder).mkdir(parents=True, exist_ok=True)
        except (OSError, json.JSONDecodeError, AttributeError) as error:
            raise UsageError(f"out={out}: cannot be used ({error})") from error

    def path(self, key: dict[str, Any]) -> Path:
        """The file of `key`."""
        return self.out / "runs" / f"{digest({'version': VERSION, **key})[:24]}.json"

    def load(self, key: dict[str, Any]) -> Run | None:
        """The finished fit of `key`, None where it is not there. RunError for a file that does not read."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            return Run(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path}: not readable ({error}); remove it and it is made again") from error

    def save(self, key: dict[str, Any], run: Run) -> None:
        """Keep it, whole or not at all. RunError when the disk refuses."""
        self.write(self.path(key).relative_to(self.out).as_posix(), json.dumps(asdict(run)))

    def write(self, name: str, text: str) -> Path:
        """OUT/name with `text`, replaced at once."""
        path = self.out / name
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(text)
            os.replace(part, path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
        return path


def confusion(run: Run, part: str, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 counts of one judged part, truth by prediction."""
    return np.bincount(truth * num_classes + np.array(run.predicted[part]), minlength=num_classes**2).reshape(num_classes, num_classes)


def score(run: Run, part: str, truth: np.ndarray, num_classes: int, *, figure: str = "accuracy") -> float:
    """A figure of `metrics.scores` on one judged part."""
    return float(metrics.scores(confusion(run, part, truth, num_classes))[figure])
