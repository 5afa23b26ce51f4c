"""Compressed chunk bytes of a batch, read by shard index into one reused slab; no zarr-python per patch.

A shard file is inner chunks in any order and a table of (offset, size), 16 bytes a chunk (`corpus.shards`). A chunk
without an entry was not stored and is all fill value. One inner chunk is one patch.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from dsengine.corpus.shards import MISSING, read_table
from dsengine.data.layout import ChunkLayout
from dsengine.errors import RunError


class Chunks(NamedTuple):
    """Compressed chunks of `ids` in their order; `slab` is overwritten by the reader's next `read`."""

    layout: ChunkLayout
    ids: np.ndarray  # (B,) int64 patches
    slab: np.ndarray  # (capacity,) uint8
    start: np.ndarray  # (B,) int64 position in the slab
    size: np.ndarray  # (B,) int64 bytes; 0: not stored, the patch is all fill value

    def fail(self, k: int, problem: str) -> RunError:
        """The error for row `k` of this batch."""
        return damage(self.layout, int(self.ids[k]), problem)


class Extent(NamedTuple):
    """One read: `size` bytes at `offset` of shard `shard` to `start` in the slab; `patch` is its first."""

    shard: int
    offset: int
    start: int
    size: int
    patch: int


def damage(layout: ChunkLayout, patch: int, problem: str) -> RunError:
    """The one-line error of a shard that cannot be used: file, array, patch, what is wrong."""
    path = layout.shard_path(patch // layout.patches_per_shard)
    return RunError(f"{path}: array {layout.name}, patch {patch}: {problem}; restore the file or rebuild the corpus")


def run_parts(pool: ThreadPoolExecutor, work: list) -> None:
    """Run the callables of `work` in `pool`; all have ended when this returns or raises the first error."""
    futures = [pool.submit(part) for part in work]
    errors = [f.exception() for f in futures]
    for error in errors:
        if error is not None:
            raise error


class ShardIndex:
    """Offset and size of every chunk of one array; a shard's table is read and checked on first use."""

    def __init__(self, layout: ChunkLayout) -> None:
        self._layout = layout
        self._known = np.zeros(layout.num_shards, dtype=bool)
        self._entry = np.empty((layout.num_shards, layout.patches_per_shard, 2), dtype=np.uint64)

    def lookup(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard, offset and size (B,) int64 of patches `ids`; size 0 where a chunk is not stored."""
        shard, slot = np.divmod(ids, self._layout.patches_per_shard)
        unknown, first = np.unique(shard[~self._known[shard]], return_index=True)
        patches = ids[~self._known[shard]][first]
        for s, patch in zip(unknown.tolist(), patches.tolist()):
            self._entry[s] = self._read(s, patch)
            self._known[s] = True
        entry = self._entry[shard, slot]
        stored = entry[:, 0] != MISSING
        offset, size = np.where(stored[:, None], entry, np.uint64(0)).astype(np.int64).T
        return shard, offset, size

    def _read(self, shard: int, patch: int) -> np.ndarray:
        """(patches_per_shard, 2) uint64 table of `shard`; `patch` is named when it is damaged."""
        try:
            return read_table(self._layout.shard_path(shard), self._layout.patches_per_shard)
        except FileNotFoundError:
            raise damage(self._layout, patch, "the shard file is missing") from None
        except (OSError, ValueError) as error:
            raise damage(self._layout, patch, str(error)) from error


class ChunkReader:
    """Reads the chunks of any patches of one array. Not for use by two threads at once.

    `pool` does the reads; `parts` is how many of them run side by side.
    """

    def __init__(self, layout: ChunkLayout, pool: ThreadPoolExecutor, *, parts: int) -> None:
        self.layout = layout
        self._index = ShardIndex(layout)
        self._pool = pool
        self._parts = parts
        self._slab = np.empty(0, dtype=np.uint8)

    def read(self, ids: np.ndarray) -> Chunks:
        """Chunks of patches `ids` (B,) int64, as stored. Raises RunError naming file, array and patch."""
        shard, offset, size = self._index.lookup(ids)
        order = np.lexsort((offset, shard))
        stop = np.cumsum(size[order])
        start = np.empty_like(size)
        start[order] = stop - size[order]
        self._reserve(int(stop[-1]) if len(stop) else 0)
        table = np.stack([shard, offset, start, size, ids], axis=1)[order]
        bounds = np.searchsorted(stop, np.linspace(0, stop[-1], self._parts + 1)[1:-1]) if len(stop) else []
        parts = [rows for rows in np.split(table, bounds) if len(rows)]
        run_parts(self._pool, [lambda rows=rows: self._read_part(rows) for rows in parts])
        return Chunks(self.layout, ids, self._slab, start, size)

    def _reserve(self, num_bytes: int) -> None:
        if num_bytes > self._slab.nbytes:
            # A quarter more than asked: batches differ by a few percent, and growing again costs page faults.
            self._slab = np.empty(num_bytes + num_bytes // 4, dtype=np.uint8)

    def _read_part(self, rows: np.ndarray) -> None:
        target = memoryview(self._slab)
        opened, fd = -1, -1
        try:
            for extent in coalesce(rows):
                if extent.shard != opened:
                    opened, fd = extent.shard, self._reopen(fd, extent)
                self._fill(fd, target, extent)
        finally:
            if fd >= 0:
                os.close(fd)

    def _reopen(self, fd: int, extent: Extent) -> int:
        if fd >= 0:
            os.close(fd)
        try:
            return os.open(self.layout.shard_path(extent.shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise damage(self.layout, extent.patch, str(error)) from error

    def _fill(self, fd: int, target: memoryview, extent: Extent) -> None:
        done = 0
        while done < extent.size:
            lo = extent.start + done
            try:
                got = os.preadv(fd, [target[lo:extent.start + extent.size]], extent.offset + done)
            except OSError as error:
                raise damage(self.layout, extent.patch, str(error)) from error
            if got == 0:
                raise damage(self.layout, extent.patch, f"the shard ends {extent.size - done} bytes early (truncated)")
            done += got


def coalesce(rows: np.ndarray) -> Iterator[Extent]:
    """Join rows (R, 5) of (shard, offset, start, size, patch), sorted by file position, where they touch on disk."""
    shard, offset, start, size, patch = rows.T
    touches = (shard[1:] == shard[:-1]) & (offset[1:] == offset[:-1] + size[:-1])
    first = np.flatnonzero(np.r_[True, ~touches])
    total = np.add.reduceat(size, first)
    for k, num_bytes in zip(first.tolist(), total.tolist()):
        if num_bytes:
            yield Extent(int(shard[k]), int(offset[k]), int(start[k]), num_bytes, int(patch[k]))
