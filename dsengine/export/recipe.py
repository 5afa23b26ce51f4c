"""What an encoder is built from: its name among the encoders of the package, and its settings."""

import os
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dsengine.encoders import shape_of
from dsengine.engine import checkpoint
from dsengine.errors import RunError, UsageError
from dsengine.export.load import WEIGHTS, read_card


def recipe(path: str | os.PathLike[str], name: str | None) -> dict[str, Any]:
    """{"name": the run's name for the encoder, "encoder": {"name": ..., "settings": {...}}} of what `load_encoder(path, name)` gives."""
    path = Path(path)
    exported = path / WEIGHTS if path.is_dir() else path
    if exported.suffix == ".safetensors" and exported.is_file():
        card = read_card(exported)
        return {"name": card["name"], "encoder": card["encoder"]}
    saved = checkpoint.read(path) if (path / "manifest.json").exists() else checkpoint.latest(path)[0]
    if saved is None:
        raise RunError(f"{path}: no whole checkpoint")
    chosen = name or _only(saved)
    settings = dict(saved.config.get("encoders", {}).get(chosen, saved.config["encoder"]))
    return {"name": chosen, "encoder": {"name": settings.pop("name"), "settings": shape_of(settings)}}


def _only(saved: checkpoint.Checkpoint) -> str:
    with safe_open(saved.path / "model.safetensors", framework="pt") as file:
        names = sorted({key.split(".")[1] for key in file.keys() if key.startswith("encoders.")})
    if len(names) != 1:
        raise UsageError(f"{saved.path}: {len(names)} encoders; name one: {', '.join(names)}")
    return names[0]
