"""Writes a corpus of series or pixels block by block, as crash-safe as `build.writer`: a build killed at any moment continues.

A block is one shard of every array; its journal entry with index columns, labels and sums follows when all its files are there.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build import journal
from dsengine.corpus.build.grid import SplitRule, assign, split_rule
from dsengine.corpus.build.metadata import add_columns, dump, label_attributes
from dsengine.corpus.build.series_metadata import series_store
from dsengine.corpus.build.shard import on_disk
from dsengine.corpus.schema import NODATA, UNKNOWN_TIME, VERSION
from dsengine.corpus.series_schema import SERIES_INDEX, SeriesLayout, SeriesSpec
from dsengine.corpus.series_stats import block_part, describe, merge
from dsengine.corpus.shards import encoder, shard_bytes
from dsengine.corpus.storage import Url, storage_at
from dsengine.errors import UsageError

_PLACE = {"split_lon": "float64", "split_lat": "float64"}


class SeriesBlock(NamedTuple):
    """Consecutive rows, as many as `SeriesWriter.next_count` says."""

    arrays: Mapping[str, np.ndarray]  # sensor -> (n, T, C) or (n, C) as stored, nodata -32768
    index: Mapping[str, Any]  # lon, lat (degrees, NaN unknown), the plan's own columns; optional: quarantine, split_lon, split_lat, split
    labels: Mapping[str, np.ndarray] = {}  # name -> (n,) or (n, K)
    time: Mapping[str, np.ndarray] = {}  # sensor -> (n, T) int64 ns UTC, where the rows do not share their times
    valid: Mapping[str, np.ndarray] = {}  # sensor -> (n, T) bool, and'ed with "some band has data"; absent: all
    saturated: Mapping[str, Sequence[int]] = {}  # sensor -> values per band that did not fit


class SeriesWriter:
    """Writes `num_rows` rows in order to `path`, a new folder or URL or one that an equal build left unfinished.

    `columns` are index columns beyond the standard ones, name -> dtype or "str". `split` is a `build.grid.SplitRule` or its name; blocks on
    the ground need lon and lat. Errors as in `build.writer.CorpusWriter`.
    """

    def __init__(self, path: str | os.PathLike[str] | Url, *, layout: SeriesLayout, num_rows: int, made_by: dict[str, Any], seed: int = 0,
                 columns: Mapping[str, str] = MappingProxyType({}), split: str | SplitRule = "block", overwrite: bool = False) -> None:
        if num_rows < 1:
            raise UsageError(f"num_rows={num_rows}: a corpus has at least 1 row")
        self.layout, self.num_rows, self.made_by = layout, num_rows, made_by
        self.columns, self.split, self.seed = dict(columns), split_rule(split), seed
        self.storage = storage_at(path)
        self._lock = journal.claim(self.storage, self._header(), overwrite=overwrite)
        self._pool = ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0))), thread_name_prefix="dsengine-encode")
        root = journal.described(self.storage)
        self._complete = bool(root.get("complete"))  # killed while it removed the journal
        self._next = -(-num_rows // layout.rows_a_block()) if self._complete else 0
        while not self._complete and self.storage.exists(_entry(self._next)):
            self._next += 1
        if not root:
            content = series_store(layout, num_rows, root={"complete": False, "made_by": made_by}, attributes={})
            on_disk(self.storage.path, lambda: dump(content, self.storage))

    @property
    def next_row(self) -> int:
        """First row that is not yet on disk; `num_rows` when all are."""
        return min(self._next * self.layout.rows_a_block(), self.num_rows)

    @property
    def next_count(self) -> int:
        """Rows that the next block must hold."""
        return min(self.layout.rows_a_block(), self.num_rows - self.next_row)

    def append(self, block: SeriesBlock) -> None:
        """Write one block. Raises ValueError on a wrong shape, dtype or name, RunError when the disk refuses."""
        columns, sums = self._columns(block), {}
        missing, samples = np.zeros(self.next_count), 0
        for spec in self.layout.arrays:
            x = _checked(block.arrays[spec.sensor], spec.sensor, (self.next_count, *spec.row_shape), spec.dtype)
            sums[spec.sensor] = [block_part(x), [int(v) for v in block.saturated.get(spec.sensor, [0] * len(spec.bands))]]
            missing += (x == NODATA).reshape(len(x), -1).sum(axis=1)
            samples += x[0].size
            self._write_values(spec, x)
            if spec.steps:
                self._write_steps(spec, block, x)
        columns["nodata_fraction"] = (missing / samples).astype(np.float32)
        for label in self.layout.labels:
            shape = (self.next_count,) if label.kind == "class" else (self.next_count, len(label.classes))
            columns["label " + label.name] = _checked(block.labels[label.name], f"label {label.name}", shape, label.dtype)
        self._commit(sums, columns)

    def finish(self) -> Path | Url:
        """Write index, labels, splits and statistics and mark the corpus complete. Returns its path."""
        if self.next_row != self.num_rows:
            raise ValueError(f"finish at row {self.next_row} of {self.num_rows}")
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

    def _header(self) -> dict[str, Any]:
        header = {"version": VERSION, "kind": self.layout.kind, "num_rows": self.num_rows, "seed": self.seed, "made_by": self.made_by,
                  "layout": asdict(self.layout), "columns": self.columns, "split": asdict(self.split)}
        return json.loads(json.dumps(header))

    def _columns(self, block: SeriesBlock) -> dict[str, np.ndarray]:
        index = {"quarantine": 0, **block.index}
        index.setdefault("split_lon", index.get("lon"))
        index.setdefault("split_lat", index.get("lat"))
        if self.split.by != "given":
            index.pop("split", None)  # the source's own, which another rule was asked to replace
        dtypes = {**{name: SERIES_INDEX[name] for name in ("lon", "lat", "quarantine")}, **_PLACE, **self.columns,
                  **({"split": SERIES_INDEX["split"]} if self.split.by == "given" else {})}
        if self.split.by != "given":
            index.pop("split", None)  # the source's own split gave way to another
        if self.split.by == "block" and not (np.isfinite(index["split_lon"]).all() and np.isfinite(index["split_lat"]).all()):
            raise UsageError("--split block: the rows of this source have no place; legal: random, column:NAME, or none")
        if index.keys() != dtypes.keys():
            raise ValueError(f"index columns {sorted(index.keys() ^ dtypes.keys())} are missing or not legal: {', '.join(sorted(dtypes))}")
        return {name: np.broadcast_to(np.asarray(index[name], dtype=dtype), (self.next_count,)) for name, dtype in dtypes.items()}

    def _write_values(self, spec: SeriesSpec, x: np.ndarray) -> None:
        rows = self.layout.rows_a_chunk(spec)
        num_chunks = -(-len(x) // rows)
        padded = _padded(x, num_chunks * rows, NODATA).reshape(num_chunks, rows, *x.shape[1:])
        # The pool also keeps Blosc off the main thread, where its frames would not be reproducible.
        chunks = list(self._pool.map(encoder(self.layout.codec, x.dtype.itemsize), padded))
        self._write(self.layout.array(spec), x.ndim, shard_bytes(chunks, self.layout.rows_a_block() // rows))

    def _write_steps(self, spec: SeriesSpec, block: SeriesBlock, x: np.ndarray) -> None:
        shape, rows = (self.next_count, spec.steps), self.layout.rows_a_block()
        valid = (x != NODATA).any(axis=2)
        if spec.sensor in block.valid:
            valid &= _checked(block.valid[spec.sensor], f"valid {spec.sensor}", shape, "bool")
        encode = encoder("zstd", 1)
        self._write(f"valid/{spec.sensor}", 2, shard_bytes([encode(_padded(valid, rows, False))], 1))
        if not spec.time:
            time = _checked(block.time[spec.sensor], f"time {spec.sensor}", shape, "int64")
            self._write(f"time/{spec.sensor}", 2, shard_bytes([encode(_padded(time, rows, UNKNOWN_TIME))], 1))

    def _write(self, array: str, ndim: int, parts: Sequence[bytes]) -> None:
        key = "/".join((array, "c", str(self._next), *["0"] * (ndim - 1)))
        on_disk(self.storage.path / key, lambda: self.storage.put(key, parts))

    def _commit(self, sums: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        buffer, key = io.BytesIO(), _entry(self._next)
        np.savez(buffer, sums=json.dumps(sums), **columns)
        on_disk(self.storage.path / key, lambda: self.storage.put(key, [buffer.getvalue()]))
        self._next += 1

    def _collected(self, name: str) -> np.ndarray:
        """One member of every entry; entries are read once a column, so that only one column is held."""
        parts = []
        for block in range(self._next):
            with np.load(io.BytesIO(self.storage.get(_entry(block)))) as entry:
                parts.append(entry[name])
        return np.concatenate([np.atleast_1d(part) for part in parts])

    def _finished_store(self) -> dict[str, Any]:
        content = series_store(self.layout, self.num_rows, attributes=self._statistics(),
                               root={"complete": True, "made_by": self.made_by, "splits": self.split.described(self.seed)})
        for name in [*SERIES_INDEX, *self.columns]:
            add_columns(content, {name: self._index_column(name)}, folder="index")
        for label in self.layout.labels:
            add_columns(content, {label.name: self._collected("label " + label.name)}, folder="labels",
                        attributes={label.name: label_attributes(label)})
        return content

    def _index_column(self, name: str) -> np.ndarray:
        if name == "id":
            return np.arange(self.num_rows, dtype=np.int64)
        if name != "split":
            return self._collected(name)
        needed = {"given": ["split"], "block": ["split_lon", "split_lat"], "random": ["lon"]}.get(self.split.by, [self.split.by.partition(":")[2]])
        return assign({column: self._collected(column) for column in needed}, self.split, seed=self.seed)

    def _statistics(self) -> dict[str, dict[str, Any]]:
        entries = [json.loads(entry) for entry in self._collected("sums").tolist()]
        attributes = {}
        for spec in self.layout.arrays:
            part = merge([entry[spec.sensor][0] for entry in entries], spec.dtype)
            saturated = [sum(values) for values in zip(*(entry[spec.sensor][1] for entry in entries), strict=True)]
            attributes[spec.sensor] = {**describe(part, spec.dtype, scale_factor=spec.scale_factor, add_offset=spec.add_offset),
                                       "saturated": saturated}
        return attributes


def _entry(block: int) -> str:
    return f"{journal.JOURNAL}/{block:08d}.npz"


def _checked(x: np.ndarray, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if x.shape != shape or x.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: expected {shape} {dtype}, got {x.shape} {x.dtype}")
    return np.ascontiguousarray(x)


def _padded(x: np.ndarray, rows: int, fill: Any) -> np.ndarray:
    """`x` with rows of `fill` added: chunks at the end of a Zarr array are whole."""
    return x if len(x) == rows else np.concatenate([x, np.full((rows - len(x), *x.shape[1:]), fill, x.dtype)])
