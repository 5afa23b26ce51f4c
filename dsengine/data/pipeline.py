"""The fast path from patch numbers to raw integers in torch: chunk reader, decode; on a GPU a DALI graph that inflates there.

    CPU   ids -> patches (chunks + decode) -> int16 slab, lent to torch
    GPU   ids -> staging (chunks) -> one copy -> DALI graph (`inflate`) -> unfilter -> int16 on the device

On the CPU DALI has nothing to decode with, and a graph of one source node copies each batch once into its output buffer, whatever
`no_copy` says: 1.35 times the time without it (64 patches of 14 x 128 x 128, 2 threads). So the slab itself is lent there; hence the
lease below.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import torch

from dsengine.data.layout import ChunkLayout
from dsengine.data.patches import PatchReader


class Patches(Protocol):
    """What reads patches: a context manager that ends its threads."""

    def lease(self, ids: np.ndarray) -> AbstractContextManager[tuple[torch.Tensor, ...]]:
        """Stored integers of patches `ids` (B,) int64: (B, C, H, W) int16 for each array, good within the context."""

    def __enter__(self) -> "Patches": ...

    def __exit__(self, *_: object) -> None: ...


def open_pipeline(layouts: Sequence[ChunkLayout], *, max_batch: int, num_threads: int, device: torch.device) -> Patches:
    """What reads at most `max_batch` patches of `layouts` at once for `device`: decoded to the CPU, compressed to a GPU and decoded there."""
    if device.type != "cuda":
        return RawPipeline(layouts, max_batch=max_batch, num_threads=num_threads)
    from dsengine.data.device import open_on_device  # brings numba, half a second that a CPU need not wait

    return open_on_device(layouts, num_threads=num_threads, device=device)


class RawPipeline:
    """Reads patches of some arrays, at most `max_batch` at once, with `num_threads` threads. One user at a time."""

    def __init__(self, layouts: Sequence[ChunkLayout], *, max_batch: int, num_threads: int) -> None:
        self._reader = PatchReader(layouts, num_threads=num_threads)
        self._slabs = [torch.empty((max_batch, *layout.patch_shape), dtype=torch.int16) for layout in layouts]

    @contextmanager
    def lease(self, ids: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
        """Stored integers of patches `ids` (B,) int64, B >= 1: (B, C, H, W) int16 for each layout, in order.

        The tensors are overwritten by the next lease: use them up inside the `with`. Raises RunError for damaged chunks.
        """
        batches = tuple(slab[:len(ids)] for slab in self._slabs)
        self.read(ids, batches)
        yield batches

    def read(self, ids: np.ndarray, outs: Sequence[torch.Tensor]) -> None:
        """The same into memory of the caller: one (B, C, H, W) int16 tensor for each layout, contiguous."""
        self._reader.read(ids, [out.numpy() for out in outs])

    def close(self) -> None:
        """End the threads of the reader."""
        self._reader.close()

    def __enter__(self) -> "RawPipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
