"""The results of one evaluation: a row a judged encoder, kept as soon as it is known, so that a stopped evaluation continues.

OUT/results.json, OUT/table.md, OUT/figures/, and OUT/rows/KEY.npz, one a finished row; KEY is a hash of all that decides the row.
"""

import hashlib
import json
import os
import platform
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dsengine
from dsengine.errors import RunError, UsageError
from dsengine.evaluate import metrics
from dsengine.evaluate.bootstrap import Interval, of_counts, of_scores

FIGURES = {"iou_weighted": "weighted mean IoU", "miou": "mean IoU", "f1_weighted": "weighted F1", "f1_macro": "macro F1", "accuracy": "accuracy",
           "roc_auc": "ROC-AUC"}
# Settings that decide which rows there are, how fast they come or how they are told, but no row.
_FREE = {"num_draws", "floors", "label_fractions", "device", "batch_size", "bands", "probes"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one encoder reached under one protocol."""

    name: str
    kind: str  # pretrained | untrained | floor
    about: dict[str, Any]
    facts: dict[str, Any]  # what tells rows of one encoder apart: probe, band, label_fraction
    protocol: dict[str, Any]
    counts: np.ndarray  # (G, K, K) confusion of each group of test samples, truth by prediction
    ranked: np.ndarray | None = None  # (3, N) truth, score of class 1 and group of each sample, where there are two classes

    def value(self, figure: str) -> float:
        """One figure over the whole test set."""
        return metrics.roc_auc(*self.ranked[:2]) if figure == "roc_auc" else float(metrics.scores(self.counts.sum(0))[figure])

    @property
    def figures(self) -> list[str]:
        """What it has."""
        return [*metrics.scores(self.counts[:1]), *(["roc_auc"] if self.ranked is not None else [])]


class Book:
    """Where rows go. UsageError when `out` cannot be written or holds another evaluation."""

    def __init__(self, out: str | Path, *, evaluation: str, header: dict[str, Any], names: tuple[str, ...], figure: str, num_draws: int,
                 seed: int) -> None:
        self.out, self.names, self.figure, self.evaluation, self.num_draws = Path(out), names, figure, evaluation, num_draws
        self.class_figure = "iou" if figure == "iou_weighted" else "f1"
        self.rows: list[Row] = []
        self.header = {"evaluation": evaluation, **header, "classes": list(names), "versions": versions()}
        setting = {key: value for key, value in header["setting"].items() if key not in _FREE}
        self._fixed = {**self.header, "setting": setting}
        self._draws = {"num_draws": num_draws, "seed": seed}
        self._known: dict[int, list[Interval]] = {}  # by id of a row, which the book keeps
        try:
            old = self.out / "results.json"
            if old.exists() and (was := json.loads(old.read_text()).get("evaluation")) != evaluation:
                raise UsageError(f"out={out}: holds the evaluation {was}; give a folder of its own")
            for folder in (self.out / "rows", self.out / "figures"):
                folder.mkdir(parents=True, exist_ok=True)
        except (OSError, json.JSONDecodeError, AttributeError) as error:
            raise UsageError(f"out={out}: cannot be used ({error})") from error

    def row(self, key: dict[str, Any], make: Callable[[], Row]) -> Row:
        """The row of `key`: as it was kept, or made now and kept."""
        path = self.out / "rows" / f"{digest({**key, 'header': self._fixed})[:24]}.npz"
        row = _load(path) if path.exists() else make()
        if not path.exists():
            _save(row, path)
        self.rows.append(row)
        return row

    def finish(self, tables: str) -> Path:
        """Write results.json and table.md; returns the former."""
        document = {**self.header, "figure": self.figure, "rows": [self._described(row) for row in self.rows]}
        _replace(self.out / "table.md", tables.encode())
        _replace(self.out / "results.json", json.dumps(document, indent=1, allow_nan=False).encode())
        return self.out / "results.json"

    def interval(self, row: Row, figure: str) -> Interval:
        """A figure of a row with its interval."""
        if figure == "roc_auc":
            return of_scores(*row.ranked, **self._draws)
        return self._intervals(row)[row.figures.index(figure)]

    def class_intervals(self, row: Row) -> list[Interval]:
        """The `class_figure` of each class."""
        return self._intervals(row)[-len(self.names):]

    def difference(self, row: Row, other: Row, figure: str) -> Interval | None:
        """`row` minus `other` with its paired interval; None where they were not judged on the same samples."""
        if row.counts.shape != other.counts.shape or (row.counts.sum(2) != other.counts.sum(2)).any():
            return None
        if figure == "roc_auc":
            return of_scores(*row.ranked, minus=other.ranked[1], **self._draws)
        gap = lambda counts: np.diff(metrics.scores(counts)[figure][..., ::-1], axis=-1)  # noqa: E731
        return of_counts(np.stack([row.counts, other.counts], axis=1), gap, **self._draws)[0]

    def _intervals(self, row: Row) -> list[Interval]:
        """Of all `metrics.scores`, then of each class."""
        if id(row) not in self._known:
            self._known[id(row)] = of_counts(row.counts, self._figures, **self._draws)
        return self._known[id(row)]

    def _figures(self, counts: np.ndarray) -> np.ndarray:
        return np.concatenate([np.stack(list(metrics.scores(counts).values()), -1), getattr(metrics.per_class(counts), self.class_figure)], -1)

    def best_floor(self, row: Row) -> Row | None:
        """The strongest floor with the facts of `row`."""
        rivals = [other for other in self.rows if other.kind != "pretrained" and other.facts == row.facts and other is not row]
        return max(rivals, key=lambda other: np.nan_to_num(other.value(self.figure), nan=-1.0), default=None)

    def _described(self, row: Row) -> dict[str, Any]:
        found = metrics.per_class(row.counts.sum(0))
        classes = {name: {"iou": _number(found.iou[c]), "f1": _number(found.f1[c]), "support": int(found.support[c]),
                          f"{self.class_figure}_interval": interval.to_json()}
                   for c, (name, interval) in enumerate(zip(self.names, self.class_intervals(row)))}
        figures = {figure: self.interval(row, figure).to_json() for figure in row.figures}
        described = {"name": row.name, "kind": row.kind, **row.facts, "figures": figures, "num_groups": len(row.counts), "classes": classes,
                     "confusion": row.counts.sum(0).astype(int).tolist(), "protocol": row.protocol, "about": row.about}
        if row.kind == "pretrained" and (floor := self.best_floor(row)) and (gap := self.difference(row, floor, self.figure)):
            described["over_best_floor"] = {"floor": floor.name, "figure": self.figure, **gap.to_json()}
        return described


def digest(key: dict[str, Any]) -> str:
    """sha256 of a JSON object."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    import sklearn
    import torch

    return {"dsengine": dsengine.__version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "scikit-learn": sklearn.__version__}


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _save(row: Row, path: Path) -> None:
    described = {key: value for key, value in vars(row).items() if key not in ("counts", "ranked")}
    part = path.with_suffix(".part.npz")
    ranked = {} if row.ranked is None else {"ranked": row.ranked}
    np.savez_compressed(part, counts=row.counts, row=json.dumps(described), **ranked)
    os.replace(part, path)


def _load(path: Path) -> Row:
    try:
        with np.load(path) as stored:
            return Row(**json.loads(str(stored["row"])), counts=stored["counts"], ranked=stored["ranked"] if "ranked" in stored else None)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: not readable ({error}); remove it and its row is made again") from error


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
