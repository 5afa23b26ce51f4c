"""Writes a corpus of series or pixels block by block, as crash-safe as `build.writer`: a build killed at any moment continues."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dsengine.corpus.build import journal
from dsengine.corpus.build.grid import COLUMN, SplitRule, assign, split_rule
from dsengine.corpus.build.metadata import add_columns, dump, label_attributes
from dsengine.corpus.build.series_block import SeriesBlock, SeriesOutline, read_columns, write_block
from dsengine.corpus.build.series_metadata import series_store
from dsengine.corpus.build.shard import on_disk
from dsengine.corpus.series_schema import SERIES_INDEX, SeriesLayout
from dsengine.corpus.series_stats import describe, merge
from dsengine.corpus.storage import Url, storage_at
from dsengine.errors import UsageError

__all__ = ["SeriesBlock", "SeriesWriter"]


class SeriesWriter:
    """Writes `num_rows` rows to `path`, a new folder or URL or one that an equal build left unfinished.

    `columns` are index columns beyond the standard ones, name -> dtype or "str". `split` is a `build.grid.SplitRule` or its name; blocks on
    the ground need lon and lat. Errors as in `build.writer.CorpusWriter`.
    """

    def __init__(self, path: str | os.PathLike[str] | Url, *, layout: SeriesLayout, num_rows: int, made_by: dict[str, Any], seed: int = 0,
                 columns: Mapping[str, str] = MappingProxyType({}), split: str | SplitRule = "block", overwrite: bool = False) -> None:
        if num_rows < 1:
            raise UsageError(f"num_rows={num_rows}: a corpus has at least 1 row")
        self.outline = SeriesOutline(layout=layout, num_rows=num_rows, made_by=made_by, seed=seed, columns=dict(columns), split=split_rule(split))
        self.storage = storage_at(path)
        self._lock = journal.claim(self.storage, self.outline.header(), overwrite=overwrite)
        self.worker_name = journal.admit(self.storage)
        self._pool = ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0))), thread_name_prefix="dsengine-encode")
        root = journal.described(self.storage)
        self._complete = bool(root.get("complete"))  # killed while it removed the journal
        self._missing = [] if self._complete else sorted(set(range(self.outline.num_blocks)) - journal.finished_shards(self.storage))
        if not root:
            content = series_store(layout, num_rows, root={"complete": False, "made_by": made_by}, attributes={})
            on_disk(self.storage.path, lambda: dump(content, self.storage))

    @property
    def missing(self) -> list[int]:
        """Blocks that are not yet on disk, ascending."""
        return list(self._missing)

    @property
    def num_written(self) -> int:
        """Rows that are on disk."""
        return self.outline.num_rows - sum(len(self.outline.rows(block)) for block in self._missing)

    def append(self, block: SeriesBlock) -> None:
        """Write the first missing block. Raises ValueError on a wrong shape, dtype or name, RunError when the disk refuses."""
        write_block(self.storage, self.outline, self._missing[0], block, spread=self.spread)
        del self._missing[0]

    def spread(self, encode: Any, chunks: Iterable[np.ndarray]) -> Iterable[bytes]:
        """Encode chunks in threads; that also keeps Blosc off the main thread, where its frames would not be reproducible."""
        return self._pool.map(encode, chunks)

    def written(self, block: int) -> None:
        """Note that a worker has written a block."""
        self._missing.remove(block)

    def finish(self) -> Path | Url:
        """Write index, labels, splits and statistics and mark the corpus complete. Returns its path."""
        if self._missing:
            raise ValueError(f"finish with {len(self._missing)} blocks missing")
        if not self._complete:
            content = self._finished_store()
            on_disk(self.storage.path, lambda: dump(content, self.storage))
        on_disk(self.storage.path / journal.JOURNAL, lambda: journal.discard(self.storage))
        self.close()
        return self.storage.path

    def close(self) -> None:
        """Let go of the place; what is written stays and the next writer continues from it."""
        self._pool.shutdown()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "SeriesWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finished_store(self) -> dict[str, Any]:
        outline = self.outline
        content = series_store(outline.layout, outline.num_rows, attributes=self._statistics(),
                               root={"complete": True, "made_by": outline.made_by, "splits": outline.split.described(outline.seed)})
        for name in [*SERIES_INDEX, *outline.columns]:
            add_columns(content, {name: self._index_column(name)}, folder="index")
        for label in outline.layout.labels:
            add_columns(content, {label.name: self._collected("label " + label.name)}, folder="labels",
                        attributes={label.name: label_attributes(label)})
        return content

    def _collected(self, name: str) -> np.ndarray:
        """One column of all blocks; their files are read once a column, so that only one column is held."""
        return np.concatenate([read_columns(self.storage, block)[name] for block in range(self.outline.num_blocks)])

    def _index_column(self, name: str) -> np.ndarray:
        if name == "id":
            return np.arange(self.outline.num_rows, dtype=np.int64)
        if name != "split":
            return self._collected(name)
        by = self.outline.split.by
        needed = {"given": ["split"], "block": ["split_lon", "split_lat"], "random": ["lon"]}.get(by, [by.removeprefix(COLUMN)])
        return assign({column: self._collected(column) for column in needed}, self.outline.split, seed=self.outline.seed)

    def _statistics(self) -> dict[str, dict[str, Any]]:
        entries = list(journal.entries(self.storage, self.outline.num_blocks))
        attributes = {}
        for spec in self.outline.layout.arrays:
            part = merge([entry[spec.sensor][0] for entry in entries], spec.dtype)
            saturated = [sum(values) for values in zip(*(entry[spec.sensor][1] for entry in entries), strict=True)]
            attributes[spec.sensor] = {**describe(part, spec.dtype, scale_factor=spec.scale_factor, add_offset=spec.add_offset),
                                       "saturated": saturated}
        return attributes
