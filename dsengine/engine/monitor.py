"""Where a run's records go besides its folder: Weights & Biases or MLflow, where `train.monitor` asks for one that is installed.

A service is told the run's name, its settings and each record's numbers; no picture, file, environment variable, command line or code. What
it raises never ends a run: the first failure is said, and the run goes on without it.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from dsengine.errors import UsageError

_PROJECT = "dsengine"
_KEPT = "monitor.json"  # in the run folder: {service: its name of this run}, so that a resumed run goes on where it was


class Monitor(Protocol):
    """What the log tells a record to."""

    def write(self, record: dict) -> None:
        """Its numbers, at its step."""

    def close(self, *, failed: bool) -> None:
        """The run is over."""


class _Wandb:
    def __init__(self, module: ModuleType, run: Path, settings: dict[str, Any]) -> None:
        before = _kept(run).get("wandb")
        # Neither the source, nor the console, nor the command line: paths and tokens may stand in them.
        quiet = module.Settings(console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True)
        self._run = module.init(project=_PROJECT, name=run.name, dir=str(run), config=settings, id=before,
                                resume="allow" if before else None, settings=quiet)
        _keep(run, "wandb", self._run.id)

    def write(self, record: dict) -> None:
        self._run.log(numbers(record), step=record["step"])

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, module: ModuleType, run: Path, settings: dict[str, Any]) -> None:
        self._module, before = module, _kept(run).get("mlflow")
        module.set_experiment(_PROJECT)
        started = module.start_run(run_id=before) if before else module.start_run(run_name=run.name)
        _keep(run, "mlflow", started.info.run_id)
        if not before:
            module.log_params(settings)

    def write(self, record: dict) -> None:
        self._module.log_metrics(numbers(record), step=record["step"])

    def close(self, *, failed: bool) -> None:
        self._module.end_run("FAILED" if failed else "FINISHED")


class Guarded:
    """A service whose failures are said once and end nothing but itself."""

    def __init__(self, open_service: Callable[[], Monitor], name: str, say: Callable[[str], None]) -> None:
        self._name, self._say, self._service = name, say, None
        self._service = self._try(open_service)

    def write(self, record: dict) -> None:
        """As the service does, if it still can."""
        if self._service is not None:
            self._try(lambda: self._service.write(record))

    def close(self, *, failed: bool) -> None:
        """The same."""
        if self._service is not None:
            self._try(lambda: self._service.close(failed=failed))

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a third party's client raises: a server that is down must not cost a week of training
            self._service = None
            self._say(f"{self._name} is told nothing more: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return None


def open_monitor(name: str, run: Path, *, settings: dict[str, Any], say: Callable[[str], None]) -> Monitor | None:
    """The service `name` for this run; None for "none". settings: flat, as {dotted.key: value}. say: where a failure is told."""
    if name == "none":
        return None
    module = installed(name)
    return Guarded(lambda: {"wandb": _Wandb, "mlflow": _Mlflow}[name](module, run, settings), name, say)


def installed(name: str) -> ModuleType | None:
    """The service's package, None for "none"; UsageError, with the command, where it is not installed."""
    if name == "none":
        return None
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(f"train.monitor={name}: the package is not installed ({error}); pip install {name}, or train.monitor=none") from error


def numbers(record: dict) -> dict[str, float]:
    """What of a record is a number, but its step."""
    return {name: float(value) for name, value in record.items() if isinstance(value, (int, float)) and name not in ("step", "ids_crc")}


def _kept(run: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        return dict(json.loads((run / _KEPT).read_text()))
    return {}


def _keep(run: Path, service: str, name: str) -> None:
    (run / _KEPT).write_text(json.dumps({**_kept(run), service: name}))
