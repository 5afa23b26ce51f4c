"""A step as a folder that replays on another machine: RUN/captures/step-00000013, of a step that failed or that was asked for.

weights.safetensors     the method's parameters and buffers before the step
batch.safetensors       the views, sample ids and labels of the whole global batch
capture.json            step, epoch, seed, why, what each rank scored, configuration, contract, versions, sha256 of the others

The batch lies in it, so neither corpus nor run is needed; noise is a function of seed, step and sample id, so none is stored. The optimiser is
not: a step's loss and gradients do not depend on it. No pickle. Staged beside its place, synced, renamed, as a checkpoint is.
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsengine.corpus.shards import sync
from dsengine.data.sample import Batch
from dsengine.dist import SOLO, World, gather_rows
from dsengine.engine.history import versions
from dsengine.engine.sums import digest, sha256
from dsengine.errors import RunError, UsageError

_ABOUT = "capture.json"
_TENSORS = ("weights.safetensors", "batch.safetensors")
_FORMAT = 1


class Captured(NamedTuple):
    """A whole capture, read back."""

    path: Path
    about: dict[str, Any]
    weights: dict[str, Tensor]
    batch: Batch  # every rank's rows, on CPU


def weights_of(method: nn.Module) -> dict[str, Tensor]:
    """A copy of the method's state on the CPU. Waits for the device."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in method.state_dict().items()}


def folder_of(run: Path, step: int) -> Path:
    """Where the capture of `step` (counted from 0) lies."""
    return run / "captures" / f"step-{step + 1:08d}"


def write(run: Path, *, weights: dict[str, Tensor], batch: Batch, about: dict[str, Any]) -> Path:
    """Write the capture of step `batch.step` (counted from 0); RunError when the disk refuses. One of the same step is replaced."""
    final = folder_of(run, batch.step)
    stage = final.with_name(f".{final.name}.part")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True, mode=0o700)
        save_file(weights, stage / "weights.safetensors")
        save_file(_tensors(batch), stage / "batch.safetensors")
        about = {"format": _FORMAT, "step": batch.step, "seed": batch.seed, **about, "threads": torch.get_num_threads(), "versions": versions(),
                 "channels_last": [x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) for x in batch.views],
                 "sha256": {name: sha256(stage / name) for name in _TENSORS}}
        about["capture_sha256"] = digest(about)
        (stage / _ABOUT).write_text(json.dumps(about, indent=1))
        for path in [*stage.iterdir(), stage]:
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(stage, final)
        sync(final.parent)
    except OSError as error:
        raise RunError(f"capture {final}: cannot be written ({error.strerror or error})") from error
    return final


def read(folder: str | Path) -> Captured:
    """The capture in `folder`, its hashes checked. UsageError where there is none, RunError for a damaged one."""
    folder = Path(folder)
    if not (folder / _ABOUT).is_file():
        raise UsageError(f"{folder} is no capture (no {_ABOUT}); give a folder such as RUN/captures/step-00000013")
    try:
        about = json.loads((folder / _ABOUT).read_text())
        if about.pop("capture_sha256") != digest(about):
            raise RunError(f"capture {folder}: {_ABOUT} does not match its sha256, the file is damaged")
        if about["format"] != _FORMAT:
            raise RunError(f"capture {folder}: is of format {about['format']}, this version reads {_FORMAT}")
        for name in _TENSORS:
            if sha256(folder / name) != about["sha256"][name]:
                raise RunError(f"capture {folder}: {name} does not match its sha256, the file is damaged")
        batch = _batch(load_file(folder / "batch.safetensors"), about)
        return Captured(folder, about, load_file(folder / "weights.safetensors"), batch)
    except (OSError, KeyError, AttributeError, TypeError, ValueError, SafetensorError) as error:
        raise RunError(f"capture {folder}: not readable ({type(error).__name__}: {error})") from error


def joined(parts: Sequence[Batch]) -> Batch:
    """The global batch of the ranks' parts, on the CPU."""
    views = tuple(torch.cat([x.cpu() for x in same]) for same in zip(*(part.views for part in parts)))
    label = None if parts[0].label is None else torch.cat([part.label.cpu() for part in parts])
    return parts[0]._replace(views=views, sample_id=torch.cat([part.sample_id.cpu() for part in parts]), label=label, world=SOLO)


def scored(scores: dict[str, Tensor], world: World) -> list[dict[str, float]]:
    """What each rank's step returned, scalars alone, in rank order. Waits for the device; every rank calls it."""
    told = scalars(scores)
    own = torch.stack([value.double().reshape(()) for value in told.values()])
    return [dict(zip(told, row)) for row in gather_rows(own[None], world.group).tolist()]


def scalars(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what a method returned, the numbers."""
    return {name: value for name, value in scores.items() if value.numel() == 1}


def blame(by_rank: Sequence[dict[str, float]]) -> str:
    """What is not finite, in words: "loss (kl, loss on rank 1 of 2)"; without a score that is not, it must be a gradient."""
    bad = {rank: [name for name, value in scores.items() if not math.isfinite(value)] for rank, scores in enumerate(by_rank)}
    bad = {rank: names for rank, names in bad.items() if names}
    if not bad:
        return f"a gradient is not finite, though the loss is (on {'every rank' if len(by_rank) > 1 else 'this rank'})"
    told = "; ".join(f"{', '.join(names)} on rank {rank} of {len(by_rank)}" for rank, names in bad.items())
    return f"the loss is not finite ({told})" if any("loss" in names for names in bad.values()) else f"a gradient is not finite, nor is {told}"


def _tensors(batch: Batch) -> dict[str, Tensor]:
    found = {f"view_{k}": x.cpu().contiguous() for k, x in enumerate(batch.views)} | {"sample_id": batch.sample_id.cpu()}
    return found if batch.label is None else found | {"label": batch.label.cpu().contiguous()}


def _batch(tensors: dict[str, Tensor], about: dict[str, Any]) -> Batch:
    views = tuple(tensors[f"view_{k}"].contiguous(memory_format=torch.channels_last) if last else tensors[f"view_{k}"]
                  for k, last in enumerate(about["channels_last"]))
    return Batch(views, tensors["sample_id"], tensors.get("label"), seed=about["seed"], step=about["step"])
