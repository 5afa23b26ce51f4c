"""One shard of a corpus: checked, encoded, written, and summed up in a journal entry. Nothing here depends on any other shard."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build import journal
from dsengine.corpus.build.grid import COLUMN, SplitRule
from dsengine.corpus.schema import INDEX_DTYPES, UNKNOWN_EPSG, UNKNOWN_TIME, VERSION, Layout
from dsengine.corpus.shards import codec_of, encoder, shard_bytes
from dsengine.corpus.stats import band_sums
from dsengine.corpus.storage import Storage, Url
from dsengine.errors import RunError, UsageError, nearest

DEFAULTS: dict[str, Any] = {"epsg": UNKNOWN_EPSG, "x": np.nan, "y": np.nan, "time_s2": UNKNOWN_TIME, "time_s1": UNKNOWN_TIME,
                            "cloud_fraction": np.nan, "source": "", "shift_y": np.nan, "shift_x": np.nan, "quarantine": 0}
Spread = Callable[[Callable[[np.ndarray], list[bytes]], Iterable[np.ndarray]], Iterable[list[bytes]]]
GROUP = 8  # patches that a thread encodes at once: handing over single ones takes a tenth of the time
MAX_FAULTS = 1000  # kept in the root's attributes


class Block(NamedTuple):
    """Consecutive patches, those of one shard."""

    arrays: Mapping[str, np.ndarray]  # name -> (n, C, H, W) int16, nodata -32768
    index: Mapping[str, Any]  # lon, lat (degrees); optional: epsg, x, y, time_s2, time_s1, cloud_fraction, source, quarantine, each (n,);
    #                           split_lon, split_lat: the point that decides the split, where it is not the patch itself
    labels: Mapping[str, np.ndarray] = {}  # name -> (n,), (n, K) or (n, H, W)
    saturated: Mapping[str, Sequence[int]] = {}  # array -> values per band that did not fit in int16
    faults: Sequence[str] = ()  # what went wrong with the input of these patches, in row order; collected in the root's attributes


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What decides the bytes of a corpus, but for its pixels."""

    layout: Layout
    num_patches: int
    made_by: dict[str, Any]  # JSON
    seed: int = 0  # of the split
    columns: Mapping[str, str] = field(default_factory=dict)  # index columns beyond the standard ones: name -> dtype
    split: SplitRule = SplitRule()

    @property
    def num_shards(self) -> int:
        """Shards, the last one perhaps partly filled."""
        return -(-self.num_patches // self.layout.shard_patches)

    def __post_init__(self) -> None:
        group = self.split.by.removeprefix(COLUMN)
        if self.split.by.startswith(COLUMN) and group not in self.column_dtypes():
            raise UsageError(f"split={self.split.by}: no such index column; {nearest(group, self.column_dtypes())}")

    def rows(self, shard: int) -> range:
        """Rows of one shard."""
        size = self.layout.shard_patches
        return range(shard * size, min(self.num_patches, (shard + 1) * size))

    def header(self) -> dict[str, Any]:
        """What must be equal for a build to continue another, as JSON."""
        header = {"version": VERSION, "num_patches": self.num_patches, "seed": self.seed, "made_by": self.made_by, "layout": asdict(self.layout),
                  "columns": dict(self.columns), "split": self.split.described(self.seed)}
        return json.loads(json.dumps(header))  # tuples as lists, keys as text

    def column_dtypes(self) -> dict[str, str]:
        """Index columns that a block brings, and the two that decide the split: name -> dtype."""
        names = ["lon", "lat", *DEFAULTS, *(["split"] if self.split.by == "given" else [])]
        return {"split_lon": "float64", "split_lat": "float64", **{name: INDEX_DTYPES[name] for name in names}, **self.columns}


class Encoded(NamedTuple):
    """A shard ready to be written."""

    files: list[tuple[str, list[bytes]]]  # key and parts of each
    entry: dict[str, Any]  # of the journal


def encode_shard(outline: Outline, shard: int, block: Block, *, spread: Spread = map) -> Encoded:
    """The bytes of all files of one shard; equal input is equal bytes, wherever and whenever.

    `spread` maps the encoder over groups of patches: the builtin, or that of a thread pool. Call it outside the main thread, or with a pool (see
    `shards.encoder`). ValueError for a wrong shape, dtype or column.
    """
    count = len(outline.rows(shard))
    columns = _columns(block, outline, count)
    sums, valid, samples, images = {}, 0, 0, []
    for spec in outline.layout.arrays:
        x = _checked(block.arrays[spec.name], spec.name, (count, len(spec.bands), *[outline.layout.side(spec)] * 2), "int16")
        part, valid_NC = band_sums(x)
        sums[spec.name] = [*part, [int(v) for v in block.saturated.get(spec.name, [0] * len(spec.bands))]]
        valid, samples = valid + valid_NC.sum(axis=1), samples + x[0].size
        images.append((spec.name, x))
    columns["nodata_fraction"] = (1.0 - valid / samples).astype(np.float32)
    labels = _labels(block, outline, count)
    images += [(f"labels/{spec.name}", labels.pop(spec.name)) for spec in outline.layout.labels if spec.kind == "classmap"]
    entry = {"sums": sums, "columns": {name: values.tolist() for name, values in columns.items()},
             "labels": {name: values.tolist() for name, values in labels.items()}, "faults": [str(line) for line in block.faults]}
    return Encoded([(_key(name, shard, x), _shard(outline.layout, x, spread)) for name, x in images], entry)


def write_shard(storage: Storage, shard: int, encoded: Encoded) -> None:
    """Write all files of one shard and then its journal entry. RunError when the storage refuses."""
    storage.concurrently(lambda item: on_disk(storage.path / item[0], lambda: storage.put(*item)), encoded.files)
    on_disk(storage.path / journal.JOURNAL, lambda: journal.write_entry(storage, shard, encoded.entry))


def on_disk(target: Path | Url, write: Callable[[], None]) -> None:
    """Call `write`. RunError naming the target and what the storage said."""
    try:
        write()
    except OSError as error:
        raise RunError(f"{target}: {error.strerror}; what is complete stays, the same command continues") from error


def _key(array: str, shard: int, x: np.ndarray) -> str:
    return "/".join((array, "c", str(shard), *["0"] * (x.ndim - 1)))


def _shard(layout: Layout, x: np.ndarray, spread: Spread) -> list[bytes]:
    encode = encoder(codec_of(layout.codec, x.dtype), x.dtype.itemsize)
    groups = spread(lambda patches: [encode(patch) for patch in patches], [x[first:first + GROUP] for first in range(0, len(x), GROUP)])
    return shard_bytes([chunk for group in groups for chunk in group], layout.shard_patches)


def _columns(block: Block, outline: Outline, count: int) -> dict[str, np.ndarray]:
    index = dict(block.index)
    index.setdefault("split_lon", index["lon"])
    index.setdefault("split_lat", index["lat"])
    dtypes = outline.column_dtypes()
    if outline.split.by != "given":
        index.pop("split", None)  # the source has one, the build was asked for another
    if not dtypes.keys() >= index.keys():
        raise ValueError(f"index columns {sorted(index.keys() - dtypes.keys())} are not legal: {', '.join(sorted(dtypes))}")
    columns = {}
    for name, dtype in dtypes.items():
        if name not in index and name not in DEFAULTS:
            raise ValueError(f"index column {name} is missing")
        columns[name] = np.broadcast_to(np.asarray(index.get(name, DEFAULTS.get(name)), dtype=dtype), (count,))
    return columns


def _labels(block: Block, outline: Outline, count: int) -> dict[str, np.ndarray]:
    side, values = outline.layout.patch_size, {}
    for spec in outline.layout.labels:
        shape = {"class": (count,), "multilabel": (count, len(spec.classes)), "classmap": (count, side, side)}[spec.kind]
        values[spec.name] = _checked(block.labels[spec.name], f"label {spec.name}", shape, spec.dtype)
    return values


def _checked(x: np.ndarray, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if x.shape != shape or x.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: expected {shape} {dtype}, got {x.shape} {x.dtype}")
    return np.ascontiguousarray(x)
