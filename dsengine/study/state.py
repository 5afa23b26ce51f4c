"""What a study's folder knows of its cells: OUT/cells/ID.json, written whole or not at all, and OUT/.lock."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dsengine.errors import RunError, UsageError
from dsengine.study.cells import Cell

DONE, FAILED, SKIPPED = "done", "failed", "skipped"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended."""

    status: str  # done | failed | skipped
    name: str
    seconds: float = 0.0  # of all attempts, as far as they are known
    cpu_s: float = 0.0  # of all processors
    attempts: int = 0
    error: str = ""  # one line
    without: tuple[str, ...] = ()  # runs that an evaluation of several had to do without


def read(study: Path, cell: Cell) -> Outcome | None:
    """Its outcome so far. RunError for a file that does not read."""
    path = _path(study, cell)
    try:
        known = json.loads(path.read_text())
        return Outcome(**{**known, "without": tuple(known["without"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: not readable ({error}); remove it and its cell is done again, from what it left") from error


def write(study: Path, cell: Cell, outcome: Outcome) -> None:
    """Keep it."""
    replace(_path(study, cell), json.dumps(asdict(outcome), indent=1))


def is_finished(study: Path, cell: Cell) -> bool:
    """Whether it is done, wholly, and what it made is still there."""
    outcome = read(study, cell)
    made = {"corpus": "zarr.json", "train": "checkpoints", "evaluate": "results.json"}[cell.kind]
    return outcome is not None and outcome.status == DONE and not outcome.without and (study / cell.folder / made).exists()


def replace(path: Path, text: str) -> Path:
    """`path` with `text`, at once. RunError when the disk refuses."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


@contextmanager
def only_one(study: Path) -> Iterator[None]:
    """Hold the study's lock, which the kernel gives back however this process ends."""
    try:
        study.mkdir(parents=True, exist_ok=True)
        file = open(study / ".lock", "w")
    except OSError as error:
        raise UsageError(f"out={study}: cannot be written ({error.strerror or error}); give another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"out={study}: another process carries out a study there; wait for it or stop it") from error
        yield


def _path(study: Path, cell: Cell) -> Path:
    return study / "cells" / f"{cell.id}.json"
