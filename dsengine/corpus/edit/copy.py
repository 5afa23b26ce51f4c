"""Rows of existing corpora as the blocks of a new one: the same pixels, or the middle of them, bands regrouped where asked."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dsengine.corpus.build.plan import Plan
from dsengine.corpus.build.writer import Block
from dsengine.corpus.edit.layout import Group, check_alike, column_dtypes, layout_of, regroup
from dsengine.corpus.index import Corpus, open_corpus
from dsengine.corpus.schema import INDEX_DTYPES, NODATA, ArraySpec, Layout
from dsengine.errors import RunError, UsageError

RESAMPLING = ("exact", "mean")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How the new corpus differs from the old ones; None keeps what the first of them has."""

    codec: str | None = None
    shard_patches: int | None = None
    groups: tuple[Group, ...] = ()
    resample: str = "exact"  # exact: pixels that become one must be equal; mean: of those with data, nodata where fewer than half have
    where: str | None = None  # expression over index columns
    size: int | None = None  # keep the middle of each patch, so many finest pixels a side
    drop: tuple[str, ...] = ()  # labels and further index columns that are left out

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLING:
            raise UsageError(f"--resample {self.resample}: legal: {', '.join(RESAMPLING)}")
        if self.shard_patches is not None and self.shard_patches < 1:
            raise UsageError(f"--shard-patches {self.shard_patches}: legal: 1 or more")
        if self.size is not None and self.size < 1:
            raise UsageError(f"--size {self.size}: legal: 1 or more")


def copy_plan(paths: Sequence[str | os.PathLike[str]], changes: Changes, *, command: str) -> Plan:
    """All rows of the corpora at `paths`, in that order, splits kept. UsageError when they do not fit together."""
    corpora = [open_corpus(path) for path in paths]
    before = check_alike({str(corpus.path): replace(layout_of(corpus), codec="lz4", shard_patches=1) for corpus in corpora})
    first = layout_of(corpora[0])
    layout = replace(regroup(before, changes.groups), codec=changes.codec or first.codec, shard_patches=changes.shard_patches or first.shard_patches)
    columns = _shared_columns(corpora)
    _check_dropped(changes.drop, [label.name for label in layout.labels] + list(columns))
    columns = {name: dtype for name, dtype in columns.items() if name not in changes.drop}
    layout = replace(layout, patch_size=before.patch_size if changes.size is None else changes.size,
                     labels=tuple(label for label in layout.labels if label.name not in changes.drop))
    first_pixel = _first_pixel(before, layout)
    picked = np.concatenate([np.stack([np.full(len(rows), number), rows], axis=1)
                             for number, corpus in enumerate(corpora) for rows in [_rows(corpus, changes.where)]])
    if not len(picked):
        raise UsageError(f"--where {changes.where}: no patch of {', '.join(map(str, paths))} is left")
    made_by = {"command": command, "inputs": [origin(corpus) for corpus in corpora], "resample": changes.resample, "where": changes.where}
    return Plan(layout=layout, num_patches=len(picked), made_by=made_by, columns=columns, split="given",
                cut=Copy([str(corpus.path) for corpus in corpora], picked, layout, changes.resample, tuple(columns), first_pixel))


@dataclass(frozen=True)
class Copy:
    """`cut` of a plan: patches `picked` (N, 2), corpus number and row in it. Corpora are opened in the process that reads them."""

    paths: Sequence[str]
    picked: np.ndarray
    layout: Layout
    resample: str
    columns: Sequence[str]
    first_pixel: int  # of the finest grid, in y and x, where the kept middle begins

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "corpora"}

    @cached_property
    def corpora(self) -> list[Corpus]:
        """The inputs, opened."""
        return [open_corpus(path) for path in self.paths]

    def __call__(self, rows: range) -> Block:
        picked = self.picked[rows.start:rows.stop]
        parts = [_part(self, int(number), picked[picked[:, 0] == number, 1]) for number in dict.fromkeys(picked[:, 0].tolist())]
        joined = [{name: np.concatenate([part[k][name] for part in parts]) for name in parts[0][k]} for k in range(3)]
        begun = self._begins(rows)
        return Block(arrays=joined[0], index=joined[1], labels=joined[2], saturated=self._saturated([self.corpora[number] for number in begun]),
                     faults=[line for number in begun for line in self._faults(number)])

    def _begins(self, rows: range) -> list[int]:
        """The corpora whose first picked patch is among the rows: what is known of a whole corpus only is told there."""
        numbers = self.picked[rows.start:rows.stop, 0]
        before = self.picked[rows.start - 1, 0] if rows.start else -1
        return [number for number in dict.fromkeys(numbers.tolist()) if number != before]

    def _faults(self, number: int) -> list[str]:
        """Faults of one corpus; they may name rows, which are others here unless the corpus is the first and whole."""
        corpus = self.corpora[number]
        same_rows = number == 0 and np.count_nonzero(self.picked[:, 0] == 0) == len(corpus)
        return [line if same_rows else f"of {corpus.path}: {line}" for line in faults_of(corpus)]

    def _saturated(self, begun: Sequence[Corpus]) -> dict[str, list[int]]:
        """How many values were cut, by array and band."""
        counts = [{band: count for array in corpus.arrays.values() for band, count in zip(array.attrs["bands"], array.attrs.get("saturated", []))}
                  for corpus in begun]
        return {spec.name: [sum(count.get(band, 0) for count in counts) for band in spec.bands] for spec in self.layout.arrays}


def _part(copy: Copy, number: int, rows: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays, index columns and labels of some rows of one corpus."""
    corpus = copy.corpora[number]
    try:
        stored = {name: array.oindex[rows] for name, array in corpus.arrays.items()}
        labels = {spec.name: corpus.labels[spec.name].oindex[rows] for spec in copy.layout.labels}
        extra = {name: _plain(np.asarray(corpus.columns[name].oindex[rows])) for name in copy.columns}
    except (ValueError, RuntimeError, OSError) as error:
        raise RunError(f"{corpus.path}: rows {rows[0]} to {rows[-1]} cannot be read ({error}); `dsengine corpus verify --quarantine "
                       f"{corpus.path}` sets aside what is damaged, then `dsengine corpus convert {corpus.path} OUT --where 'id >= 0'` copies the rest") from error
    where = {band.name: band for band in corpus.bands}
    arrays = {}
    for spec in copy.layout.arrays:
        bands = [_resampled(_middle(stored[where[b].array][:, where[b].channel], copy, where[b].factor), where[b].factor, spec, how=copy.resample,
                            what=f"{corpus.path}: band {b}") for b in spec.bands]
        arrays[spec.name] = np.stack(bands, axis=1)
    labels = {name: _middle(x, copy, 1) if x.ndim == 3 else x for name, x in labels.items()}
    standard = {name: getattr(corpus.index, name)[rows] for name in INDEX_DTYPES if name not in ("id", "nodata_fraction")}
    shift_m = copy.first_pixel * copy.layout.resolution_m
    return arrays, {**standard, "x": standard["x"] + shift_m, "y": standard["y"] - shift_m, **extra}, labels


def _middle(x_NHW: np.ndarray, copy: Copy, factor: int) -> np.ndarray:
    """What is kept of pixels with `factor` finest ones a side."""
    first, size = copy.first_pixel // factor, copy.layout.patch_size // factor
    return x_NHW[:, first:first + size, first:first + size]


def _first_pixel(before: Layout, after: Layout) -> int:
    """Finest pixels left out above and left of the middle: half of what is too many, in whole pixels of the coarsest band."""
    if after.patch_size > before.patch_size:
        raise UsageError(f"--size {after.patch_size}: patches have {before.patch_size} px; legal: 1 to {before.patch_size}")
    coarsest = math.lcm(*(spec.factor for layout in (before, after) for spec in layout.arrays))
    if after.patch_size != before.patch_size and after.patch_size % coarsest:
        raise UsageError(f"--size {after.patch_size}: legal: multiples of {coarsest}, for each band to keep whole pixels")
    return (before.patch_size - after.patch_size) // 2 // coarsest * coarsest


def _check_dropped(dropped: Sequence[str], known: Sequence[str]) -> None:
    for name in dropped:
        if name not in known:
            raise UsageError(f"--drop {name}: no label or further index column of that name; legal: {', '.join(known) or 'none, there are none'}")


def _resampled(x_NHW: np.ndarray, factor: int, spec: ArraySpec, *, how: str, what: str) -> np.ndarray:
    if spec.factor <= factor:
        if factor % spec.factor:
            raise UsageError(f"{what}: factor {factor} is not a multiple of {spec.factor}, that of array {spec.name}")
        times = factor // spec.factor
        return x_NHW.repeat(times, axis=1).repeat(times, axis=2)
    if spec.factor % factor:
        raise UsageError(f"{what}: factor {spec.factor} of array {spec.name} is not a multiple of {factor}, that of the band")
    times = spec.factor // factor
    num, height, width = x_NHW.shape
    cells = x_NHW.reshape(num, height // times, times, width // times, times).transpose(0, 1, 3, 2, 4).reshape(num, height // times, width // times, -1)
    if how == "exact":
        if (cells != cells[..., :1]).any():
            raise UsageError(f"{what} is not constant in blocks of {times} x {times} pixels, so joining them loses detail; legal: --resample mean")
        return np.ascontiguousarray(cells[..., 0])
    return _mean(cells)


def _mean(cells: np.ndarray) -> np.ndarray:
    """Mean over the last axis of pixels with data, rounded half to even; nodata where fewer than half have data."""
    valid = cells != NODATA
    count = valid.sum(axis=-1)
    total = np.where(valid, cells, 0).astype(np.int64).sum(axis=-1)
    enough = 2 * count >= cells.shape[-1]
    return np.where(enough, np.rint(total / np.maximum(count, 1)), NODATA).astype(np.int16)


def _plain(column: np.ndarray) -> np.ndarray:
    """Variable-length strings as objects, which numpy casts to fixed ones."""
    return column.astype(object) if column.dtype.kind == "T" else column


def _rows(corpus: Corpus, where: str | None) -> np.ndarray:
    """Every row, those in quarantine too; with `where` those that it picks."""
    return np.arange(len(corpus)) if where is None else corpus.rows("all", where=where)


def _shared_columns(corpora: Sequence[Corpus]) -> dict[str, str]:
    dtypes = [column_dtypes(corpus) for corpus in corpora]
    for corpus, other in zip(corpora, dtypes):
        if other != dtypes[0]:
            raise UsageError(f"{corpus.path} and {corpora[0].path} differ in index columns: {other or 'none'} against {dtypes[0] or 'none'}")
    return dtypes[0]


def faults_of(corpus: Corpus) -> list[str]:
    """What the root's attributes say of damaged input, with a line for the faults beyond those that are listed."""
    listed = [str(line) for line in corpus.attributes.get("faults", [])]
    rest = corpus.attributes.get("num_faults", len(listed)) - len(listed)
    return [*listed, f"{corpus.path}: {rest:,} more that are not listed"] if rest > 0 else listed


def origin(corpus: Corpus) -> dict[str, Any]:
    """What the root's attributes say of a corpus whose rows were taken in."""
    return {"path": str(corpus.path), "num_patches": len(corpus), "made_by": corpus.attributes.get("made_by")}
