"""Weights that a run begins with: `encoder.weights` names a file of public ones, or the folder of another run.

Of another run the saved contract is compared with the corpus: the encoder must have been shown the same bands, in the same order and units.
"""

from pathlib import Path

from torch import nn

from dsengine.corpus.schema import Contract
from dsengine.encoders import Start
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
    if not path.is_dir():
        statistics = (shown.mean, shown.std) if settings.weights_input == "physical" else None
        if statistics and drawn:
            raise UsageError("encoder.weights_input=physical: the encoder sees bands drawn anew for each sample; legal: zscore")
        return load_public(encoder, path, None if drawn else bands, channels=settings.weights_bands, statistics=statistics)
    if settings.weights_bands:
        raise UsageError(f"encoder.weights_bands={list(settings.weights_bands)}: {path} is a run, which knows its bands; legal: none")
    try:
        theirs, contract = load_encoder(path)
    except UsageError:
        theirs, contract = load_encoder(path, key)  # of several, the one for the same input
    _check(contract, shown, path)
    _copy(encoder, theirs, path)
    return f"weights of the run {path}, shown {', '.join(bands)}{_differences(contract, shown)}"


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


def _copy(encoder: nn.Module, theirs: nn.Module, path: Path) -> None:
    """The saved encoder's state, where it is the same one; what its shape does not tell (heads, a max-pool) its settings do."""
    ours, saved = ({**e.recipe, **{key: tuple(value.shape) for key, value in e.state_dict().items()}} for e in (encoder, theirs))
    differ = [f"{key} {saved.get(key)} (legal: {ours.get(key)})" for key in {**ours, **saved} if ours.get(key) != saved.get(key) and key not in _FREE]
    if differ:
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise UsageError(f"encoder.weights={path}: its encoder is another one: {', '.join(differ[:4])}{more}")
    encoder.load_state_dict(theirs.state_dict())
