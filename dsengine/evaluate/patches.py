"""Is there one in this patch? The first paper's coal mines: patches with and without a thing, ROC-AUC, from points, polygons or a label.

Frozen, pooled features and a logistic regression, its strength chosen by the val ROC-AUC, classes weighed alike because patches with a mine
are few. The paper takes the largest cell of the map and one sigmoid unit, trained for 5 epochs at 1e-5, and gives no figures.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dsengine.corpus import Corpus
from dsengine.errors import RunError, UsageError
from dsengine.evaluate import figures, linear, tables
from dsengine.evaluate.book import Book, digest
from dsengine.evaluate.folds import make_folds
from dsengine.evaluate.probes import Bench, judge_all
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.session import features_folder, header, open_session
from dsengine.evaluate.settings import Common, at_least
from dsengine.evaluate.subjects import FLOORS
from dsengine.evaluate.targets import Targets, chosen_label, of_patches

_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Setting(Common):
    """`evaluate patches`."""

    strengths: tuple[float, ...] = linear.STRENGTHS
    max_iter: int = 500
    class_weight: Literal["none", "balanced"] = "balanced"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "max_iter", 1)
        if not self.strengths or min(self.strengths) <= 0:
            raise UsageError(f"strengths={list(self.strengths)}: legal: numbers above 0")


def evaluate(runs: list[str], corpus: str | os.PathLike[str], out: str | os.PathLike[str], setting: Setting = Setting(), *, things: str | None = None,
             features: str | os.PathLike[str] | None = None, encoder: str = "resnet18", quiet: bool = False) -> Path:
    """Judge `runs`; returns OUT/results.json. Raises UsageError and RunError as its parts do.

    things: where the things lie, KIND:PATH[,option=value...] as `corpus build --label` takes it, such as points:mines.csv, or
    vector:mines.gpkg,column=kind; None: the corpus's own label of two classes, the second of which is the thing.
    """
    session = open_session(runs, corpus, setting, floors=FLOORS, encoder=encoder)
    targets = _labelled(session.corpus, setting) if things is None else _drawn(session.corpus, things, setting)
    folds = make_folds(session.corpus, targets.rows, split=setting.split, fractions=setting.fractions, seed=setting.seed)
    found = {"things": things, "patches_with": int(targets.classes.sum()), "drawn": digest({"classes": targets.classes.tolist()})}
    book = Book(out, evaluation="patches", header={**header(session, setting, targets.label, folds), **found}, names=targets.names, figure="roc_auc",
                num_draws=setting.num_draws, seed=setting.seed)
    with Progress(quiet=quiet) as progress:
        bench = Bench(session, targets, folds, setting, features_folder(book.out, features), progress)
        fit = partial(linear.fit, strengths=setting.strengths, max_iter=setting.max_iter, class_weight=setting.class_weight, figure="roc_auc")
        judge_all(book, bench, {"linear": fit}, protocol={
            "probe": "logistic regression, L-BFGS", "features": "pooled, frozen, standardised", "chosen_by": "val ROC-AUC",
            "strengths": setting.strengths, "class_weight": setting.class_weight})
    figures.draw(book, sweep="strength", sweep_label="C, inverse strength of the penalty", sweep_figure="roc_auc")
    return book.finish(tables.markdown(book, figures=("roc_auc", "f1_macro", "accuracy")))


def _labelled(corpus: Corpus, setting: Setting) -> Targets:
    label = chosen_label(corpus, setting.label, kinds=("class",), task="patches")
    found = of_patches(corpus, label, size=setting.size or corpus.patch_size, where=setting.where)
    if len(found.names) != 2:
        raise UsageError(f"label={label}: {len(found.names)} classes ({', '.join(found.names)}); legal for patches: a label of two, "
                         "or things=KIND:PATH")
    return found


def _drawn(corpus: Corpus, things: str, setting: Setting) -> Targets:
    """Which patches hold a thing: a point inside, or a pixel of a shape."""
    from dsengine.corpus.build.labelling import LabelBlock, make_labeller, parse

    requests, others = parse([f"things={things}"])
    if others or requests[0].kind not in ("points", "vector"):
        raise UsageError(f"things={things}: legal: points:FILE or vector:FILE, with options as `corpus build --label` takes them")
    labeller = make_labeller(requests[0])
    rows = corpus.rows("all", setting.where)
    step = LabelBlock((labeller,), corpus.patch_size, corpus.resolution_m)
    parts = [_values(step, corpus, rows[lo:lo + _AT_ONCE]) for lo in range(0, len(rows), _AT_ONCE)]
    values = np.concatenate(parts) if parts else np.zeros(0)
    if labeller.spec.kind == "classmap":
        values = ((values != labeller.spec.ignore) & (values != 0)).any((1, 2))
    classes = (values.reshape(len(rows), -1) > 0).any(1).astype(np.int64)
    if classes.all() or not classes.any():
        raise UsageError(f"things={things}: {'every' if len(classes) and classes.all() else 'no'} patch of {corpus.path} holds one; "
                         "legal: a file with some inside and some outside of the patches")
    return Targets("things", rows, classes, ("without", "with"), "a point inside" if requests[0].kind == "points" else "a pixel of a shape")


def _values(step: "object", corpus: Corpus, rows: np.ndarray) -> Sequence[np.ndarray]:
    from dsengine.corpus.build.writer import Block

    index = {name: getattr(corpus.index, name)[rows] for name in ("lon", "lat", "epsg", "x", "y")}
    try:
        return step(Block(arrays={}, index=index)).labels["things"]
    except RunError as error:
        raise UsageError(f"things: {error}") from error
