"""`dsengine doctor`: one table of what is built, found and missing, with what to do about each."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Finding(NamedTuple):
    """One row. `state` is ok, missing (works without it, says what is lost) or broken (exit code 1)."""

    what: str
    state: str
    detail: str
    todo: str = ""


def report() -> int:
    """Print the table; 0 when nothing is broken, else 1."""
    findings = [_guarded(check) for check in (_python, _library, _torch, _gpu, _bf16, _triton, _dali, _zarr, _cores, _cache)]
    table = Table("", "state", "found", "what to do", title="dsengine doctor")
    for finding in findings:
        color = {"ok": "green", "missing": "yellow", "broken": "red"}[finding.state]
        table.add_row(finding.what, f"[{color}]{finding.state}[/]", finding.detail, finding.todo)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(any(finding.state == "broken" for finding in findings))


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # the doctor must survive every patient, and shows what hurt
        return Finding(check.__name__.strip("_"), "broken", f"{type(error).__name__}: {error}", "reinstall: pip install -c constraints.txt .")


def _python() -> Finding:
    import dsengine

    return Finding("dsengine", "ok", f"{dsengine.__version__}, Python {platform.python_version()}, {platform.machine()}")


def _library() -> Finding:
    from dsengine.ops import build_info

    info = build_info()
    text = ", ".join(f"{key} {value}" for key, value in info.items())
    if info.get("cuda"):
        return Finding("C++ library", "ok", text)
    return Finding("C++ library", "missing", text, "CUDA half not built: install nvcc, then pip install . again (only matters on a GPU)")


def _torch() -> Finding:
    import torch

    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _gpu() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        return Finding("GPU", "ok", f"{len(names)}: {', '.join(sorted(set(names)))}")
    built = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
    return Finding("GPU", "missing", built, "runs on CPU; for GPUs install a CUDA build of torch and a driver")


def _bf16() -> Finding:
    import torch

    hardware = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else torch.cpu._is_amx_tile_supported()
    if hardware:
        return Finding("bf16", "ok", "computed by the hardware; train.precision=auto is bf16")
    return Finding("bf16", "missing", "this device does not compute in bf16", "train.precision=auto is fp32 here")


def _triton() -> Finding:
    return Finding("triton", "ok", importlib.metadata.version("triton"))


def _dali() -> Finding:
    import nvidia.dali

    return Finding("DALI", "ok", nvidia.dali.__version__)


def _zarr() -> Finding:
    return Finding("zarr", "ok", f"{importlib.metadata.version('zarr')}, numcodecs {importlib.metadata.version('numcodecs')}")


def _cores() -> Finding:
    return Finding("cores", "ok", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")


def _cache() -> Finding:
    from dsengine.corpus.default import cache_folder

    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return Finding("cache", "broken", f"{folder} cannot be written", "set XDG_CACHE_HOME to a writable folder")
    return Finding("cache", "ok" if free > 1 else "missing", f"{folder}, {free:.0f} GiB free", "" if free > 1 else "less than 1 GiB free")
