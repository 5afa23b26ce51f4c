"""Probes of frozen, pooled features: the same way for each encoder, floors included, and on the same test samples."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dsengine.errors import UsageError
from dsengine.evaluate.book import Book, Row
from dsengine.evaluate.features import FeatureFile, features
from dsengine.evaluate.folds import Fold, groups_of, some
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.session import Session
from dsengine.evaluate.settings import Common
from dsengine.evaluate.shown import Shown, shown
from dsengine.evaluate.subjects import Subject
from dsengine.evaluate.targets import Targets


class Part(NamedTuple):
    """Features and classes of some rows."""

    x: np.ndarray  # (n, D) float32
    y: np.ndarray  # (n,) int64


class Verdict(NamedTuple):
    """What a probe says of the test rows."""

    predicted: np.ndarray  # (n,) int64
    chosen: dict[str, Any]  # what was chosen on val, with the val score
    score: np.ndarray | None = None  # (n,) of class 1, where there are two and a figure needs it


# (train, val, test features, number of classes) -> verdict
Probe = Callable[[Part, Part, np.ndarray, int], Verdict]


class Bench(NamedTuple):
    """Everything that is the same for all rows of one evaluation."""

    session: Session
    targets: Targets
    folds: list[Fold]
    setting: Common
    folder: Path  # of feature files
    progress: Progress

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """(n,) classes of some labelled rows."""
        return self.targets.classes[np.searchsorted(self.targets.rows, rows)]

    def features(self, subject: Subject, what: Shown) -> FeatureFile:
        """Of all labelled rows."""
        return features(subject, self.session.corpus, what, self.targets.rows, folder=self.folder, progress=self.progress,
                        batch_size=self.setting.batch_size, device=self.session.device)


def judge_all(book: Book, bench: Bench, probes: Mapping[str, Probe], *, protocol: dict[str, Any], bands: tuple[str, ...] | None = None,
              facts: Mapping[str, Any] = MappingProxyType({}), subjects: Sequence[Subject] | None = None) -> None:
    """A row for each subject (None: all), share of labels and probe. bands: show these alone.

    protocol: what the probes do, as far as it is the same for all. facts: what else the rows say of themselves.
    """
    for subject in bench.session.subjects if subjects is None else subjects:
        what = shown(subject, bench.session.corpus, size=bench.setting.size, bands=bands, missing="zero" if bands else bench.setting.missing)
        read = cache(lambda subject=subject, what=what: bench.features(subject, what))
        for share in bench.setting.label_fractions:
            for name, probe in probes.items():
                said = {"probe": name, "label_fraction": share, **facts}
                key = {**said, "encoder": subject.digest(), "shown": what.to_json(), "protocol": protocol, "name": subject.name}
                about = {"target": bench.targets.how, "bands": what.bands, "size": what.size, **protocol}
                book.row(key, lambda: _row(subject, bench, read(), probe, facts=said, protocol=about))


def _row(subject: Subject, bench: Bench, file: FeatureFile, probe: Probe, *, facts: dict[str, Any], protocol: dict[str, Any]) -> Row:
    truths, found, chosen = [], [], []
    num_classes = len(bench.targets.names)
    for fold in bench.folds:
        rows = some(fold.train, bench.classes(fold.train), facts["label_fraction"], seed=bench.setting.seed)
        train, val = (Part(file.of(part), bench.classes(part)) for part in (rows, fold.val))
        if len(np.unique(train.y)) < 2:
            raise UsageError(f"label={bench.targets.label}: the train part of fold {fold.name} has one class only; legal: a split with 2 or more")
        verdict = probe(train, val, file.of(fold.test), num_classes)
        truths.append(bench.classes(fold.test))
        found.append(verdict)
        chosen.append({"fold": fold.name, "train_rows": len(rows), **verdict.chosen})
    tested = np.concatenate([fold.test for fold in bench.folds])
    groups = groups_of(bench.session.corpus, tested, bench.setting.unit)
    counts = grouped(np.concatenate(truths), np.concatenate([verdict.predicted for verdict in found]), groups, num_classes)
    scored = [verdict.score for verdict in found]
    ranked = None if any(part is None for part in scored) else np.stack([np.concatenate(truths), np.concatenate(scored), groups]).astype(np.float64)
    return Row(name=subject.name, kind=subject.kind, about=subject.about, facts=facts, protocol={**protocol, "chosen": chosen},
               counts=counts, ranked=ranked)


def grouped(truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray, num_classes: int) -> np.ndarray:
    """(G, K, K) confusion matrices of equal `groups`, in their order; truth, predicted and groups (N,)."""
    _, inverse = np.unique(groups, return_inverse=True)
    counts = np.zeros((inverse.max() + 1 if len(inverse) else 0, num_classes, num_classes), np.int64)
    np.add.at(counts, (inverse, truth, predicted), 1)
    return counts
