"""Compressed chunk bytes by shard index, a few reads at a time into a reused buffer; no zarr-python per patch.

Files are read one extent after the other straight into the buffer: the page cache answers at once. Objects are read many at once,
and over small gaps: a request costs tens of milliseconds whatever its size.

A shard file is inner chunks in any order and a table of (offset, size), 16 bytes a chunk (`corpus.shards`). A chunk
without an entry was not stored and is all fill value. One inner chunk is one patch.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dsengine.corpus.shards import MISSING, parse_table, table_bytes
from dsengine.data.layout import ChunkLayout
from dsengine.errors import RunError

GAP_BYTES = 1 << 18  # read through between two extents of an object: at 50 MB/s it takes 5 ms, less than a request


class Located(NamedTuple):
    """Where the chunks of n patches lie, in file order; each (n,) int64."""

    row: np.ndarray  # position of the patch in the batch
    patch: np.ndarray
    shard: np.ndarray
    offset: np.ndarray  # bytes from the start of the shard
    size: np.ndarray  # bytes; 0: not stored, the patch is all fill value

    def part(self, lo: int, hi: int) -> "Located":
        """Chunks lo to hi - 1."""
        return Located(*(column[lo:hi] for column in self))


class Chunk(NamedTuple):
    """One compressed chunk; `data` is empty where it is not stored, and is overwritten by the next read."""

    layout: ChunkLayout
    row: int
    patch: int
    data: np.ndarray  # (size,) uint8

    def fail(self, problem: str) -> RunError:
        """The error of this chunk."""
        return damage(self.layout, self.patch, problem)


class Extent(NamedTuple):
    """One read: `size` bytes at `offset` of shard `shard`, the first of them patch `patch`'s."""

    shard: int
    offset: int
    size: int
    patch: int


def damage(layout: ChunkLayout, patch: int, problem: str) -> RunError:
    """The one-line error of a shard that cannot be used: file, array, patch, what is wrong, the way out."""
    path = layout.shard_path(patch // layout.patches_per_shard)
    return RunError(f"{path}: array {layout.name}, patch {patch}: {problem}; restore the file, or leave the patch out by "
                    f"`dsengine corpus verify --quarantine {layout.directory.parent}`")


class ShardIndex:
    """Offset and size of every chunk of one array; a shard's table is read and checked on first use.

    A file that is one chunk has no table: its size is all there is to know, and where it does not exist, the patch is all fill value.
    """

    def __init__(self, layout: ChunkLayout) -> None:
        self._layout = layout
        self._known = np.zeros(layout.num_shards, dtype=bool)
        self._entry = np.empty((layout.num_shards, layout.patches_per_shard, 2), dtype=np.uint64)

    def locate(self, ids: np.ndarray) -> Located:
        """The chunks of patches `ids` (B,) int64. Not for two threads at once. Raises RunError for a damaged table."""
        shard, slot = np.divmod(ids, self._layout.patches_per_shard)
        fresh = ids[~self._known[shard]]
        wanted, first = np.unique(fresh // self._layout.patches_per_shard, return_index=True)
        if wanted.size:
            read = self._read if self._layout.sharded else self._measure
            self._entry[wanted] = self._layout.storage.concurrently(lambda item: read(*item), list(zip(wanted.tolist(), fresh[first].tolist())))
            self._known[wanted] = True
        entry = self._entry[shard, slot]
        stored = entry[:, 0] != MISSING
        offset, size = np.where(stored[:, None], entry, np.uint64(0)).astype(np.int64).T
        row = np.lexsort((offset, shard))
        return Located(row, ids[row], shard[row], offset[row], size[row])

    def _read(self, shard: int, patch: int) -> np.ndarray:
        """(patches_per_shard, 2) uint64 table of `shard`; `patch` is named when it is damaged."""
        try:
            tail, size = self._layout.storage.get_tail(self._layout.shard_key(shard), size=table_bytes(self._layout.patches_per_shard))
            return parse_table(tail, size=size, num_slots=self._layout.patches_per_shard)
        except FileNotFoundError:
            raise damage(self._layout, patch, "the shard file is missing") from None
        except (OSError, ValueError) as error:
            raise damage(self._layout, patch, str(error)) from error


    def _measure(self, chunk: int, patch: int) -> np.ndarray:
        """(1, 2) uint64 entry of the file that is chunk `chunk`."""
        try:
            size = self._layout.storage.get_tail(self._layout.shard_key(chunk), size=1)[1]
        except FileNotFoundError:
            return np.full((1, 2), MISSING, dtype=np.uint64)
        except OSError as error:
            raise damage(self._layout, patch, str(error)) from error
        if size == 0:
            raise damage(self._layout, patch, "the file is empty")
        return np.array([[0, size]], dtype=np.uint64)


def read_chunks(layout: ChunkLayout, located: Located, buffer: np.ndarray) -> list[Chunk]:
    """The chunks of `located`, back to back in `buffer` (n,) uint8, which holds them all.

    Chunks that touch on disk are one read. Raises RunError naming file, array and patch when bytes are missing.
    """
    extents = list(coalesce(located))
    (_read_files if layout.storage.local else _read_objects)(layout, extents, memoryview(buffer))
    stop = np.cumsum(located.size)
    spans = zip((stop - located.size).tolist(), stop.tolist(), located.row.tolist(), located.patch.tolist())
    return [Chunk(layout, row, patch, buffer[lo:hi]) for lo, hi, row, patch in spans]


def coalesce(located: Located) -> Iterator[Extent]:
    """Join chunks in file order where one begins at the end of the one before."""
    touches = (located.shard[1:] == located.shard[:-1]) & (located.offset[1:] == located.offset[:-1] + located.size[:-1])
    first = np.flatnonzero(np.r_[True, ~touches])
    total = np.add.reduceat(located.size, first)
    for k, num_bytes in zip(first.tolist(), total.tolist()):
        if num_bytes:
            yield Extent(int(located.shard[k]), int(located.offset[k]), num_bytes, int(located.patch[k]))


def _read_files(layout: ChunkLayout, extents: list[Extent], target: memoryview) -> None:
    filled, opened, fd = 0, -1, -1
    try:
        for extent in extents:
            if extent.shard != opened:
                opened, fd = extent.shard, _reopen(layout, fd, extent)
            _fill(layout, fd, target[filled:filled + extent.size], extent)
            filled += extent.size
    finally:
        if fd >= 0:
            os.close(fd)


def _read_objects(layout: ChunkLayout, extents: list[Extent], target: memoryview) -> None:
    spans = list(_spans(extents))
    filled = 0
    for span, body in zip(spans, layout.storage.concurrently(lambda span: _fetch(layout, span), spans), strict=True):
        for extent in span:
            start = extent.offset - span[0].offset
            target[filled:filled + extent.size] = body[start:start + extent.size]
            filled += extent.size


def _spans(extents: list[Extent]) -> Iterator[list[Extent]]:
    """Extents of one object with no more than GAP_BYTES between them."""
    span: list[Extent] = []
    for extent in extents:
        if span and (extent.shard != span[-1].shard or extent.offset - span[-1].offset - span[-1].size > GAP_BYTES):
            yield span
            span = []
        span.append(extent)
    if span:
        yield span


def _fetch(layout: ChunkLayout, span: list[Extent]) -> memoryview:
    first, last = span[0], span[-1]
    size = last.offset + last.size - first.offset
    try:
        body = layout.storage.get_range(layout.shard_key(first.shard), start=first.offset, size=size)
    except OSError as error:
        raise damage(layout, first.patch, error.strerror or str(error)) from error
    if len(body) != size:
        raise damage(layout, last.patch, f"the shard ends {size - len(body)} bytes early (truncated)")
    return memoryview(body)


def _reopen(layout: ChunkLayout, fd: int, extent: Extent) -> int:
    if fd >= 0:
        os.close(fd)
    try:
        return os.open(layout.shard_path(extent.shard), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise damage(layout, extent.patch, str(error)) from error


def _fill(layout: ChunkLayout, fd: int, target: memoryview, extent: Extent) -> None:
    done = 0
    while done < extent.size:
        try:
            got = os.preadv(fd, [target[done:]], extent.offset + done)
        except OSError as error:
            raise damage(layout, extent.patch, str(error)) from error
        if got == 0:
            raise damage(layout, extent.patch, f"the shard ends {extent.size - done} bytes early (truncated)")
        done += got
