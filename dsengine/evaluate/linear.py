"""The linear probe: multinomial logistic regression on frozen features by L-BFGS, its strength chosen on val.

Features are standardised with the train part's mean and deviation. C is swept over `strengths`, each start where the last ended; the one
with the best val accuracy is taken, of equals the smallest, and fitted on train alone. scikit-learn does the fitting.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dsengine.errors import UsageError
from dsengine.evaluate import figures, tables
from dsengine.evaluate.book import Book
from dsengine.evaluate.folds import make_folds
from dsengine.evaluate.metrics import roc_auc
from dsengine.evaluate.probes import Bench, Part, Verdict, judge_all
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.session import features_folder, header, open_session
from dsengine.evaluate.settings import Common, at_least
from dsengine.evaluate.subjects import FLOORS
from dsengine.evaluate.targets import chosen_label, of_patches

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

KINDS = ("class", "classmap")
STRENGTHS = tuple(10.0**k for k in range(-5, 4))


@dataclass(frozen=True, kw_only=True)
class Setting(Common):
    """`evaluate linear`."""

    strengths: tuple[float, ...] = STRENGTHS  # of C, the inverse of the penalty
    max_iter: int = 500  # of L-BFGS
    class_weight: Literal["none", "balanced"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "max_iter", 1)
        if not self.strengths or min(self.strengths) <= 0:
            raise UsageError(f"strengths={list(self.strengths)}: legal: numbers above 0")


def evaluate(runs: list[str], corpus: str | os.PathLike[str], out: str | os.PathLike[str], setting: Setting = Setting(), *,
             features: str | os.PathLike[str] | None = None, encoder: str = "resnet18", quiet: bool = False) -> Path:
    """Probe `runs` on a label of `corpus`; returns OUT/results.json. Raises UsageError and RunError as its parts do."""
    session = open_session(runs, corpus, setting, floors=FLOORS, encoder=encoder)
    label = chosen_label(session.corpus, setting.label, kinds=KINDS, task="linear")
    targets = of_patches(session.corpus, label, size=setting.size or session.corpus.patch_size, where=setting.where)
    folds = make_folds(session.corpus, targets.rows, split=setting.split, fractions=setting.fractions, seed=setting.seed)
    book = Book(out, evaluation="linear", header=header(session, setting, label, folds), names=targets.names, figure="accuracy",
                num_draws=setting.num_draws, seed=setting.seed)
    with Progress(quiet=quiet) as progress:
        bench = Bench(session, targets, folds, setting, features_folder(book.out, features), progress)
        judge_all(book, bench, {"linear": lambda *parts: fit(*parts, strengths=setting.strengths, max_iter=setting.max_iter,
                                                            class_weight=setting.class_weight)}, protocol={
            "probe": "multinomial logistic regression, L-BFGS", "features": "pooled, frozen, standardised", "chosen_by": "val accuracy",
            "strengths": setting.strengths, "max_iter": setting.max_iter, "class_weight": setting.class_weight})
    figures.draw(book, sweep="strength", sweep_label="C, inverse strength of the penalty")
    return book.finish(tables.markdown(book, figures=("accuracy", "f1_weighted", "f1_macro", "roc_auc")))


def fit(train: Part, val: Part, test_x: np.ndarray, num_classes: int, *, strengths: tuple[float, ...] = STRENGTHS, max_iter: int = 500,
        class_weight: str = "none", figure: str = "accuracy") -> Verdict:
    """The verdict of the C with the best val `figure`: accuracy, or roc_auc of class 1 of two."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scaled = standardised(train.x, val.x, test_x)
    model = LogisticRegression(max_iter=max_iter, warm_start=True, class_weight=None if class_weight == "none" else class_weight)
    best, curve = None, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `iterations` below
        for strength in sorted(strengths):
            model.set_params(C=strength).fit(scaled[0], train.y)
            reached = _reached(model, scaled[1], val.y, figure)
            curve[f"{strength:g}"] = reached
            if best is None or reached > best.chosen[f"val_{figure}"]:
                chosen = {"strength": strength, f"val_{figure}": reached, "iterations": int(np.max(model.n_iter_))}
                best = Verdict(model.predict(scaled[2]), chosen, model.decision_function(scaled[2]) if num_classes == 2 else None)
    return best._replace(chosen={**best.chosen, "val_by_strength": curve})


def _reached(model: "LogisticRegression", x: np.ndarray, y: np.ndarray, figure: str) -> float:
    """On val; 0 for the ROC-AUC of one class only."""
    if figure == "roc_auc":
        return float(np.nan_to_num(roc_auc(y, model.decision_function(x))))
    return float((model.predict(x) == y).mean())


def standardised(train_x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All of them less the train part's mean, over its deviation; float64. A feature that does not vary stays 0."""
    mean, std = train_x.mean(0, dtype=np.float64), train_x.std(0, dtype=np.float64)
    return [(x - mean) / np.where(std > 1e-12, std, 1.0) for x in (train_x, *others)]
