"""From journal entries to the index, label vectors, statistics and root of the finished corpus, one entry after the other."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from zarr.core.buffer import Buffer

from dsengine.corpus.build.grid import assign
from dsengine.corpus.build.metadata import add_columns, corpus_store, label_attributes
from dsengine.corpus.build.shard import MAX_FAULTS, Outline
from dsengine.corpus.schema import INDEX_DTYPES
from dsengine.corpus.stats import MADE_BY, BandSums, exact, statistics


class Summary:
    """What all shards together say. Memory is that of the index columns."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        dtypes = {**outline.column_dtypes(), "nodata_fraction": INDEX_DTYPES["nodata_fraction"]}
        self.columns = {name: np.empty(outline.num_patches, _in_memory(dtype)) for name, dtype in dtypes.items()}
        vectors = [spec for spec in outline.layout.labels if spec.kind != "classmap"]
        self.labels = {spec.name: np.empty((outline.num_patches, *([len(spec.classes)] if spec.kind == "multilabel" else [])), spec.dtype)
                       for spec in vectors}
        self._sums = {spec.name: BandSums(*([0] * len(spec.bands) for _ in BandSums._fields)) for spec in outline.layout.arrays}
        self._saturated = {spec.name: [0] * len(spec.bands) for spec in outline.layout.arrays}
        self._faults: list[str] = []
        self._num_faults = 0

    def add(self, shard: int, entry: dict[str, Any]) -> None:
        """Take in the entry of one shard."""
        self.add_rows(self._outline.rows(shard), entry)

    def add_rows(self, rows: range, entry: dict[str, Any]) -> None:
        """Take in what a journal entry says, of any rows."""
        for table, found in ((self.columns, entry["columns"]), (self.labels, entry["labels"])):
            for name, column in table.items():
                column[rows.start:rows.stop] = np.asarray(found[name], column.dtype)
        for name, (*sums, saturated) in entry["sums"].items():
            self._sums[name] = self._sums[name].add(BandSums(*sums))
            self._saturated[name] = [a + b for a, b in zip(self._saturated[name], saturated, strict=True)]
        self._faults += entry["faults"][:MAX_FAULTS - len(self._faults)]
        self._num_faults += len(entry["faults"])

    def attributes(self) -> dict[str, dict[str, Any]]:
        """Statistics of each array."""
        return {spec.name: {**statistics(self._sums[spec.name], scale_factor=spec.scale_factor, add_offset=spec.add_offset),
                            **exact(self._sums[spec.name]), "saturated": self._saturated[spec.name], "stats_made_by": MADE_BY}
                for spec in self._outline.layout.arrays}

    def root(self) -> dict[str, Any]:
        """Attributes of the root: how it was made, and of damaged input the first 1000 lines in row order and how many there were."""
        faults = {"faults": self._faults, "num_faults": self._num_faults} if self._num_faults else {}
        return {"complete": True, "made_by": self._outline.made_by, "splits": self._outline.split.described(self._outline.seed), **faults}


def finished_store(outline: Outline, entries: Iterator[dict[str, Any]]) -> dict[str, Buffer]:
    """Everything in the corpus but the shards; `entries` come in the order of the shards."""
    summary = Summary(outline)
    for shard, entry in enumerate(entries):
        summary.add(shard, entry)
    return summed_store(outline, summary)


def summed_store(outline: Outline, summary: Summary) -> dict[str, Buffer]:
    """The same from a summary to which every row was added."""
    ids = {"id": np.arange(outline.num_patches, dtype=np.int64), "split": assign(summary.columns, outline.split, seed=outline.seed)}
    columns = {**summary.columns, **ids}
    content = corpus_store(outline.layout, outline.num_patches, root=summary.root(), attributes=summary.attributes())
    add_columns(content, {name: columns[name] for name in [*INDEX_DTYPES, *outline.columns]}, folder="index")
    if summary.labels:
        specs = {spec.name: spec for spec in outline.layout.labels}
        add_columns(content, summary.labels, folder="labels", attributes={name: label_attributes(specs[name]) for name in summary.labels})
    return content


def _in_memory(dtype: str) -> Any:
    """Strings of any length as numpy's variable-length ones: a fixed width would be that of the longest, four bytes a letter."""
    return np.dtypes.StringDType() if dtype == "str" else np.dtype(dtype)
