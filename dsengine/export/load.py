"""`dsengine.load_encoder`: an encoder and its contract out of a run, or out of any file that `dsengine export` writes."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dsengine.corpus.build.optional import need
from dsengine.corpus.schema import Contract
from dsengine.encoders import Features, build_encoder
from dsengine.engine import checkpoint
from dsengine.errors import RunError, UsageError

WEIGHTS, PROGRAM, ONNX, CARD = "encoder.safetensors", "encoder.pt2", "encoder.onnx", "contract.json"
KEY = "dsengine"  # of the JSON card inside each file
VERSION = 1


def load_encoder(path: str | Path, name: str | None = None) -> tuple[nn.Module, Contract]:
    """The encoder in evaluation mode on the CPU, and its data contract.

    path: a run folder or one of its checkpoints, a folder that `dsengine export` wrote, or one of its files (.safetensors, .pt2, .onnx).
    name: which encoder of a run with several, such as "s2". The contract says which bands the encoder expects, in which order, units,
    scale and statistics; one that was shown bands drawn at random takes any `encoder.in_channels` of them. Programs and ONNX files come back as
    modules that return `Features`; their weights are fixed.
    Raises UsageError for a path that holds no encoder or none of that name, RunError for damaged files.
    """
    path = Path(path)
    if path.is_dir() and (path / WEIGHTS).exists():
        path = path / WEIGHTS
    loaders = {".safetensors": _safetensors, ".pt2": _program, ".onnx": _onnx}
    if path.suffix not in loaders or path.is_dir():
        return checkpoint.load_encoder(path, name)
    if not path.is_file():
        raise UsageError(f"load_encoder: {path}: no such file")
    module, card = loaders[path.suffix](path)
    if name not in (None, card["name"]):
        raise UsageError(f"load_encoder: {path} holds encoder {card['name']!r}; legal: that name, or none")
    return module, Contract.from_json(card["contract"])


class Program(nn.Module):
    """An encoder whose computation came from a file; returns `Features`."""

    def __init__(self, run: Any, card: dict[str, Any], sha256: str) -> None:
        super().__init__()
        self._run, self.sha256 = run, sha256
        self.in_channels, self.dim, self.input = card["in_channels"], card["dim"], card["input"]

    def forward(self, x: Tensor) -> Features:
        """x as the encoder takes it, float32 -> Features, on the device of x; computed on the CPU."""
        found = [value.to(x.device) for value in self._run(x.detach().cpu().float())]
        return Features(found[0], found[1] if len(found) == 2 else None)


def read_card(path: Path) -> dict[str, Any]:
    """The card in exported weights. UsageError where there is none, RunError where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return _card((file.metadata() or {}).get(KEY), path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: damaged ({error})") from error


def _safetensors(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    card = read_card(path)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: damaged ({error})") from error
    module = build_encoder(card["encoder"]["name"], card["in_channels"], **card["encoder"]["settings"])
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path}: its tensors are not those of {card['encoder']['name']}: {error}") from error
    return module.eval(), card


def _program(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    extra = {CARD: ""}
    if not zipfile.is_zipfile(path):
        raise RunError(f"{path}: damaged, it is no archive of torch.export")
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # torch raises what its archive reader, its JSON reader or its checks raise
        raise RunError(f"{path}: not a readable torch.export program ({type(error).__name__}: {error})") from error
    card = _card(extra[CARD], path)
    module = program.module()  # not a child of ours: it refuses eval() and train()
    return Program(lambda x: module(x), card, _file_sha256(path)).eval(), card


def _onnx(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    runtime = need("onnxruntime", "export")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no public base
        raise RunError(f"{path}: not a readable ONNX file ({type(error).__name__}: {error})") from error
    card = _card(session.get_modelmeta().custom_metadata_map.get(KEY), path)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(value) for value in session.run(None, {"x": np.ascontiguousarray(x.numpy())}))

    return Program(run, card, _file_sha256(path)).eval(), card


def _card(text: str | bytes | None, path: Path) -> dict[str, Any]:
    """The JSON card. UsageError for a file without one."""
    try:
        card = json.loads(text or "null")
    except ValueError as error:
        raise RunError(f"{path}: its contract is damaged ({error})") from error
    if not isinstance(card, dict) or card.get("version") != VERSION:
        raise UsageError(f"load_encoder: {path} carries no contract of version {VERSION}; legal: files that `dsengine export` wrote")
    return card


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
