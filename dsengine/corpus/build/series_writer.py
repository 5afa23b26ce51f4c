"""Writes a corpus of series or pixels block by block, as crash-safe as `build.writer`: a build killed at any moment continues.

A block is one shard of every array; its journal entry with index columns, labels and sums follows when all its files are there.
"""

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.grid import SplitRule, assign, split_rule
from dsengine.corpus.build.metadata import add_columns, dump, label_attributes
from dsengine.corpus.build.series_metadata import series_store
from dsengine.corpus.build.writer import JOURNAL, _claim, _on_disk
from dsengine.corpus.schema import NODATA, VERSION
from dsengine.corpus.series_schema import SERIES_INDEX, SeriesLayout, SeriesSpec
from dsengine.corpus.series_stats import block_part, describe, merge
from dsengine.corpus.shards import encoder, shard_bytes, write_file
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
    """Writes `num_rows` rows in order to `path`, a new folder or one that an equal build left unfinished.

    `columns` are index columns beyond the standard ones, name -> dtype or "str". `split` is a rule of
    `build.grid.SplitRule`; by block lon and lat must be known, given means column `split`. Errors as in `build.writer.CorpusWriter`.
    """

    def __init__(self, path: str | os.PathLike[str], *, layout: SeriesLayout, num_rows: int, made_by: dict[str, Any],
                 columns: Mapping[str, str] = MappingProxyType({}), split: str | SplitRule = "block", seed: int = 0, overwrite: bool = False) -> None:
        if num_rows < 1:
            raise UsageError(f"num_rows={num_rows}: a corpus has at least 1 row")
        self.path, self.layout, self.num_rows, self.made_by = Path(path), layout, num_rows, made_by
        self.columns, self.split, self.seed = dict(columns), split_rule(split), seed
        self._journal = self.path / JOURNAL
        self._lock = _claim(self.path, self._header(), overwrite=overwrite)
        self._pool = ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0))), thread_name_prefix="dsengine-encode")
        self._next = 0
        while self._entry_path(self._next).exists():
            self._next += 1
        if not (self.path / "zarr.json").exists():
            content = series_store(layout, num_rows, root={"complete": False, "made_by": made_by}, attributes={})
            _on_disk(self.path, lambda: dump(content, self.path))

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

    def finish(self) -> Path:
        """Write index, labels, splits and statistics and mark the corpus complete. Returns its path."""
        if self.next_row != self.num_rows:
            raise ValueError(f"finish at row {self.next_row} of {self.num_rows}")
        splits = self.split.described(self.seed)
        content = series_store(self.layout, self.num_rows, root={"complete": True, "made_by": self.made_by, "splits": splits},
                               attributes=self._statistics())
        for name in [*SERIES_INDEX, *self.columns]:
            add_columns(content, {name: self._index_column(name)}, folder="index")
        for label in self.layout.labels:
            add_columns(content, {label.name: self._collected("label " + label.name)}, folder="labels",
                        attributes={label.name: label_attributes(label)})
        _on_disk(self.path, lambda: dump(content, self.path))
        (self._journal / "header.json").unlink()  # first: entries without it mean nothing, it without entries means "start again"
        shutil.rmtree(self._journal)
        self.close()
        return self.path

    def close(self) -> None:
        """Let go of the folder; what is on disk stays and the next writer continues from it."""
        self._pool.shutdown()
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
        self._write(f"valid/{spec.sensor}", 2, [encode(_padded(valid, rows, False))])
        if not spec.time:
            time = _checked(block.time[spec.sensor], f"time {spec.sensor}", shape, "int64")
            self._write(f"time/{spec.sensor}", 2, [encode(_padded(time, rows, np.iinfo(np.int64).min))])

    def _write(self, array: str, ndim: int, parts: Sequence[bytes]) -> None:
        target = self.path.joinpath(*array.split("/"), "c", str(self._next), *["0"] * (ndim - 1))
        _on_disk(target, lambda: write_file(target, parts))

    def _entry_path(self, block: int) -> Path:
        return self._journal / f"{block:08d}.npz"

    def _commit(self, sums: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, sums=json.dumps(sums), **columns)
        target = self._entry_path(self._next)
        _on_disk(target, lambda: write_file(target, [buffer.getvalue()]))
        self._next += 1

    def _collected(self, name: str) -> np.ndarray:
        """One column of all entries; the entries are opened once a column, so that only one is held."""
        parts = []
        for block in range(self._next):
            with np.load(self._entry_path(block)) as entry:
                parts.append(entry[name])
        return np.concatenate(parts)

    def _index_column(self, name: str) -> np.ndarray:
        if name == "id":
            return np.arange(self.num_rows, dtype=np.int64)
        if name == "split":
            return assign({needed: self._collected(needed) for needed in self.split.needs()}, self.split, seed=self.seed)
        return self._collected(name)

    def _statistics(self) -> dict[str, dict[str, Any]]:
        entries = []
        for block in range(self._next):
            with np.load(self._entry_path(block)) as entry:
                entries.append(json.loads(str(entry["sums"])))
        attributes = {}
        for spec in self.layout.arrays:
            part = merge([entry[spec.sensor][0] for entry in entries], spec.dtype)
            saturated = [sum(values) for values in zip(*(entry[spec.sensor][1] for entry in entries), strict=True)]
            attributes[spec.sensor] = {**describe(part, spec.dtype, scale_factor=spec.scale_factor, add_offset=spec.add_offset),
                                       "saturated": saturated}
        return attributes


def _checked(x: np.ndarray, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if x.shape != shape or x.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: expected {shape} {dtype}, got {x.shape} {x.dtype}")
    return np.ascontiguousarray(x)


def _padded(x: np.ndarray, rows: int, fill: Any) -> np.ndarray:
    """`x` with rows of `fill` added: chunks at the end of a Zarr array are whole."""
    return x if len(x) == rows else np.concatenate([x, np.full((rows - len(x), *x.shape[1:]), fill, x.dtype)])
