"""Weights that a run begins with: `encoder.weights` names a file of public ones, another run, or what `dsengine export` wrote of one.

Of our own the saved contract is compared with the corpus: the encoder must have been shown the same bands, in the same order and units.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dsengine import plugin
from dsengine.corpus.schema import Contract
from dsengine.encoders import Start, shape_of
from dsengine.encoders._weights import load_public
from dsengine.engine.checkpoint import load_encoder, of_bands
from dsengine.errors import UsageError

_FREE = {"dropout"}  # settings that no weight depends on


def start(encoder: nn.Module, settings: Start, contract: Contract, *, key: str, numbers: list[int]) -> str:
    """Put the weights that `settings` names into `encoder`, and say in one line what was done; "" where it names none.

    contract: the corpus's; numbers: places in it of the bands that the method's input `key` is made of, of which the encoder sees all, or some that
    are drawn for each sample. UsageError for weights that do not fit, naming each difference.
    """
    if getattr(settings, "weights", None) is None:
        return ""
    shown, drawn = of_bands(contract, numbers), encoder.in_channels != len(numbers)
    path = Path(settings.weights)
    bands = [band.name for band in shown.bands]
    saved = _saved(path, key)
    if saved is None:
        statistics = (shown.mean, shown.std) if settings.weights_input == "physical" else None
        if statistics and drawn:
            raise UsageError("encoder.weights_input=physical: the encoder sees bands drawn anew for each sample; legal: zscore")
        return load_public(encoder, path, None if drawn else bands, channels=settings.weights_bands, statistics=statistics)
    if settings.weights_bands or settings.weights_input != "zscore":
        raise UsageError(f"encoder.weights_bands, encoder.weights_input: {path} has a contract that says what it was shown; legal: neither")
    _check(saved.contract, shown, path)
    _copy(encoder, saved, path)
    return f"weights of the run {path}, shown {', '.join(bands)}{_differences(saved.contract, shown)}"


class Saved(NamedTuple):
    """An encoder of ours on disk."""

    recipe: dict[str, Any]  # its name and the settings of its shape
    state: dict[str, Tensor]
    contract: Contract


def _saved(path: Path, key: str) -> Saved | None:
    """The encoder that a run, or an export, holds for the input `key`, or the only one it holds; None for a file without a contract."""
    file = path / "encoder.safetensors" if path.is_dir() else path
    if file.suffix == ".safetensors" and file.is_file() and (card := _card(file)) is not None:
        made = card["encoder"]
        settings = plugin.configure("dsengine.encoders", made["name"], made["settings"])  # one that the writer did not know yet has its default
        return Saved({"name": made["name"], **shape_of(vars(settings))}, load_file(file), Contract.from_json(card["contract"]))
    if not path.is_dir():
        return None
    try:
        encoder, contract = load_encoder(path)
    except UsageError:
        encoder, contract = load_encoder(path, key)  # of several, the one for the same input
    return Saved(encoder.recipe, encoder.state_dict(), contract)


def _card(file: Path) -> dict[str, Any] | None:
    """What `dsengine export` wrote about the weights in `file`, if it wrote them."""
    try:
        with safe_open(file, framework="pt") as opened:
            return json.loads((opened.metadata() or {}).get("dsengine", "null"))
    except (SafetensorError, OSError, ValueError):
        return None  # who reads the tensors says what is wrong with them


def _check(theirs: Contract, ours: Contract, path: Path) -> None:
    for what, saved, here in (("bands", [b.name for b in theirs.bands], [b.name for b in ours.bands]), ("units", theirs.units, ours.units)):
        if list(saved) != list(here):
            raise UsageError(f"encoder.weights={path}: its encoder was shown {what} {', '.join(saved)}; this run shows {', '.join(here)}; "
                             "legal: the same, in the same order")


def _differences(theirs: Contract, ours: Contract) -> str:
    """What may differ and should be known."""
    if theirs.resolution_m == ours.resolution_m:
        return ""
    return f"; at {theirs.resolution_m:g} m a pixel, here {ours.resolution_m:g} m"


def _copy(encoder: nn.Module, saved: Saved, path: Path) -> None:
    """The saved state, where the encoder is the same one; what its tensors do not tell (heads, a max-pool) its settings do."""
    ours = {**encoder.recipe, **_shapes(encoder.state_dict())}
    theirs = {**saved.recipe, **_shapes(saved.state)}
    differ = [f"{key} {theirs.get(key)} (legal: {ours.get(key)})" for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and key not in _FREE]
    if differ:
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise UsageError(f"encoder.weights={path}: its encoder is another one: {', '.join(differ[:4])}{more}")
    encoder.load_state_dict(saved.state)


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
