"""The answers: a class for each patch, out of any label of a corpus."""

from typing import NamedTuple

import numpy as np

from dsengine.corpus import Corpus
from dsengine.data.labels import IGNORED, label_tables
from dsengine.errors import UsageError, nearest
from dsengine.evaluate.shown import Shown, labels, plan_of

_AT_ONCE = 256  # class maps


class Targets(NamedTuple):
    """One class a patch; rows without a label are left out."""

    label: str
    rows: np.ndarray  # (N,) int64, ascending
    classes: np.ndarray  # (N,) int64 in [0, K)
    names: tuple[str, ...]  # of the K classes
    how: str  # what stands for a patch


def chosen_label(corpus: Corpus, label: str | None, *, kinds: tuple[str, ...], task: str) -> str:
    """`label`, or the only one of a fitting kind. UsageError for none, several, an unknown one, and a kind unfit for the task."""
    tables = label_tables(corpus)
    fitting = [name for name, table in tables.items() if table.kind in kinds]
    said = ", ".join(f"{name} ({table.kind})" for name, table in tables.items()) or "no labels"
    if label is None and len(fitting) == 1:
        return fitting[0]
    if label is None:
        legal = "name one" if fitting else "none fits"
        raise UsageError(f"label: {task} takes one of kind {' or '.join(kinds)}, {corpus.path} has {said}; {legal}")
    if label not in tables:
        raise UsageError(f"label={label!r} is not in {corpus.path}, {nearest(label, tables) if tables else 'which has no labels'}")
    if label not in fitting:
        raise UsageError(f"label={label}: a {tables[label].kind} is unfit for {task}, which takes {' or '.join(kinds)}; the corpus has {said}")
    return label


def class_names(corpus: Corpus, label: str) -> tuple[str, ...]:
    """Names of classes 0, 1, ... in the order of `data.labels`."""
    table = {int(value): str(name) for value, name in corpus.labels[label].attrs["classes"].items()}
    return tuple(table[value] for value in label_tables(corpus)[label].values)


def of_patches(corpus: Corpus, label: str, *, size: int, where: str | None) -> Targets:
    """The class of each patch; of a class map the commonest in the crop that encoders are shown, pixels without a class not counted."""
    names, rows = class_names(corpus, label), corpus.rows("all", where)
    if not len(names):
        raise UsageError(f"label={label}: {corpus.path} names no class of it")
    plan = plan_of(corpus, _any_band(corpus, size), rows, batch_size=_AT_ONCE, label=label)
    found = [labels(plan, rows[lo:lo + _AT_ONCE]).numpy() for lo in range(0, len(rows), _AT_ONCE)]
    is_map = label_tables(corpus)[label].kind == "classmap"
    classes = np.concatenate([commonest(part, len(names)) if is_map else part for part in found]) if found else np.zeros(0, np.int64)
    known = classes != IGNORED
    if not known.any():
        raise UsageError(f"label={label}: no patch of {corpus.path} has one{'' if where is None else f' with {where}'}")
    return Targets(label, rows[known], classes[known], names, "commonest class of the patch" if is_map else "class of the patch")


def commonest(maps: np.ndarray, num_classes: int) -> np.ndarray:
    """(B,) int64: the class that most pixels of each map (B, H, W) have, the lower of equals; -1 where none has any."""
    counts = np.stack([(maps == c).sum((1, 2)) for c in range(num_classes)], axis=1)
    return np.where(counts.any(1), counts.argmax(1), IGNORED)


def _any_band(corpus: Corpus, size: int) -> Shown:
    return Shown(bands=(corpus.bands[0].name,), places=(0,), channels=1, mean=(0.0,), std=(1.0,), size=size)
