"""Writes a corpus shard by shard so that a build killed at any moment continues, and ends with the same bytes.

Each shard file is written under a temporary name, synced and renamed. When all files of 64 patches are there, one journal
entry with their index columns and integer sums follows in the same way; what has no entry is written again. `finish` turns the
journal into index, splits and statistics, marks the root complete and removes the journal.
"""

import fcntl
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

from dsengine.corpus.build.grid import BLOCK_DEG, split_codes
from dsengine.corpus.build.metadata import add_columns, corpus_store, dump, label_attributes
from dsengine.corpus.schema import INDEX_DTYPES, UNKNOWN_EPSG, UNKNOWN_TIME, VERSION, Layout
from dsengine.corpus.shards import encoder, shard_bytes, write_file
from dsengine.corpus.stats import MADE_BY, BandSums, band_sums, statistics
from dsengine.errors import RunError, UsageError

JOURNAL = ".journal"
MAX_FAULTS = 1000  # kept in the root's attributes
DEFAULTS: dict[str, Any] = {"epsg": UNKNOWN_EPSG, "x": np.nan, "y": np.nan, "time_s2": UNKNOWN_TIME, "time_s1": UNKNOWN_TIME,
                            "cloud_fraction": np.nan, "source": "", "shift_y": np.nan, "shift_x": np.nan, "quarantine": 0}


class Block(NamedTuple):
    """Consecutive patches, as many as `CorpusWriter.next_count` says."""

    arrays: Mapping[str, np.ndarray]  # name -> (n, C, H, W) int16, nodata -32768
    index: Mapping[str, Any]  # lon, lat (degrees); optional: epsg, x, y, time_s2, time_s1, cloud_fraction, source, each (n,);
    #                           split_lon, split_lat: the point that decides the split, where it is not the patch itself
    labels: Mapping[str, np.ndarray] = {}  # name -> (n,), (n, K) or (n, H, W)
    saturated: Mapping[str, Sequence[int]] = {}  # array -> values per band that did not fit in int16
    faults: Sequence[str] = ()  # what went wrong with the input of these patches, in row order; collected in the root's attributes


class CorpusWriter:
    """Writes `num_patches` patches in row order to `path`, a new folder or one that an equal build left unfinished.

    `made_by` (JSON) goes to the root attributes; an unfinished build continues only under an equal layout, number and `made_by`.
    Raises UsageError when `path` holds anything else, or cannot be written. `overwrite` first removes a corpus that is at `path`,
    complete or not, and never anything else.
    """

    def __init__(self, path: str | os.PathLike[str], *, layout: Layout, num_patches: int, made_by: dict[str, Any],
                 overwrite: bool = False, seed: int = 0, threads: int | None = None, columns: Mapping[str, str] = MappingProxyType({}),
                 split: str = "block") -> None:
        if num_patches < 1:
            raise UsageError(f"num_patches={num_patches}: a corpus has at least 1 patch")
        self.path = Path(path)
        self.layout = layout
        self.num_patches = num_patches
        self.seed = seed  # of the split
        self.made_by = made_by
        self.extra = dict(columns)  # further index columns, name -> dtype
        self.split = split  # block: by place; given: column `split` of each block
        self._journal = self.path / JOURNAL
        self._lock = _claim(self.path, self._header(), overwrite=overwrite)
        self._pool = ThreadPoolExecutor(threads or min(4, len(os.sched_getaffinity(0))), thread_name_prefix="dsengine-encode")
        self._next_shard = 0
        while self._entry_path(self._next_shard).exists():
            self._next_shard += 1
        if not (self.path / "zarr.json").exists():
            content = corpus_store(layout, num_patches, root={"complete": False, "made_by": made_by}, attributes={})
            _on_disk(self.path, lambda: dump(content, self.path))

    @property
    def next_row(self) -> int:
        """First row that is not yet on disk; `num_patches` when all are."""
        return min(self._next_shard * self.layout.shard_patches, self.num_patches)

    @property
    def next_count(self) -> int:
        """Patches that the next block must hold: a full shard, or what is left."""
        return min(self.layout.shard_patches, self.num_patches - self.next_row)

    def append(self, block: Block) -> None:
        """Write one shard of every array. Raises ValueError on a wrong shape or dtype, RunError when the disk refuses."""
        columns = self._columns(block)
        entry, valid, samples = {}, 0, 0
        for spec in self.layout.arrays:
            x = _checked(block.arrays[spec.name], spec.name, (self.next_count, len(spec.bands), *[self.layout.side(spec)] * 2), "int16")
            sums, valid_NC = band_sums(x)
            entry[spec.name] = [*sums, [int(v) for v in block.saturated.get(spec.name, [0] * len(spec.bands))]]
            valid, samples = valid + valid_NC.sum(axis=1), samples + x[0].size
            self._write_shard(spec.name, x)
        columns["nodata_fraction"] = (1.0 - valid / samples).astype(np.float32)
        self._append_labels(block, columns)
        self._commit({**entry, "faults": list(block.faults)}, columns)

    def finish(self) -> Path:
        """Write index, splits and statistics and mark the corpus complete. Returns its path."""
        if self.next_row != self.num_patches:
            raise ValueError(f"finish at row {self.next_row} of {self.num_patches}")
        entries = [self._read_entry(shard) for shard in range(self._next_shard)]
        columns = {name: np.concatenate([columns[name] for _, columns in entries]) for name in entries[0][1]}
        columns["id"] = np.arange(self.num_patches, dtype=np.int64)
        place = columns.pop("split_lon"), columns.pop("split_lat")
        if self.split == "block":
            columns["split"] = split_codes(*place, seed=self.seed)
        splits = {"by": "block", "seed": self.seed, "block_deg": BLOCK_DEG} if self.split == "block" else {"by": self.split}
        root = {"complete": True, "made_by": self.made_by, "splits": splits, **_faults([fault for sums, _ in entries for fault in sums["faults"]])}
        content = corpus_store(self.layout, self.num_patches, root=root, attributes=self._statistics([sums for sums, _ in entries]))
        add_columns(content, {name: columns[name] for name in [*INDEX_DTYPES, *self.extra]}, folder="index")
        vectors = {spec.name: spec for spec in self.layout.labels if spec.kind != "classmap"}
        if vectors:
            add_columns(content, {name: columns["label " + name] for name in vectors}, folder="labels",
                        attributes={name: label_attributes(spec) for name, spec in vectors.items()})
        _on_disk(self.path, lambda: dump(content, self.path))
        (self._journal / "header.json").unlink()  # first: entries without it mean nothing, it without entries means "start again"
        shutil.rmtree(self._journal)
        self.close()
        return self.path

    def close(self) -> None:
        """Let go of the folder; what is on disk stays and the next writer continues from it."""
        self._pool.shutdown()
        self._lock.close()

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _header(self) -> dict[str, Any]:
        header = {"version": VERSION, "num_patches": self.num_patches, "seed": self.seed, "made_by": self.made_by, "layout": asdict(self.layout),
                  "columns": self.extra, "split": self.split}
        return json.loads(json.dumps(header))

    def _columns(self, block: Block) -> dict[str, np.ndarray]:
        index, count = dict(block.index), self.next_count
        index.setdefault("split_lon", index["lon"])
        index.setdefault("split_lat", index["lat"])
        legal = {"lon", "lat", "split_lon", "split_lat", *DEFAULTS, *self.extra, *(["split"] if self.split == "given" else [])}
        if not legal >= index.keys():
            raise ValueError(f"index columns {sorted(index.keys() - legal)} are not legal: {', '.join(sorted(legal))}")
        columns = {}
        for name in sorted(legal):
            dtype = {"split_lon": "float64", "split_lat": "float64", **INDEX_DTYPES, **self.extra}[name]
            if name not in index and name not in DEFAULTS:
                raise ValueError(f"index column {name} is missing")
            columns[name] = np.broadcast_to(np.asarray(index.get(name, DEFAULTS.get(name)), dtype=dtype), (count,))
        return columns

    def _append_labels(self, block: Block, columns: dict[str, np.ndarray]) -> None:
        side, count = self.layout.patch_size, self.next_count
        for spec in self.layout.labels:
            shape = {"class": (count,), "multilabel": (count, len(spec.classes)), "classmap": (count, side, side)}[spec.kind]
            values = _checked(block.labels[spec.name], f"label {spec.name}", shape, spec.dtype)
            if spec.kind == "classmap":
                self._write_shard(f"labels/{spec.name}", values)
            else:
                columns["label " + spec.name] = values

    def _write_shard(self, array: str, x: np.ndarray) -> None:
        # The pool also keeps Blosc off the main thread, where its frames would not be reproducible.
        chunks = list(self._pool.map(encoder(self.layout.codec, x.dtype.itemsize), x))
        target = self.path.joinpath(*array.split("/"), "c", str(self._next_shard), *["0"] * (x.ndim - 1))
        _on_disk(target, lambda: write_file(target, shard_bytes(chunks, self.layout.shard_patches)))

    def _entry_path(self, shard: int) -> Path:
        return self._journal / f"{shard:08d}.npz"

    def _commit(self, entry: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, sums=json.dumps(entry), **columns)
        target = self._entry_path(self._next_shard)
        _on_disk(target, lambda: write_file(target, [buffer.getvalue()]))
        self._next_shard += 1

    def _read_entry(self, shard: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        with np.load(self._entry_path(shard)) as file:
            columns = {name: file[name] for name in file.files if name != "sums"}
            return json.loads(str(file["sums"])), columns

    def _statistics(self, entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        attributes = {}
        for spec in self.layout.arrays:
            parts = [entry[spec.name] for entry in entries]
            sums = BandSums(*parts[0][:3])
            for part in parts[1:]:
                sums = sums.add(BandSums(*part[:3]))
            saturated = [sum(values) for values in zip(*(part[3] for part in parts), strict=True)]
            attributes[spec.name] = {**statistics(sums, scale_factor=spec.scale_factor, add_offset=spec.add_offset),
                                     "saturated": saturated, "stats_made_by": MADE_BY}
        return attributes


def _faults(lines: list[str]) -> dict[str, Any]:
    """Root attributes about damaged input: the first 1000 lines in row order, and how many there were."""
    return {"faults": lines[:MAX_FAULTS], "num_faults": len(lines)} if lines else {}


def _checked(x: np.ndarray, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if x.shape != shape or x.dtype != np.dtype(dtype):
        raise ValueError(f"{name}: expected {shape} {dtype}, got {x.shape} {x.dtype}")
    return np.ascontiguousarray(x)


def _on_disk(target: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise RunError(f"{target}: {error.strerror}; what is complete stays, the same command continues") from error


def _claim(path: Path, header: dict[str, Any], *, overwrite: bool) -> io.BufferedReader:
    """Make or take over the folder; returns the locked header file. Raises UsageError as `CorpusWriter` says."""
    header_path = path / JOURNAL / "header.json"
    try:
        if overwrite and _is_corpus(path):
            shutil.rmtree(path)
        if not header_path.exists():
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UsageError(f"{path} is not empty and holds no unfinished build; give a new folder")
            write_file(header_path, [json.dumps(header).encode()])
        lock = open(header_path, "rb")
    except OSError as error:
        raise UsageError(f"cannot write the corpus folder {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _same_build(path, json.loads(lock.read()), header)
    except OSError as error:
        lock.close()
        raise UsageError(f"{path}: another process is writing this corpus") from error
    except UsageError:
        lock.close()
        raise
    return lock


def _is_corpus(path: Path) -> bool:
    if (path / JOURNAL / "header.json").exists():
        return True
    try:
        return "dsengine" in json.loads((path / "zarr.json").read_bytes()).get("attributes", {})
    except (OSError, ValueError):
        return False


def _same_build(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise UsageError(f"{path} holds an unfinished build with another {key}: {theirs.get(key)}, now {value}; give the same options or a new folder")
