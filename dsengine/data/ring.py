"""Memory for views on the CPU that is used again: fresh pages cost as much as making the views (docs/performance.md)."""

from collections import deque

import torch
from torch import Tensor

_ALONE = 1  # references to a storage that only the ring holds


class Ring:
    """Hands out tensors, each on memory that nobody else refers to.

    Memory is free again once its last tensor is gone, views, slices and NumPy arrays of it included (torch counts them),
    so a consumer may keep a batch for as long as it likes. At most `most` blocks are remembered; those that a consumer
    keeps past that simply belong to it. One thread calls the ring; tensors may be dropped in any.
    """

    def __init__(self, most: int) -> None:
        self._blocks: deque[torch.UntypedStorage] = deque(maxlen=most)

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor whose numbers may be anything."""
        size = torch.Size(shape)
        num_bytes = size.numel() * dtype.itemsize
        for block in self._blocks:
            # Only the ring could add a reference to a block that it holds alone: nobody can come in between.
            if block.nbytes() >= num_bytes and torch._C._storage_Use_Count(block._cdata) == _ALONE:
                return torch.empty(0, dtype=dtype).set_(block, 0, size)
        made = torch.empty(size, dtype=dtype)
        self._blocks.append(made.untyped_storage())
        return made
