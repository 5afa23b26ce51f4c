"""Writes a corpus shard by shard so that a build killed at any moment continues, and ends with the same bytes.

Each shard file is written under a temporary name, synced and renamed. When all files of 64 patches are there, one journal
entry with their index columns and integer sums follows in the same way; what has no entry is written again. `finish` turns the
journal into index, splits and statistics, marks the root complete and removes the journal.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dsengine.corpus.build import journal
from dsengine.corpus.build.grid import SplitRule, split_rule
from dsengine.corpus.build.metadata import corpus_store, dump
from dsengine.corpus.build.shard import Block, Outline, Spread, encode_shard, on_disk, write_shard
from dsengine.corpus.build.summary import finished_store
from dsengine.corpus.schema import Layout
from dsengine.corpus.storage import Url, storage_at
from dsengine.errors import UsageError

__all__ = ["Block", "CorpusWriter"]


class CorpusWriter:
    """Writes `num_patches` patches in row order to `path`, a new folder or URL or one that an equal build left unfinished.

    `made_by` (JSON) goes to the root attributes; an unfinished build continues only under an equal layout, number and `made_by`.
    Raises UsageError when `path` holds anything else, or cannot be written. `overwrite` first removes a corpus that is at `path`,
    complete or not, and never anything else.
    """

    def __init__(self, path: str | os.PathLike[str] | Url, *, layout: Layout, num_patches: int, made_by: dict[str, Any],
                 overwrite: bool = False, seed: int = 0, threads: int | None = None, columns: Mapping[str, str] = MappingProxyType({}),
                 split: str | SplitRule = "block") -> None:
        if num_patches < 1:
            raise UsageError(f"num_patches={num_patches}: a corpus has at least 1 patch")
        self.outline = Outline(layout=layout, num_patches=num_patches, made_by=made_by, seed=seed, columns=dict(columns),
                               split=split_rule(split))
        self.storage = storage_at(path)
        self._lock = journal.claim(self.storage, self.outline.header(), overwrite=overwrite)
        self.worker_name = journal.admit(self.storage)
        self._pool = ThreadPoolExecutor(threads or min(4, len(os.sched_getaffinity(0))), thread_name_prefix="dsengine-encode")
        root = journal.described(self.storage)
        self._complete = bool(root.get("complete"))  # killed while it removed the journal
        finished = range(self.outline.num_shards) if self._complete else journal.finished_shards(self.storage)
        self._missing = set(range(self.outline.num_shards)).difference(finished)
        self._next = 0
        self.num_written = num_patches - sum(len(self.outline.rows(shard)) for shard in self._missing)  # patches on disk
        if not root:
            content = corpus_store(layout, num_patches, root={"complete": False, "made_by": made_by}, attributes={})
            on_disk(self.path, lambda: dump(content, self.storage))

    @property
    def path(self) -> Path | Url:
        """Where the corpus is written."""
        return self.storage.path

    @property
    def missing(self) -> list[int]:
        """Shards that are not yet on disk, ascending."""
        return sorted(self._missing)

    @property
    def next_row(self) -> int:
        """First row that is not yet on disk; `num_patches` when all are."""
        rows = self.outline.rows(self._next_shard())
        return min(rows.start, self.outline.num_patches)

    @property
    def next_count(self) -> int:
        """Patches that the next block must hold: a full shard, or what is left."""
        return len(self.outline.rows(self._next_shard()))

    @property
    def spread(self) -> Spread:
        """`map` over this writer's encoding threads."""
        return self._pool.map

    def append(self, block: Block) -> None:
        """Write one shard of every array. Raises ValueError on a wrong shape or dtype, RunError when the disk refuses."""
        shard = self._next_shard()
        write_shard(self.storage, shard, encode_shard(self.outline, shard, block, spread=self.spread))
        self.written(shard)

    def written(self, shard: int) -> None:
        """Note that somebody has written a shard."""
        self._missing.remove(shard)
        self.num_written += len(self.outline.rows(shard))

    def _next_shard(self) -> int:
        while self._next not in self._missing and self._next < self.outline.num_shards:
            self._next += 1
        return self._next

    def finish(self) -> Path | Url:
        """Write index, splits and statistics and mark the corpus complete. Returns its path."""
        if self._missing:
            raise ValueError(f"finish at row {self.next_row} of {self.outline.num_patches}")
        if not self._complete:
            content = finished_store(self.outline, journal.entries(self.storage, self.outline.num_shards))
            on_disk(self.path, lambda: dump(content, self.storage))
            self._complete = True
        on_disk(self.path / journal.JOURNAL, lambda: journal.discard(self.storage))
        self.close()
        return self.path

    def close(self) -> None:
        """Let go of the place; what is written stays and the next writer continues from it."""
        self._pool.shutdown()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
