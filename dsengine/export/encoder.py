"""`dsengine export`: a run's encoder in forms that other tools read, each with the contract inside.

encoder.safetensors  weights with torchvision's key names; metadata `dsengine` is the card
contract.json        the card: contract, encoder name and settings, feature sizes, hashes
encoder.pt2          a torch.export program for batches of any size
encoder.onnx         ONNX for batches of any size, checked against the encoder when it is written
config.json and model.safetensors   what timm reads as `local-dir:FOLDER`, where timm has the same network
"""

import json
import os
import shutil
from collections.abc import Sequence
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
from dsengine.export.model import sha256_of
from dsengine.export.recipe import recipe
from dsengine.export.timm_form import write_timm

FORMATS = ("safetensors", "program", "onnx", "timm")
OPSET = 18
TOLERANCE = 1e-4  # largest difference to the encoder, relative to its largest feature, that an ONNX file may have
_SAMPLES = 2


def export_encoder(run: str | os.PathLike[str], out: str | os.PathLike[str], *, name: str | None = None, formats: Sequence[str] | None = None,
                   size: int | None = None) -> Path:
    """Write the encoder of a run (or of an exported file with weights) to the new folder `out`; returns it.

    name: which of a run's encoders. formats: of FORMATS; None: all that can be written here (ONNX needs the extra `export`, timm an encoder
    that timm has). size: pixels a side that programs and ONNX files take; None: the contract's patch size. Each file is compared with the
    encoder before the folder appears. Raises UsageError or RunError.
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
    card = make_card(encoder, contract, recipe(run, name), size=size)
    stage = out.with_name(f".{out.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir(parents=True)
        for wanted in FORMATS if formats is None else formats:
            _WRITERS[wanted](encoder, card, stage, required=formats is not None)
        (stage / CARD).write_text(json.dumps(card, indent=1))
        os.replace(stage, out)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return out


def make_card(encoder: nn.Module, contract: Contract, made_of: dict[str, Any], *, size: int | None) -> dict[str, Any]:
    """What every file carries as JSON."""
    side, channels = contract.patch_size if size is None else size, getattr(encoder, "in_channels", len(contract.bands))
    with torch.inference_mode():
        found = encoder(torch.zeros(1, channels, side, side))
    stored = contract.to_json()
    return {"version": VERSION, **made_of, "in_channels": channels, "size": side, "dim": found.pooled.shape[1],
            "dense": None if found.dense is None else list(found.dense.shape[1:]), "sha256": sha256_of(encoder), "contract_sha256": digest(stored),
            "input": "z-scored: (stored * scale + offset - mean) / std a band, float32, nodata 0, bands in the contract's order", "contract": stored}


class _Flat(nn.Module):
    """An encoder with a plain tuple of outputs."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.encoder(x)
        return (found.pooled,) if found.dense is None else (found.pooled, found.dense)


def write_safetensors(encoder: nn.Module, card: dict[str, Any], folder: Path, *, required: bool) -> None:
    """The state dict as it is."""
    weights = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt", KEY: json.dumps(card)})


def write_program(encoder: nn.Module, card: dict[str, Any], folder: Path, *, required: bool) -> None:
    """torch.export with a dynamic first dimension, compared at another batch size than it was traced with."""
    program = _traced(encoder, card)
    torch.export.save(program, folder / PROGRAM, extra_files={CARD: json.dumps(card)})
    _compare(encoder, load_encoder(folder / PROGRAM)[0], card, what=PROGRAM)


def write_onnx(encoder: nn.Module, card: dict[str, Any], folder: Path, *, required: bool) -> None:
    """Inputs x, outputs pooled and dense, opset OPSET; left out where the packages are absent and it was not asked for by name."""
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package, "export")
    except UsageError:
        if required:
            raise
        return
    names = ["pooled"] if card["dense"] is None else ["pooled", "dense"]
    exported = torch.onnx.export(_traced(encoder, card), (), None, dynamo=True, opset_version=OPSET, input_names=["x"], output_names=names, verbose=False)
    exported.model.metadata_props[KEY] = json.dumps(card)
    exported.save(folder / ONNX)
    _compare(encoder, load_encoder(folder / ONNX)[0], card, what=ONNX)


def _traced(encoder: nn.Module, card: dict[str, Any]) -> torch.export.ExportedProgram:
    example = torch.zeros(_SAMPLES, card["in_channels"], card["size"], card["size"])
    with torch.no_grad():
        return torch.export.export(_Flat(encoder).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _compare(encoder: nn.Module, other: nn.Module, card: dict[str, Any], *, what: str) -> None:
    """RunError unless `other` gives the encoder's features for one image and for three."""
    for count in (1, 3):
        x = torch.randn(count, card["in_channels"], card["size"], card["size"], generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            want, found = encoder(x), other(x)
        for key in Features._fields:
            a, b = getattr(want, key), getattr(found, key)
            if a is not None and (difference := float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))) > TOLERANCE:
                raise RunError(f"{what}: {key} differs from the encoder by {difference:.1e} of its largest value; legal: {TOLERANCE}")


_WRITERS = {"safetensors": write_safetensors, "program": write_program, "onnx": write_onnx, "timm": write_timm}
