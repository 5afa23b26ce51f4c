"""The nearest-neighbour probe: the classes of the k train patches with the highest cosine decide; k is chosen on val.

One pass over the train features for all k: each block of rows is compared with the whole bank once, and votes are counted from the nearest
outwards. `vote=uniform` counts heads, of equals the lower class; `vote=similarity` weighs each by exp(cosine / temperature), as Wu et al.,
"Unsupervised feature learning via non-parametric instance discrimination" (CVPR 2018), with temperature 0.07.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dsengine.errors import UsageError
from dsengine.evaluate import figures, tables
from dsengine.evaluate.book import Book
from dsengine.evaluate.folds import make_folds
from dsengine.evaluate.probes import Bench, Part, Verdict, judge_all
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.session import features_folder, header, open_session
from dsengine.evaluate.settings import Common
from dsengine.evaluate.subjects import FLOORS
from dsengine.evaluate.targets import chosen_label, of_patches

KINDS = ("class", "classmap")
_ROWS = 256  # compared with the bank at once: with 100,000 rows 100 MB of cosines, and twice that of places


@dataclass(frozen=True, kw_only=True)
class Setting(Common):
    """`evaluate knn`."""

    k: tuple[int, ...] = (1, 5, 10, 20, 50)
    vote: Literal["uniform", "similarity"] = "uniform"
    temperature: float = 0.07  # of vote=similarity

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise UsageError(f"k={list(self.k)}: legal: whole numbers of 1 or more")
        if not self.temperature > 0:
            raise UsageError(f"temperature={self.temperature}: must be above 0")


def evaluate(runs: list[str], corpus: str | os.PathLike[str], out: str | os.PathLike[str], setting: Setting = Setting(), *,
             features: str | os.PathLike[str] | None = None, encoder: str = "resnet18", quiet: bool = False) -> Path:
    """Probe `runs` on a label of `corpus`; returns OUT/results.json. Raises UsageError and RunError as its parts do."""
    session = open_session(runs, corpus, setting, floors=FLOORS, encoder=encoder)
    label = chosen_label(session.corpus, setting.label, kinds=KINDS, task="knn")
    targets = of_patches(session.corpus, label, size=setting.size or session.corpus.patch_size, where=setting.where)
    folds = make_folds(session.corpus, targets.rows, split=setting.split, fractions=setting.fractions, seed=setting.seed)
    book = Book(out, evaluation="knn", header=header(session, setting, label, folds), names=targets.names, figure="accuracy",
                num_draws=setting.num_draws, seed=setting.seed)
    with Progress(quiet=quiet) as progress:
        bench = Bench(session, targets, folds, setting, features_folder(book.out, features), progress)
        judge_all(book, bench, {"knn": lambda *parts: vote(*parts, setting=setting)}, protocol={
            "probe": "nearest neighbours by cosine", "features": "pooled, frozen, as they are", "chosen_by": "val accuracy", "k": setting.k,
            "vote": setting.vote, "temperature": setting.temperature if setting.vote == "similarity" else None})
    figures.draw(book, sweep="k", sweep_label="k, neighbours that vote")
    return book.finish(tables.markdown(book, figures=("accuracy", "f1_weighted", "f1_macro", "roc_auc")))


def vote(train: Part, val: Part, test_x: np.ndarray, num_classes: int, *, setting: Setting) -> Verdict:
    """The verdict of the best k; a k above the number of train rows has all of them vote."""
    counts = sorted({min(k, len(train.y)) for k in setting.k})
    temperature = None if setting.vote == "uniform" else setting.temperature
    on_val = predictions(train, val.x, counts, num_classes, temperature=temperature)
    accuracy = [float((predicted == val.y).mean()) for predicted in on_val]
    best = int(np.argmax(accuracy))
    on_test = predictions(train, test_x, counts[best:best + 1], num_classes, temperature=temperature)
    curve = {str(k): value for k, value in zip(counts, accuracy)}
    return Verdict(on_test[0], {"k": counts[best], "val_accuracy": accuracy[best], "val_by_k": curve})


def predictions(train: Part, x: np.ndarray, counts: list[int], num_classes: int, *, temperature: float | None = None) -> np.ndarray:
    """(len(counts), n) classes of x (n, D) by so many nearest rows of `train`, ascending counts; temperature None: each has one vote."""
    bank = _unit(train.x)
    found = np.zeros((len(counts), len(x)), np.int64)
    for lo in range(0, len(x), _ROWS):
        cosine = _unit(x[lo:lo + _ROWS]) @ bank.T
        near = _nearest(cosine, counts[-1])
        heads = np.eye(num_classes)[train.y[near]]  # (n, k, K)
        if temperature is not None:
            heads *= np.exp(np.take_along_axis(cosine, near, axis=1).astype(np.float64) / temperature)[:, :, None]
        votes = heads.cumsum(1)
        found[:, lo:lo + _ROWS] = [votes[:, k - 1].argmax(1) for k in counts]
    return found


def _nearest(cosine: np.ndarray, k: int) -> np.ndarray:
    """(n, k) columns of the k largest of each row, largest first, of equals the lower column (but any of those equal to the k-th)."""
    near = np.sort(np.argpartition(-cosine, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(cosine, near, axis=1), axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.where(length > 0, length, 1.0)).astype(np.float32)
