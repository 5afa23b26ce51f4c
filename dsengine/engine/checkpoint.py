"""Checkpoints that a kill cannot damage, and reading the encoder back out of one.

A checkpoint is a folder `checkpoints/step-00000080` with model.safetensors, state.pt (optimiser; loads with
weights_only=True) and manifest.json (step, configuration, corpus contract, held-out loss, sha256 of the others), written
last. It is staged beside its final place, synced, and renamed: a folder with its final name is whole. Names that begin
with a dot are on their way in or out. Nothing in it depends on the number of ranks.
"""

import errno
import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsengine.corpus.schema import Contract
from dsengine.corpus.shards import sync
from dsengine.encoders import build_encoder, shape_of
from dsengine.engine.sums import digest, sha256
from dsengine.errors import RunError, UsageError, nearest


class Checkpoint(NamedTuple):
    """A verified checkpoint on disk."""

    path: Path
    step: int
    loader: dict[str, int]  # the loader's position and what must be equal for it to mean the same samples
    config: dict
    contract: Contract
    inputs: dict[str, dict] | None = None  # as given to `save`


class State(NamedTuple):
    """What a checkpoint holds besides what stays the same all through a run."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict  # `Optimizer.state_dict()`
    loader: dict[str, int]  # the loader's position
    heldout_loss: float | None = None  # of these weights, where it was measured


def save(run: Path, *, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, loader: dict[str, int], config: dict, contract: Contract,
         keep: int, inputs: dict[str, dict] | None = None, heldout_loss: float | None = None) -> Path:
    """Write the checkpoint of `step` and wait for it; see `write`."""
    state = State(step, method.state_dict(), optimizer.state_dict(), loader, heldout_loss)
    return write(run, state, config=config, contract=contract, keep=keep, inputs=inputs)


def write(run: Path, state: State, *, config: dict, contract: Contract, keep: int, inputs: dict[str, dict] | None = None) -> Path:
    """Write a checkpoint, then remove all but the newest `keep` and the one of the least held-out loss; RunError when the disk refuses.

    inputs: {encoder's name: {"bands": places in the contract, "in_channels": number}}; None: one, of all bands. Later ones go too: if there are any,
    this run was resumed from before them, because they are damaged. `checkpoints/best` is a link to the one of the least held-out loss.
    """
    final = run / "checkpoints" / f"step-{state.step:08d}"
    stage = final.with_name(f".{final.name}.part")
    try:
        _sweep(run)
        stage.mkdir(parents=True)
        sync(run)
        save_file({k: v.contiguous() for k, v in state.model.items()}, stage / "model.safetensors")
        with open(stage / "state.pt", "wb") as file:  # the error of a file of Python's says what is wrong, that of torch's own does not
            torch.save(state.optimizer, file)
        hashes = {name: sha256(stage / name) for name in ("model.safetensors", "state.pt")}
        manifest = {"format": 1, "step": state.step, "loader": state.loader, "config": config, "contract": contract.to_json(), "inputs": inputs,
                    "heldout_loss": state.heldout_loss, "sha256": hashes}
        manifest["manifest_sha256"] = digest(manifest)
        (stage / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in [*stage.iterdir(), stage]:
            sync(path)
        _remove(final)  # the same step again, after a resume from an older one
        os.replace(stage, final)
        sync(final.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"checkpoint {final}: cannot be written ({why(error)}); older ones are untouched") from error
    _prune(run, newest=final, keep=keep)
    return final


def why(error: BaseException) -> str:
    """The operating system's words for what a disk refused, also where a library wrapped them in its own."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if f"os error {code}" in str(error):
            return os.strerror(code)
    if not isinstance(error, OSError) and error.__context__ is not None:
        return why(error.__context__)
    return getattr(error, "strerror", None) or str(error)


def best(run: Path) -> Path | None:
    """The checkpoint of the least held-out loss among those on disk, the newest of equals; None where none has one."""
    losses = [(loss, -number, folder) for number, folder in enumerate(reversed(_folders(run))) if (loss := _heldout_loss(folder)) is not None]
    return min(losses)[2] if losses else None


def _heldout_loss(folder: Path) -> float | None:
    try:
        loss = json.loads((folder / "manifest.json").read_text()).get("heldout_loss")
    except (OSError, ValueError, AttributeError):
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def _prune(run: Path, *, newest: Path, keep: int) -> None:
    """Point `best` at the best, and remove what need not be kept."""
    for folder in _folders(run):
        if folder.name > newest.name:
            _remove(folder)
    chosen = best(run)
    if chosen is not None:
        link, part = newest.with_name("best"), newest.with_name(".best.part")
        with suppress(OSError):  # a file system without links: `best` finds it all the same
            part.unlink(missing_ok=True)
            part.symlink_to(chosen.name)
            os.replace(part, link)
    for folder in _folders(run)[keep:]:
        if folder != chosen:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Out of sight at once, so that a kill on the way leaves no half of a checkpoint under its name; then off the disk."""
    gone = folder.with_name(f".{folder.name}.old")
    with suppress(OSError):
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def tidy(run: Path, *, keep: int) -> None:
    """What a kill after the last rename left undone; only where the newest checkpoint is known to be whole."""
    _sweep(run)
    for newest in _folders(run)[:1]:
        _prune(run, newest=newest, keep=keep)


def _sweep(run: Path) -> None:
    """Remove what a killed save left."""
    for path in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def latest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, and one sentence for each newer one that had to be passed over."""
    passed = []
    for folder in _folders(run):
        try:
            return read(folder), passed
        except RunError as error:
            passed.append(str(error))
    return None, passed


def check_resumable(run: Path, contract: Contract, *, what: str) -> None:
    """UsageError when the run's newest checkpoint was made on other data; RunError when all of them are damaged."""
    saved, passed = latest(run)
    if saved is None and passed:
        raise RunError(f"{passed[0]}; no older one is whole, the run in {run} cannot be resumed")
    if saved is not None:
        saved.contract.check(contract, what=what)


def read(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its hashes checked; RunError says what is wrong with it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.pop("manifest_sha256") != digest(manifest):
            raise RunError(f"checkpoint {folder}: manifest.json does not match its sha256, the file is damaged")
        for name, expected in manifest["sha256"].items():
            if sha256(folder / name) != expected:
                raise RunError(f"checkpoint {folder}: {name} does not match its sha256, the file is damaged")
        contract = Contract.from_json(manifest["contract"])
        return Checkpoint(folder, manifest["step"], manifest["loader"], manifest["config"], contract, manifest.get("inputs"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"checkpoint {folder}: not readable ({type(error).__name__}: {error})") from error


def restore(checkpoint: Checkpoint, method: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Put the checkpoint's weights and optimiser state into `method` and `optimizer`."""
    method.load_state_dict(load_file(checkpoint.path / "model.safetensors", device=str(device)))
    optimizer.load_state_dict(torch.load(checkpoint.path / "state.pt", map_location=device, weights_only=True))


def load_encoder(path: str | Path, name: str | None = None) -> tuple[nn.Module, Contract]:
    """The pretrained encoder of a run (or of one checkpoint folder), in eval mode on CPU, and its data contract.

    name: which of several, such as "s2". The contract says which bands the encoder expects, in which order, units, scale and
    statistics; one that was shown bands drawn at random takes any `encoder.in_channels` of them.
    Raises UsageError when `path` holds no checkpoint or no encoder of that name, RunError when every checkpoint is damaged.
    """
    path = Path(path)
    if (path / "manifest.json").exists():
        checkpoint = read(path)
    else:
        checkpoint, passed = latest(path)
        if checkpoint is None and passed:
            raise RunError(passed[0])
        if checkpoint is None:
            raise UsageError(f"load_encoder: no checkpoint under {path}: give a run folder or a checkpoint folder")
    weights = load_file(checkpoint.path / "model.safetensors")
    name, prefix = _chosen(weights, name)
    every = {"bands": list(range(len(checkpoint.contract.bands))), "in_channels": len(checkpoint.contract.bands)}
    shown = (checkpoint.inputs or {}).get(name, every)
    settings = dict(checkpoint.config.get("encoders", {}).get(name, checkpoint.config["encoder"]))
    encoder = build_encoder(settings.pop("name"), shown["in_channels"], **shape_of(settings))
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return encoder.eval(), of_bands(checkpoint.contract, shown["bands"])


def _chosen(weights: dict, name: str | None) -> tuple[str, str]:
    """The encoder's name and what its weights' keys begin with."""
    names = sorted({key.split(".")[1] for key in weights if key.startswith("encoders.")})
    if name is None and len(names) != 1:
        raise UsageError(f"load_encoder: the run has {len(names)} encoders; name one: {', '.join(names)}")
    if name is not None and name not in names:
        raise UsageError(f"load_encoder: no encoder {name!r}; {nearest(name, names)}")
    return name or names[0], f"encoders.{name or names[0]}."


def of_bands(contract: Contract, numbers: list[int]) -> Contract:
    """`contract` of some of its bands alone."""
    parts = {key: tuple(getattr(contract, key)[n] for n in numbers) for key in ("bands", "units", "scale", "offset", "mean", "std")}
    return replace(contract, **parts)


def _folders(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)
