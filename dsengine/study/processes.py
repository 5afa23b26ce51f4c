"""Cells as child processes of `dsengine`: what is called, where, how it is stopped, and what it said when it failed.

A child dies with this process, whatever ends it (`study.child`). Each has a process group of its own: Ctrl-C reaches this process alone,
which passes it on.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from dsengine import config as configuration
from dsengine.corpus import open_corpus
from dsengine.errors import UsageError
from dsengine.study.cells import Cell
from dsengine.study.spec import Evaluation, Synth
from dsengine.study.state import replace

_GRACE_S = 20.0  # to write what is to be written after Ctrl-C


@dataclass(frozen=True)
class Slot:
    """Where one child may run."""

    gpu: str | None  # as CUDA_VISIBLE_DEVICES has it; None: CPU
    threads: int  # of a child on CPU

    def environment(self) -> dict[str, str]:
        """Of a child."""
        own = {"CUDA_VISIBLE_DEVICES": self.gpu or ""}
        if self.gpu is None and "OMP_NUM_THREADS" not in os.environ:
            own["OMP_NUM_THREADS"] = str(self.threads)
        return {**os.environ, **own}


class Child:
    """The process, or one process after the other, of one cell."""

    def __init__(self, cell: Cell, slot: Slot, commands: list[list[str]], *, folder: Path, log: Path) -> None:
        self.cell, self.slot, self.folder, self.log, self.started = cell, slot, folder, log, time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._commands, self._offset = list(commands), log.stat().st_size if log.exists() else 0
        self.cpu_s = 0.0  # of what has ended
        self._process = self._start()

    def poll(self) -> int | None:
        """The exit code, None while it runs; 0 only when the last command is through."""
        before = _cpu_s()
        code = self._process.poll()  # what it spent is added to this process's children when it is waited for, and here alone
        self.cpu_s += _cpu_s() - before
        if code == 0 and self._commands:
            self._process = self._start()
            return None
        return code

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def send(self, number: int) -> None:
        """A signal to it and its own children."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def error(self, code: int) -> str:
        """In one line, what it said last."""
        with open(self.log, "rb") as file:
            file.seek(self._offset)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix("dsengine: ") for line in lines if line.startswith("dsengine: ")] or lines or ["it said nothing"]
        if code < 0:
            return f"killed by {signal.Signals(-code).name}; its last words: {said[-1]}"
        return said[-1]

    def _start(self) -> subprocess.Popen:
        command = command_line(self._commands.pop(0))
        with open(self.log, "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.slot.environment(), process_group=0)


def _cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def command_line(argv: list[str]) -> list[str]:
    """What is executed for `dsengine ARGV`."""
    return [sys.executable, "-P", "-m", "dsengine.study.child", str(os.getpid()), *argv]


def start(cell: Cell, slot: Slot, study: Path, *, corpora: Mapping[str, str], folders: Mapping[str, str]) -> Child:
    """Begin a cell, or go on with what is left of it.

    corpora: cell -> folder of the corpora that the study makes; folders: training cell -> folder, of those that an evaluation is to judge.
    """
    out = study / cell.folder
    where = corpora.get(cell.corpus, cell.corpus)
    if cell.kind == "corpus":
        commands = _corpus(cell.task, out)
    elif cell.kind == "train":
        commands = [_train(cell, slot, study, out, where)]
    else:
        runs = [f"{name}={study / folders[of]}" for name, of in cell.runs.items() if of in folders]
        commands = [_evaluate(cell, slot, out, where, runs)]
    return Child(cell, slot, commands, folder=out, log=study / "logs" / f"{out.name}.log")


def stop(children: Iterable[Child]) -> None:
    """Ctrl-C for all, time to obey, then no mercy."""
    alive = list(children)
    for child in alive:
        child.send(signal.SIGINT)
    deadline = time.monotonic() + _GRACE_S
    while alive and time.monotonic() < deadline:
        alive = [child for child in alive if child._process.poll() is None]
        time.sleep(0.05)
    for child in alive:
        child.send(signal.SIGKILL)
        child._process.wait()


def _corpus(of: Synth, out: Path) -> list[list[str]]:
    size = ["--size", str(of.size)] if of.kind == "patches" else []
    count = ["--patches", str(of.patches)] if of.kind == "patches" else ["--rows", str(of.rows)]
    made = [] if _is_whole(out) else [["corpus", "synth", str(out), "--kind", of.kind, *count, *size, "--seed", str(of.seed)]]
    near = [["corpus", "neighbours", str(out)]] if of.kind == "patches" and of.neighbours else []
    return [*made, *near] or [["corpus", "info", str(out)]]


def _is_whole(corpus: Path) -> bool:
    """Whether a corpus is there that only lacks its neighbours."""
    try:
        open_corpus(corpus)
    except UsageError:
        return False
    return True


def _train(cell: Cell, slot: Slot, study: Path, out: Path, corpus: str) -> list[str]:
    gpus = ["--gpus", "0" if slot.gpu is None else "1"]
    if (out / "config.yaml").exists():
        return ["train", "--resume", "--out", str(out), *gpus]
    shutil.rmtree(out, ignore_errors=True)  # killed before it had written what it is
    threads = {} if slot.gpu is not None or cell.task["data"]["threads"] is not None else {"data": {"threads": slot.threads}}
    settings = configuration.merge({key: value for key, value in cell.task.items() if key not in ("out", "device")}, {"corpus": corpus}, threads)
    config = replace(study / "cells" / f"{cell.id}.yaml", yaml.safe_dump(settings, sort_keys=False))
    return ["train", "--config", str(config), "--out", str(out), *gpus]


def _evaluate(cell: Cell, slot: Slot, out: Path, corpus: str, runs: list[str]) -> list[str]:
    of: Evaluation = cell.task
    untrained = cell.about["untrained"]
    judged = ["--run", "none", "--encoder", untrained] if untrained else ["--run", *runs]
    more = [*(["--things", of.things] if of.things else []), *(["--imagenet", of.imagenet] if of.imagenet else [])]
    device = [] if "device" in of.given else ["--set", f"device={'cpu' if slot.gpu is None else 'cuda'}"]
    return ["evaluate", of.command, *judged, "--corpus", corpus, "--out", str(out), *more, *_settings(of), *device]


def _settings(of: Evaluation) -> list[str]:
    """Every setting that is not the default, as `--set key=value`."""
    found: list[str] = []
    for setting in fields(of.setting):
        value = getattr(of.setting, setting.name)
        if value != setting.default:
            found += ["--set", f"{setting.name}={_text(value)}"]
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
