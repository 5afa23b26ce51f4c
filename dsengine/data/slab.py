"""Host memory that a GPU copies from."""

import numpy as np
import torch


class Slab:
    """A host buffer that grows and is used again; page-locked where a GPU copies from it."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self.tensor = torch.empty(0, dtype=torch.uint8)

    @property
    def array(self) -> np.ndarray:
        """The same memory as (n,) uint8."""
        return self.tensor.numpy()

    def ensure(self, num_bytes: int) -> None:
        """Hold at least `num_bytes`, what is in it included."""
        if num_bytes > self.tensor.numel():
            old = self.tensor
            self.tensor = torch.empty(num_bytes + num_bytes // 8, dtype=torch.uint8, pin_memory=self._pinned)
            self.tensor[:old.numel()] = old
