"""Dropout whose mask belongs to the sample: a function of (seed, step, layer, sample id, view), not of batch, rank or restart."""

import torch
from torch import Tensor, nn

from dsengine.errors import UsageError
from dsengine.nn import noise


class KeyedDropout(nn.Module):
    """(V * B, ...) -> the same, each value 0 with probability `p`, else divided by 1 - p; in evaluation as it is.

    Rows are V views of the B samples that `set_keys` named, one view after the other. Without keys it refuses to train.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise UsageError(f"dropout={p}: must be in [0, 1)")
        self.p = p
        self.ids: Tensor | None = None
        self.step: Tensor | None = None  # () int64: a number would be compiled anew at every step
        self.seed, self.site = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """x with its mask."""
        if not self.training or self.p == 0:
            return x
        if self.ids is None or len(x) % len(self.ids):
            raise UsageError(f"dropout: {len(x)} rows are no whole views of the {0 if self.ids is None else len(self.ids)} samples that set_keys named")
        views = x.flatten(1).unflatten(0, (-1, len(self.ids)))
        drawn = [noise.uniform(self.ids, views.shape[2], seed=self.seed, site=self.site + k & 0xFFFFFFFF, step=self.step) for k in range(len(views))]
        return x * (torch.stack(drawn).flatten(0, 1).view(x.shape) >= self.p).to(x.dtype) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def set_keys(module: nn.Module, ids: Tensor, *, seed: int, step: int) -> None:
    """Tell every KeyedDropout in `module` whose rows come next: ids (B,) int64 of this rank, in the order of each view."""
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, KeyedDropout)]
    at = torch.full((), step, dtype=torch.int64, device=ids.device) if layers else None
    for name, layer in layers:
        layer.ids, layer.seed, layer.step, layer.site = ids, seed, at, noise.key(f"dropout.{_own_name(name)}")


def _own_name(name: str) -> str:
    """Without what DistributedDataParallel and torch.compile put before it: a wrapped method draws what it draws alone."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
