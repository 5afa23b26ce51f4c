"""Reading run folders and evaluation folders, whatever is missing in them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from dsengine.engine import checkpoint
from dsengine.engine.history import read_history
from dsengine.engine.log import read_metrics
from dsengine.errors import UsageError

CONFIG, RESULTS = "config.yaml", "results.json"
_NO_PARAMETER = ("running_mean", "running_var", "num_batches_tracked")


class RunFolder(NamedTuple):
    """One run as far as it can be read; `damage` says what could not."""

    path: Path
    name: str  # in legends
    config: dict[str, Any]
    config_text: str
    records: list[dict[str, Any]]  # of metrics.jsonl
    history: list[dict[str, Any]]  # of history.jsonl
    saved: checkpoint.Checkpoint | None  # the newest whole one
    damage: list[str]

    def setting(self, *keys: str) -> Any:
        """A setting by its dotted key's parts; None where the configuration has none."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one entry of the records; what is no number is NaN."""
        found = [(record["step"], record[name]) for record in self.records if name in record]
        steps, values = np.array([step for step, _ in found], float), [value for _, value in found]
        return steps, np.array([value if isinstance(value, (int, float)) and value is not True else np.nan for value in values], float)


class Evaluation(NamedTuple):
    """What an evaluation left."""

    path: Path
    results: dict[str, Any]
    tables: str  # table.md, or nothing
    figures: list[Path]


def read_run(path: Path, *, name: str | None = None) -> RunFolder:
    """The run in `path`. UsageError where it is none."""
    if not (path / CONFIG).is_file():
        raise UsageError(f"{path}: no run (no {CONFIG}); legal: folders that `dsengine train` wrote, or that `dsengine evaluate` did ({RESULTS})")
    damage: list[str] = []
    text = _text(path / CONFIG, damage)
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        config = damage.append(f"{CONFIG}: not readable YAML ({' '.join(str(error).split())})")
    if not isinstance(config, dict):
        config = {}
    records, history = (_lines(read, path, damage) for read in (read_metrics, read_history))
    saved, passed = checkpoint.latest(path)
    return RunFolder(path, name or path.resolve().name, config, text, records, history, saved, [*damage, *passed])


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in `path`. UsageError where it is none, or its results are damaged."""
    try:
        results = json.loads((path / RESULTS).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path / RESULTS}: not readable ({error})") from error
    if not isinstance(results, dict):
        raise UsageError(f"{path / RESULTS}: holds no results of an evaluation")
    tables = (path / "table.md").read_text(errors="replace") if (path / "table.md").is_file() else ""
    return Evaluation(path, results, tables, sorted((path / "figures").glob("*.png")))


def evaluations_of(runs: Sequence[Path], given: Iterable[Path] = ()) -> list[Evaluation]:
    """The evaluations in `given`, those inside the runs, and those beside a run that judged it; each once, in that order."""
    found: dict[Path, Evaluation] = {path.resolve(): read_evaluation(path) for path in given}
    inside = [file.parent for run in runs for pattern in (f"*/{RESULTS}", f"*/*/{RESULTS}") for file in sorted(run.glob(pattern))]
    beside = [file.parent for run in runs for file in sorted(run.resolve().parent.glob(f"*/{RESULTS}"))]
    judged = {run.resolve() for run in runs}
    for folder in dict.fromkeys([*inside, *beside]):
        if folder.resolve() in found:
            continue
        try:
            evaluation = read_evaluation(folder)
        except UsageError:
            continue  # nobody asked for this one
        if folder in inside or judged & _judged(evaluation):
            found[folder.resolve()] = evaluation
    return list(found.values())


def num_parameters(saved: checkpoint.Checkpoint) -> dict[str, int]:
    """Trainable numbers of each encoder in a checkpoint, and of all its modules under ""; {} where its weights cannot be read."""
    counts: dict[str, int] = {}
    try:
        with safe_open(saved.path / "model.safetensors", framework="np") as file:
            for key in file.keys():
                if not key.endswith(_NO_PARAMETER):
                    owner = key.split(".")[1] if key.startswith("encoders.") else ""
                    counts[owner] = counts.get(owner, 0) + int(np.prod(file.get_slice(key).get_shape()))
    except (OSError, SafetensorError):
        return {}
    return {**counts, "": sum(counts.values())}


def _judged(evaluation: Evaluation) -> set[Path]:
    """Folders of the runs that it judged."""
    lists = [found for key in ("rows", "inputs") if isinstance(found := evaluation.results.get(key), list)]
    about = [row.get("about") for found in lists for row in found if isinstance(row, dict)]
    return {Path(str(one["path"])).resolve() for one in about if isinstance(one, dict) and "path" in one}


def _text(path: Path, damage: list[str]) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        damage.append(f"{path.name}: cannot be read ({error.strerror})")
        return ""


def _lines(read: Any, path: Path, damage: list[str]) -> list[dict[str, Any]]:
    try:
        found = read(path)
    except (OSError, ValueError) as error:
        damage.append(f"{'metrics' if read is read_metrics else 'history'}.jsonl: not readable ({error})")
        return []
    whole = [record for record in found if isinstance(record, dict) and (read is read_history or _has_step(record))]
    if len(whole) < len(found):
        damage.append(f"{'metrics' if read is read_metrics else 'history'}.jsonl: {len(found) - len(whole)} lines are no records")
    return whole


def _has_step(record: dict[str, Any]) -> bool:
    """With whole numbers where code counts with them."""
    return all(type(record.get(key, 0)) is int for key in ("step", "epoch")) and "step" in record


def ended(run: RunFolder) -> str:
    """How the run's last start ended: done, an error, or that nothing says so."""
    last = run.history[-1] if run.history else {}
    if last.get("event") == "end":
        return str(last.get("how"))
    return "not recorded" if not last else "no end recorded: killed, or still running"
