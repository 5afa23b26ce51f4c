"""Labels of a corpus as training sees them: class numbers 0, 1, ... in the order of the class table, -1 where there is none.

A class map is cut and turned with the sample's first view. Vectors are read once; maps by zarr-python, batch by batch or, where patches are kept
in memory, once each.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine.augment.apply import Request
from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.corpus.series import read_rows
from dsengine.errors import UsageError, nearest

IGNORED = -1


class Labels(NamedTuple):
    """One label array's table."""

    kind: str  # class | multilabel | classmap
    values: tuple[int, ...]  # stored value of class 0, 1, ...: ascending, without the one that the corpus ignores


def label_tables(corpus: Corpus | SeriesCorpus) -> Mapping[str, Labels]:
    """The tables of all labels of `corpus`, by name."""
    tables = {}
    for name, array in corpus.labels.items():
        values = sorted(int(value) for value in array.attrs["classes"])
        tables[name] = Labels(array.attrs["kind"], tuple(value for value in values if value != array.attrs["ignore"]))
    return tables


class LabelReader:
    """Reads one label of `corpus` for batches of rows. keep: every class map stays in memory once it was asked for."""

    def __init__(self, corpus: Corpus | SeriesCorpus, name: str, *, keep: bool = False) -> None:
        tables = label_tables(corpus)
        if name not in tables:
            raise UsageError(f"label {name!r} is not in {corpus.path}" + (f", {nearest(name, tables)}" if tables else ", which has no labels"))
        self._kind, self._values = tables[name].kind, np.array(tables[name].values)
        self._array, self._path = corpus.labels[name], corpus.path / "labels" / name
        self._vector = None if self._kind == "classmap" else read_rows(self._array, slice(None), self._path)
        keeps = keep and self._vector is None
        self._kept = np.empty(self._array.shape, self._array.dtype) if keeps else None  # takes memory as it is written
        self._has = np.zeros(self._array.shape[0] if keeps else 0, bool)

    def read(self, ids: np.ndarray, view: Request | None) -> Tensor:
        """Of rows `ids` (B,): (B,) int64 classes; (B, K) float32 of 0 and 1 for multilabel; (B, size, size) int64 of a class map, cut like `view`.

        Raises RunError naming the array when its bytes are damaged.
        """
        if self._kind == "multilabel":
            return torch.from_numpy(self._vector[ids].astype(np.float32))
        stored = self._maps(ids) if self._vector is None else self._vector[ids]
        if self._vector is None:
            cut = [_cut(patch, view, row) for row, patch in enumerate(stored)]
            stored = np.stack(cut) if cut else np.zeros((0, view.size, view.size))
        return torch.from_numpy(self._numbers(stored.astype(np.int64)))

    def _maps(self, ids: np.ndarray) -> np.ndarray:
        if self._kept is None:
            return read_rows(self._array, ids, self._path)
        missing = np.unique(ids[~self._has[ids]])
        if len(missing):
            self._kept[missing] = read_rows(self._array, missing, self._path)
            self._has[missing] = True
        return self._kept[ids]

    def _numbers(self, stored: np.ndarray) -> np.ndarray:
        found = np.searchsorted(self._values, stored).clip(max=len(self._values) - 1)
        return np.where(self._values[found] == stored, found, IGNORED)


def _cut(patch_HW: np.ndarray, view: Request, row: int) -> np.ndarray:
    """The square of one class map that `view` shows of its patch, turned alike."""
    y, x = view.draws.offset[row]
    code = int(view.draws.code[row])
    turned = np.rot90(patch_HW[y:y + view.size, x:x + view.size], code & 3)
    return turned[:, ::-1] if code & 4 else turned
