"""Patches kept decoded in memory: each is read and decoded when it is first asked for, and copied from there ever after.

    gpu    on the device: a batch is a gather there, nothing crosses the bus again
    ram    in host memory, page-locked where the device is a GPU: a batch is a gather by the reader's threads and one copy
    none   nothing is kept: files are read as needed, and what the page cache holds costs a copy and the decoding

Every rank keeps the patches of its split whole, for in each epoch it may be shown any of them; they are not divided among ranks. What is
kept are the stored integers, so a batch is bitwise the same whatever the tier.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from dsengine.data.layout import ChunkLayout
from dsengine.data.native import SLACK, gather
from dsengine.data.pipeline import Patches, RawPipeline, open_pipeline
from dsengine.errors import UsageError

Wanted = Literal["auto", "gpu", "ram", "none"]
_NOWHERE = -1
SHARE = 2  # of what is free, `auto` takes at most one part in so many: the rest is for training and for everybody else


class Tier(NamedTuple):
    """Where patches are kept, and why there."""

    kind: str  # gpu | ram | none
    reason: str


class Free(NamedTuple):
    """Bytes that could be taken."""

    ram: int
    gpu: int | None  # None: the device is no GPU


def choose_tier(wanted: str, num_bytes: int, free: Free, *, ranks: int = 1) -> Tier:
    """Where `num_bytes` of decoded patches are kept by each of the `ranks` of this machine. UsageError where `wanted` cannot be had."""
    if wanted not in get_args(Wanted):
        raise UsageError(f"resident: {wanted!r} is not legal: {', '.join(get_args(Wanted))}")
    for kind, available in (("gpu", free.gpu), ("ram", free.ram // ranks)):
        if wanted == kind:
            return _asked_for(kind, num_bytes, available)
        if wanted == "auto" and available is not None and num_bytes * SHARE <= available:
            return Tier(kind, f"{_gb(num_bytes)} decoded, at most half of the {_gb(available)} free{_each(ranks, kind)}")
    if wanted == "none":
        return Tier("none", "as asked")
    return Tier("none", f"{_gb(num_bytes)} decoded are more than half of the free memory ({_gb(free.ram // ranks)}{_each(ranks, 'ram')}"
                        + ("" if free.gpu is None else f", GPU {_gb(free.gpu)}") + ")")


def _asked_for(kind: str, num_bytes: int, available: int | None) -> Tier:
    if available is None:
        raise UsageError("resident: 'gpu' on a CPU; legal: auto, ram, none")
    if num_bytes > available:
        raise UsageError(f"resident: {kind!r} takes {_gb(num_bytes)} of decoded patches a rank, {_gb(available)} are free; legal here: auto, none")
    return Tier(kind, f"as asked, {_gb(num_bytes)} decoded")


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def _each(ranks: int, kind: str) -> str:
    return f" to each of {ranks} ranks" if ranks > 1 and kind == "ram" else ""


def free_memory(device: torch.device) -> Free:
    """What this process could still take: of the machine, of its control group, of the GPU."""
    available = next(int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    gpu = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return Free(min(available, _left_in_group(Path("/sys/fs/cgroup"))), gpu)


def _left_in_group(group: Path) -> float:
    """Bytes below the limit of a control group (version 2), its page cache counted as free; infinite where there is no limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["file"]
    except (OSError, KeyError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else max(0, int(limit) - used + int(cached))


def open_kept(layouts: Sequence[ChunkLayout], rows: np.ndarray, tier: Tier, *, max_batch: int, num_threads: int, device: torch.device) -> Patches:
    """What reads patches `rows` (N,) int64, ascending, of `layouts` for `device`, and keeps them where `tier` says."""
    host = torch.device("cpu")
    if tier.kind == "none":
        return open_pipeline(layouts, max_batch=max_batch, num_threads=num_threads, device=device)
    source = open_pipeline(layouts, max_batch=max_batch, num_threads=num_threads, device=device if tier.kind == "gpu" else host)
    if tier.kind == "gpu":
        return ResidentPipeline(source, rows, DeviceStore(layouts, len(rows), device))
    return ResidentPipeline(source, rows, HostStore(layouts, len(rows), max_batch=max_batch, num_threads=num_threads, pinned=device.type == "cuda"))


class HostStore:
    """Patches in host memory, in the order in which they came; gathered into one slab an array by `num_threads` threads."""

    def __init__(self, layouts: Sequence[ChunkLayout], count: int, *, max_batch: int, num_threads: int, pinned: bool) -> None:
        # The library wants bytes after the last chunk. Pages that nothing was written to cost nothing, unless they are locked.
        flat = [_numbers(count * layout.patch_bytes // 2 + SLACK, pinned=pinned) for layout in layouts]
        self._kept = [x[:-SLACK].view(count, *layout.patch_shape) for x, layout in zip(flat, layouts, strict=True)]
        self._slabs = [torch.empty((max_batch, *layout.patch_shape), dtype=torch.int16, pin_memory=pinned) for layout in layouts]
        self._num_threads = num_threads

    def add(self, source: RawPipeline, ids: np.ndarray, places: slice) -> tuple[Tensor, ...]:
        """Read patches `ids` (B,) int64 straight to `places`, and give them as they lie there."""
        outs = tuple(kept[places] for kept in self._kept)
        source.read(ids, outs)
        return outs

    def get(self, at: np.ndarray) -> tuple[Tensor, ...]:
        """The patches of places `at` (B,) int64, overwritten by the next call."""
        found = tuple(slab[:len(at)] for slab in self._slabs)
        for kept, out in zip(self._kept, found):
            gather(kept.numpy(), at, out.numpy(), num_threads=self._num_threads)
        return found


def _numbers(count: int, *, pinned: bool) -> Tensor:
    """(count,) int16 of any value. NumPy asks for huge pages, which take 512 times fewer faults to fill in."""
    return torch.empty(count, dtype=torch.int16, pin_memory=True) if pinned else torch.from_numpy(np.empty(count, np.int16))


class DeviceStore:
    """Patches on the device; everything in the order of the stream of whoever calls."""

    def __init__(self, layouts: Sequence[ChunkLayout], count: int, device: torch.device) -> None:
        self._kept = [torch.empty((count, *layout.patch_shape), dtype=torch.int16, device=device) for layout in layouts]
        self._device = device

    def add(self, source: Patches, ids: np.ndarray, places: slice) -> tuple[Tensor, ...]:
        """Read patches `ids` (B,) int64 to `places`, and give them as they lie there."""
        outs = tuple(kept[places] for kept in self._kept)
        with source.lease(ids) as raw:
            for out, x in zip(outs, raw, strict=True):
                out.copy_(x)
        return outs

    def get(self, at: np.ndarray) -> tuple[Tensor, ...]:
        """The patches of places `at` (B,) int64, in memory of their own."""
        where = torch.from_numpy(at).to(self._device)
        return tuple(kept.index_select(0, where) for kept in self._kept)


class ResidentPipeline:
    """Patches `rows` out of `store`, which `source` fills as they are asked for. One user at a time."""

    def __init__(self, source: Patches, rows: np.ndarray, store: HostStore | DeviceStore) -> None:
        self._source: Patches | None = source
        self._rows, self._store = rows, store
        self._place = np.full(len(rows), _NOWHERE)  # of each row in the store
        self._count = 0
        self._open = ExitStack()
        self._open.enter_context(source)

    @contextmanager
    def lease(self, ids: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
        """Stored integers of patches `ids` (B,) int64, B >= 1, each one of `rows`: (B, C, H, W) int16 for each array, good within the context.

        Raises RunError for damaged chunks; what was kept before stays.
        """
        at = np.searchsorted(self._rows, ids)
        absent = at[self._place[at] == _NOWHERE]
        fresh = absent if len(absent) == len(at) == len(np.unique(at)) else np.unique(absent)
        added = self._add(fresh) if len(fresh) else ()
        yield added if fresh is absent else self._store.get(self._place[at])
        if self._count == len(self._rows) and self._source is not None:
            self._source = None  # its threads, tables and slabs have done their work
            self._open.close()

    def _add(self, fresh: np.ndarray) -> tuple[Tensor, ...]:
        places = slice(self._count, self._count + len(fresh))
        added = self._store.add(self._source, self._rows[fresh], places)
        self._place[fresh] = np.arange(places.start, places.stop)
        self._count = places.stop
        return added

    def __enter__(self) -> "ResidentPipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
