"""`dsengine export`: a run's encoder in forms that other tools read, each with the contract inside.

encoder.safetensors  weights with torchvision's key names; metadata `dsengine` is the card
contract.json        the card: contract, encoder name and settings, feature sizes, hashes
encoder.pt2          a torch.export program for any number of images of any size
encoder.onnx         the same as ONNX; both are compared with the encoder when they are written
config.json and model.safetensors   what timm reads as `local-dir:FOLDER`, where timm has the same network
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dsengine.corpus.build.optional import need
from dsengine.corpus.schema import Contract
from dsengine.encoders import Features
from dsengine.errors import RunError, UsageError, nearest
from dsengine.export.facts import digest
from dsengine.export.load import CARD, KEY, ONNX, PROGRAM, VERSION, WEIGHTS, Program, load_encoder
from dsengine.export.model import input_of, sha256_of
from dsengine.export.recipe import recipe
from dsengine.export.timm_form import has_timm, write_timm

FORMATS = ("safetensors", "program", "onnx", "timm")
OPSET = 18
TOLERANCE = 1e-4  # largest difference to the encoder, relative to its largest feature, that a program or ONNX file may have
_DYNAMIC = {"image": (0, 2, 3), "pixel": (0,), "series": (0, 1)}  # axes of any size
_DATES = 12  # of the series that a program is traced with


def export_encoder(run: str | os.PathLike[str], out: str | os.PathLike[str], *, name: str | None = None, formats: Sequence[str] | None = None) -> Path:
    """Write the encoder of a run (or of an exported file with weights) to the new folder `out`; returns it.

    name: which of a run's encoders. formats: of FORMATS; None: all that can be written here (ONNX needs the extra `export`, timm an encoder
    that timm has). Programs and ONNX files are compared with the encoder before the folder appears. Raises UsageError or RunError.
    """
    out = Path(out)
    if out.exists():
        raise UsageError(f"--out {out} exists; legal: a new name")
    for wanted in formats or ():
        if wanted not in FORMATS:
            raise UsageError(f"--formats {wanted}: {nearest(wanted, FORMATS)}")
    encoder, contract = load_encoder(run, name)
    if isinstance(encoder, Program):
        raise UsageError(f"--run {run}: a program has no weights to export; legal: a run folder or {WEIGHTS}")
    card = make_card(encoder, contract, recipe(run, name))
    stage = out.with_name(f".{out.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir(parents=True)
        _write(encoder, card, stage, FORMATS if formats is None else formats, required=formats is not None)
        (stage / CARD).write_text(json.dumps(card, indent=1))
        os.replace(stage, out)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return out


def make_card(encoder: nn.Module, contract: Contract, made_of: dict[str, Any]) -> dict[str, Any]:
    """What every file carries as JSON."""
    card = {"version": VERSION, **made_of, "input": input_of(encoder), "in_channels": getattr(encoder, "in_channels", len(contract.bands)),
            "patch_size": contract.patch_size}
    with torch.inference_mode():
        found = encoder(torch.zeros(_example(card, 1)))
    stored = contract.to_json()
    return {**card, "dim": found.pooled.shape[1], "cells": None if found.dense is None else list(found.dense.shape[2:]), "sha256": sha256_of(encoder),
            "contract_sha256": digest(stored), "contract": stored,
            "preprocessing": "(stored * scale + offset - mean) / std a band, float32, 0 where there is no data, bands in the contract's order"}


def _example(card: dict[str, Any], count: int) -> tuple[int, ...]:
    """The shape of `count` inputs."""
    channels, side = card["in_channels"], card["patch_size"]
    return {"image": (count, channels, side, side), "pixel": (count, channels), "series": (count, _DATES, channels)}[card["input"]]


class _Flat(nn.Module):
    """An encoder with a plain tuple of outputs."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.encoder(x)
        return (found.pooled,) if found.dense is None else (found.pooled, found.dense)


def _write(encoder: nn.Module, card: dict[str, Any], folder: Path, formats: Sequence[str], *, required: bool) -> None:
    """The files of `formats`; unless they are `required`, without those that cannot be written here."""
    if "safetensors" in formats:
        write_safetensors(encoder, card, folder)
    if "timm" in formats and (required or has_timm(encoder, card)):
        write_timm(encoder, card, folder)
    onnx = "onnx" in formats and _has_onnx(required=required)
    if "program" in formats or onnx:
        program = traced(encoder, card)
        if "program" in formats:
            write_program(encoder, card, folder, program)
        if onnx:
            write_onnx(encoder, card, folder, program)


def write_safetensors(encoder: nn.Module, card: dict[str, Any], folder: Path) -> None:
    """The state dict as it is."""
    weights = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt", KEY: json.dumps(card)})


def traced(encoder: nn.Module, card: dict[str, Any]) -> torch.export.ExportedProgram:
    """The encoder as a program for any number of inputs, and images or series of any size."""
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in _DYNAMIC[card["input"]]}
    with torch.no_grad():
        return torch.export.export(_Flat(encoder).eval(), (torch.zeros(_example(card, 2)),), dynamic_shapes=(dynamic,))


def write_program(encoder: nn.Module, card: dict[str, Any], folder: Path, program: torch.export.ExportedProgram) -> None:
    """RunError where its features differ."""
    torch.export.save(program, folder / PROGRAM, extra_files={CARD: json.dumps(card)})
    _compare(encoder, load_encoder(folder / PROGRAM)[0], card, what=PROGRAM)


def write_onnx(encoder: nn.Module, card: dict[str, Any], folder: Path, program: torch.export.ExportedProgram) -> None:
    """Inputs x, outputs pooled and dense, opset OPSET. RunError where its features differ."""
    names = ["pooled"] if card["cells"] is None else ["pooled", "dense"]
    with _quiet():
        exported = torch.onnx.export(program, (), None, dynamo=True, opset_version=OPSET, input_names=["x"], output_names=names, verbose=False)
    exported.model.metadata_props[KEY] = json.dumps(card)
    exported.save(folder / ONNX)
    _compare(encoder, load_encoder(folder / ONNX)[0], card, what=ONNX)


def _has_onnx(*, required: bool) -> bool:
    """Whether the packages are there. UsageError when they are not and are required."""
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package, "export")
    except UsageError:
        if required:
            raise
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's lines about operators of packages that are not installed, and about its own deprecated calls."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _compare(encoder: nn.Module, other: nn.Module, card: dict[str, Any], *, what: str) -> None:
    """RunError unless `other` gives the encoder's features for one input and for three."""
    for count in (1, 3):
        x = torch.randn(_example(card, count), generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            want, found = encoder(x), other(x)
        for key in Features._fields:
            a, b = getattr(want, key), getattr(found, key)
            if a is not None and (difference := float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))) > TOLERANCE:
                raise RunError(f"{what}: {key} differs from the encoder by {difference:.1e} of its largest value; legal: {TOLERANCE}")
