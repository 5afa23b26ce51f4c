"""What was found, as Markdown."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from paired import Times
from peers.job import TORCH_THREADS, WORKERS, Job
from peers.measure import Found

AIMS = {("simclr-small", "torchgeo"): 3, ("simclr-small", "lightly"): 3, ("csf-small", "pil"): 5, ("simclr-resnet18", "tuned"): 1}
LABELS = {"run": "end to end", "load": "loader alone", "step": "step alone"}
PACKAGES = ("torch", "torchvision", "torchgeo", "lightly", "lightning", "kornia", "timm", "rasterio", "pillow", "numpy")


def machine() -> str:
    """Versions, commit, processor, date."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run(["git", "-C", str(here), "status", "--porcelain", "--", ":/dsengine", ":/kernels", ":/csrc", ":/bench"],
                           capture_output=True, text=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    load = Path("/proc/loadavg").read_text().split()[0]
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    cores = f"{len(os.sched_getaffinity(0))} cores, load {load} at the start"
    return (f"{time.strftime('%Y-%m-%d %H:%M')}, commit {commit}{' with changes' if dirty else ''}, {cpu}, {cores}, "
            f"Python {platform.python_version()}, {TORCH_THREADS} threads and {WORKERS} workers a side. {found}.\n")


def table(job: Job, found: Found) -> str:
    """Rows are sides; a cell is their samples/s, and ours over theirs."""
    lines = [f"# {job.name}: {job.method}, {job.encoder}, batch {job.batch}, two views of 14 x {job.size} x {job.size}, {job.precision}\n"]
    rounds = len(found.rates["ours"]["run"])
    if rounds:
        lines += [f"{rounds} rounds. samples/s; in brackets how many times ours is as fast.\n",
                  "| side | " + " | ".join(LABELS.values()) + " | aim, end to end | peak memory |", "|" + " --- |" * (len(LABELS) + 3)]
        for side in job.sides:
            cells = [_cell(found, side, what) for what in LABELS]
            lines.append(f"| {side} | " + " | ".join(cells) + f" | {AIMS.get((job.name, side), '')} | {found.memory[side] / 1e9:.2f} GB |")
    losses = "; ".join(f"{side} {loss:.6f}, {norm:.6f}" for side, (loss, norm) in found.losses.items())
    return "\n".join([*lines, f"\nLoss and gradient norm of one batch, same weights and views, fp32: {losses}.\n\n"])


def _cell(found: Found, side: str, what: str) -> str:
    theirs, ours = (np.array(found.rates[name][what]) for name in (side, "ours"))
    shown = f"{np.median(theirs):,.0f}" if np.median(theirs) >= 100 else f"{np.median(theirs):.1f}"
    return shown if side == "ours" else f"{shown} ({Times(1 / theirs, 1 / ours).ratio()})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
