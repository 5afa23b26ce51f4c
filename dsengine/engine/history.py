"""history.jsonl of a run: when it was started and how it ended, on what machine, with which versions. One line a start, one an end."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dsengine

HISTORY = "history.jsonl"
_PACKAGES = ("torch", "triton", "numpy", "zarr", "numcodecs", "nvidia-dali-cuda130")


@contextmanager
def noted(run: Path, *, device: str, ranks: int, resumed: bool) -> Iterator[None]:
    """Note the start of a run, and its end: "done", or what it ended with. A start without an end was killed, or goes on."""
    began = time.perf_counter()
    _append(run, {"event": "start", "time": _now(), "resumed": resumed, "ranks": ranks, "versions": versions(), "machine": machine(device)})
    how = "done"
    try:
        yield
    except BaseException as error:
        how = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise
    finally:
        with suppress(OSError):  # a full disk: what ended the run is the error to hear of
            _append(run, {"event": "end", "time": _now(), "how": how, "seconds": round(time.perf_counter() - began, 1)})


def read_history(run: Path) -> list[dict[str, Any]]:
    """The whole lines of history.jsonl in order; none for a run that has no such file. What a kill or a full disk cut off is left out."""
    path = run / HISTORY
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def versions() -> dict[str, str]:
    """Of this package and what it computes with."""
    found = {"dsengine": dsengine.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def machine(device: str) -> dict[str, Any]:
    """What the numbers of samples a second depend on. No name or address of the machine, for reports are passed on."""
    found = {"system": f"{platform.system()} {platform.release()}", "cpu": _cpu(), "cores": len(os.sched_getaffinity(0)),
             "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1), "device": device}
    if device == "cuda":
        found["gpus"] = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return found


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(run: Path, record: dict[str, Any]) -> None:
    path = run / HISTORY
    cut_off = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with open(path, "a") as file:
        file.write("\n" * cut_off + json.dumps(record) + "\n")
