"""One block of a corpus of series or pixels: a shard of every array, then the journal entry; a task that any process can do."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build import journal
from dsengine.corpus.build.grid import SplitRule
from dsengine.corpus.build.shard import on_disk
from dsengine.corpus.schema import NODATA, UNKNOWN_TIME, VERSION
from dsengine.corpus.series_schema import SERIES_INDEX, SeriesLayout, SeriesSpec
from dsengine.corpus.series_stats import block_part
from dsengine.corpus.shards import encoder, shard_bytes
from dsengine.corpus.storage import Storage
from dsengine.errors import UsageError

Spread = Callable[[Callable[[np.ndarray], bytes], Iterable[np.ndarray]], Iterable[bytes]]
_PLACE = {"split_lon": "float64", "split_lat": "float64"}


class SeriesBlock(NamedTuple):
    """Consecutive rows: those of `SeriesOutline.rows`."""

    arrays: Mapping[str, np.ndarray]  # sensor -> (n, T, C) or (n, C) as stored, nodata -32768
    index: Mapping[str, Any]  # lon, lat (degrees, NaN unknown), the plan's own columns; optional: quarantine, split_lon, split_lat, split
    labels: Mapping[str, np.ndarray] = {}  # name -> (n,) or (n, K)
    time: Mapping[str, np.ndarray] = {}  # sensor -> (n, T) int64 ns UTC, where the rows do not share their times
    valid: Mapping[str, np.ndarray] = {}  # sensor -> (n, T) bool, and'ed with "some band has data"; absent: all
    saturated: Mapping[str, Sequence[int]] = {}  # sensor -> values per band that did not fit


@dataclass(frozen=True, kw_only=True)
class SeriesOutline:
    """What decides the bytes of a corpus, but for its values."""

    layout: SeriesLayout
    num_rows: int
    made_by: dict[str, Any]  # JSON
    seed: int = 0  # of the split
    columns: Mapping[str, str] = field(default_factory=dict)  # index columns beyond the standard ones: name -> dtype or "str"
    split: SplitRule = SplitRule()

    @property
    def num_blocks(self) -> int:
        """Blocks, the last one perhaps partly filled."""
        return -(-self.num_rows // self.layout.rows_a_block())

    def rows(self, block: int) -> range:
        """Rows of one block."""
        size = self.layout.rows_a_block()
        return range(block * size, min(self.num_rows, (block + 1) * size))

    def header(self) -> dict[str, Any]:
        """What must be equal for a build to continue another, as JSON."""
        header = {"version": VERSION, "kind": self.layout.kind, "num_rows": self.num_rows, "seed": self.seed, "made_by": self.made_by,
                  "layout": asdict(self.layout), "columns": dict(self.columns), "split": asdict(self.split)}
        return json.loads(json.dumps(header))

    def column_dtypes(self) -> dict[str, str]:
        """Index columns that a block brings, and the two that decide the split: name -> dtype."""
        given = ("split",) if self.split.by == "given" else ()
        return {**{name: SERIES_INDEX[name] for name in ("lon", "lat", "quarantine", *given)}, **_PLACE, **self.columns}


def write_block(storage: Storage, outline: SeriesOutline, number: int, block: SeriesBlock, *, spread: Spread = map) -> None:
    """Write all files of one block and then its journal entry; equal input is equal bytes, wherever and whenever.

    `spread` maps the encoder over chunks: the builtin outside the main thread, or that of a thread pool (see `shards.encoder`). ValueError
    for a wrong shape, dtype or name, RunError when the storage refuses.
    """
    layout, count = outline.layout, len(outline.rows(number))
    columns, sums = _columns(block, outline, count), {}
    missing, samples = np.zeros(count), 0
    for spec in layout.arrays:
        x = _checked(block.arrays[spec.sensor], spec.sensor, (count, *spec.row_shape), spec.dtype)
        sums[spec.sensor] = [block_part(x), [int(v) for v in block.saturated.get(spec.sensor, [0] * len(spec.bands))]]
        missing += (x == NODATA).reshape(count, -1).sum(axis=1)
        samples += x[0].size
        _put(storage, layout.array(spec), number, x.ndim, _shard(layout, layout.codec, layout.rows_a_chunk(spec), x, NODATA, spread))
        for name, steps, fill in _steps(spec, block, x):
            _put(storage, name, number, 2, _shard(layout, "zstd", layout.rows_a_block(), steps, fill, spread))
    columns["nodata_fraction"] = (missing / samples).astype(np.float32)
    for label in layout.labels:
        shape = (count,) if label.kind == "class" else (count, len(label.classes))
        columns["label " + label.name] = _checked(block.labels[label.name], f"label {label.name}", shape, label.dtype)
    _commit(storage, number, sums, columns)


def read_columns(storage: Storage, number: int) -> Mapping[str, np.ndarray]:
    """Index columns and labels (`label NAME`) of a written block, each loaded when it is asked for."""
    return np.load(io.BytesIO(storage.get(_columns_key(number))))


def _commit(storage: Storage, number: int, sums: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    on_disk(storage.path / journal.JOURNAL, lambda: storage.put(_columns_key(number), [buffer.getvalue()]))
    on_disk(storage.path / journal.JOURNAL, lambda: journal.write_entry(storage, number, sums))


def _columns_key(number: int) -> str:
    return f"{journal.JOURNAL}/{number:08d}.npz"


def _columns(block: SeriesBlock, outline: SeriesOutline, count: int) -> dict[str, np.ndarray]:
    index, dtypes = {"quarantine": 0, **block.index}, outline.column_dtypes()
    if outline.split.by != "given":
        index.pop("split", None)  # the source's own split gave way to another
    index.setdefault("split_lon", index.get("lon"))
    index.setdefault("split_lat", index.get("lat"))
    if index.keys() != dtypes.keys():
        raise ValueError(f"index columns {sorted(index.keys() ^ dtypes.keys())} are missing or not legal: {', '.join(sorted(dtypes))}")
    if outline.split.by == "block" and not (np.isfinite(index["split_lon"]).all() and np.isfinite(index["split_lat"]).all()):
        raise UsageError("--split block: the rows of this source have no place; legal: random, column:NAME, or none")
    return {name: np.broadcast_to(np.asarray(index[name], dtype=dtype), (count,)) for name, dtype in dtypes.items()}


def _steps(spec: SeriesSpec, block: SeriesBlock, x: np.ndarray) -> list[tuple[str, np.ndarray, Any]]:
    """Name, (n, T) values and fill of valid and, where rows have their own, time."""
    if not spec.steps:
        return []
    shape, valid = x.shape[:2], (x != NODATA).any(axis=2)
    if spec.sensor in block.valid:
        valid &= _checked(block.valid[spec.sensor], f"valid {spec.sensor}", shape, "bool")
    steps: list[tuple[str, np.ndarray, Any]] = [(f"valid/{spec.sensor}", valid, False)]
    if not spec.time:
        steps.append((f"time/{spec.sensor}", _checked(block.time[spec.sensor], f"time {spec.sensor}", shape, "int64"), UNKNOWN_TIME))
    return steps


def _shard(layout: SeriesLayout, codec: str, chunk_rows: int, x: np.ndarray, fill: Any, spread: Spread) -> list[bytes]:
    """Bytes of one shard; the last chunk is filled up, because chunks of Zarr are whole."""
    num_chunks = -(-len(x) // chunk_rows)
    if added := num_chunks * chunk_rows - len(x):
        x = np.concatenate([x, np.full((added, *x.shape[1:]), fill, x.dtype)])
    chunks = list(spread(encoder(codec, x.dtype.itemsize), x.reshape(num_chunks, chunk_rows, *x.shape[1:])))
    return shard_bytes(chunks, layout.rows_a_block() // chunk_rows)


def _put(storage: Storage, array: str, number: int, ndim: int, parts: Sequence[bytes]) -> None:
    key = "/".join((array, "c", str(number), *["0"] * (ndim - 1)))
    on_disk(storage.path / key, lambda: storage.put(key, parts))


def _checked(x: np.ndarray, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if x.shape != shape or x.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: expected {shape} {dtype}, got {x.shape} {x.dtype}")
    return np.ascontiguousarray(x)
