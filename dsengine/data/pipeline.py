"""The fast path from patch numbers to raw integers in torch: chunk reader, decode, DALI.

    ids -> patches (chunks + decode) -> int16 slab -> DALI graph -> torch (DLPack)

On the CPU DALI has no inflate, so patches are decoded before the graph, whose only node is the source; a GPU's graph
(`inflate`) has the same source, of compressed chunks, and inflates them.
DALI 2.4 copies a CPU source's batch once into its output buffer, whatever `no_copy` says (3.4 ms for 64 patches of
14 x 128 x 128 on two threads). The non-dynamic executor keeps that buffer and overwrites it in its next run; the dynamic
one allocates one for each batch, which took 1.5 times as long, in page faults. Hence the lease below.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

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


def source(name: str, *, device: str, dtype: types.DALIDataType, ndim: int) -> DataNode:
    """A node that is fed a batch at once by `name`, not copied where DALI can do without."""
    return fn.external_source(name=name, device=device, batch=True, no_copy=True, dtype=dtype, ndim=ndim)


def raw_graph(names: Sequence[str]) -> tuple[DataNode, ...]:
    """One source of decoded (C, H, W) int16 samples for each array, fed by name."""
    return tuple(source(name, device="cpu", dtype=types.INT16, ndim=3) for name in names)


class RawPipeline:
    """Reads patches of some arrays, at most `max_batch` at once, with `num_threads` threads. One user at a time."""

    def __init__(self, layouts: Sequence[ChunkLayout], *, max_batch: int, num_threads: int) -> None:
        self._names = tuple(layout.name for layout in layouts)
        self._reader = PatchReader(layouts, num_threads=num_threads)
        self._slabs = [np.empty((max_batch, *layout.patch_shape), dtype=np.int16) for layout in layouts]
        self._dali = Pipeline(batch_size=max_batch, num_threads=num_threads, device_id=None, prefetch_queue_depth=1,
                              exec_dynamic=False)
        with self._dali:
            self._dali.set_outputs(*raw_graph(self._names))
        self._dali.build()

    @contextmanager
    def lease(self, ids: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
        """Stored integers of patches `ids` (B,) int64, B >= 1: (B, C, H, W) int16 for each layout, in order.

        The tensors are overwritten by the next lease: use them up inside the `with`. Raises RunError for damaged chunks.
        """
        batches = [slab[:len(ids)] for slab in self._slabs]
        self._reader.read(ids, batches)
        for name, batch_BCHW in zip(self._names, batches, strict=True):
            self._dali.feed_input(name, batch_BCHW)
        self._dali.schedule_run()
        outputs = self._dali.share_outputs()
        try:
            yield tuple(torch.from_dlpack(out.as_tensor()) for out in outputs)
        finally:
            del outputs
            self._dali.release_outputs()

    def close(self) -> None:
        """End the threads of the reader and of DALI."""
        self._reader.close()
        self._dali = None

    def __enter__(self) -> "RawPipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
