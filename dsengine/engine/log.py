"""What a run says: metrics.jsonl and TensorBoard for later, a progress bar and one line an epoch for now."""

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dsengine.engine.events import EventFile, named
from dsengine.engine.monitor import Monitor

METRICS = "metrics.jsonl"


class Meter:
    """Samples per second and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0

    def add(self, *, samples: int, waited_s: float) -> None:
        """Count one step."""
        self._samples += samples
        self._waited += waited_s

    def read(self) -> dict[str, float]:
        """{"samples_per_s", "data_wait" in [0, 1]}; starts the next interval."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rates = {"samples_per_s": round(self._samples / elapsed, 2), "data_wait": round(self._waited / elapsed, 4)}
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0
        return rates


class RunLog:
    """Rank 0's voice; every other rank gets a `SilentLog`. A context manager."""

    def __init__(self, run: Path, *, total: int, start: int) -> None:
        keep_until(run / METRICS, step=start)
        self._file = open(run / METRICS, "a", buffering=1)
        self._board = EventFile(run / "tensorboard", first_step=start + 1)
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                   TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self.console, refresh_per_second=4, disable=not self.console.is_terminal)
        self._monitor: Monitor | None = None
        self._task = self._progress.add_task("train", total=total, completed=start, note="")

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with ExitStack() as stack:  # all of them, even where a full disk refuses what is left of one
            stack.callback(self._file.close)
            stack.callback(self._board.close)
            if self._monitor is not None:
                stack.callback(self._monitor.close, failed=kind is not None)
            stack.callback(self._progress.stop)

    def tell(self, monitor: Monitor | None) -> None:
        """Have `monitor` told every record from now on."""
        self._monitor = monitor

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        self._progress.console.print(text, soft_wrap=True, markup=False)

    def write(self, record: dict) -> None:
        """One object to metrics.jsonl, its numbers to TensorBoard, the loss and rates to the bar."""
        with named(self._file.name):
            self._file.write(json.dumps(record) + "\n")
        self._board.write(record, step=record["step"])
        if self._monitor is not None:
            self._monitor.write(record)
        if "loss" in record:
            note = f"loss {record['loss']:.4f}  {record['samples_per_s']:.1f} samples/s  data wait {record['data_wait']:.1%}"
            self._progress.update(self._task, completed=record["step"], note=note)


class SilentLog:
    """The same voice, saying nothing."""

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def say(self, text: str) -> None:
        """Nothing."""

    def write(self, record: dict) -> None:
        """Nothing."""


def read_metrics(run: Path) -> list[dict]:
    """The whole lines of a run's metrics.jsonl, in order; a line cut off by a kill is left out."""
    path = run / METRICS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def keep_until(path: Path, *, step: int) -> None:
    """Cut a metrics file back to the records of `step` and before, as a resume from that step needs."""
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_metrics(path.parent) if record["step"] <= step]
    part = path.with_suffix(".part")
    with open(part, "w") as file:
        file.write("".join(kept))
        file.flush()
        os.fsync(file.fileno())  # before the name changes: a power cut must not leave an empty file under it
    os.replace(part, path)
