"""How long a rank takes for what it does alone: from asking for a batch to the end of its encoders' forward pass.

Everything after that may wait for other ranks (losses that gather, gradients that are averaged), so that all steps take as long as the slowest
rank's. Encoders hold no collective unless `train.bn_group=global`, in which case there is nothing to tell ranks apart by.
"""

import time

import torch
from torch import nn

from dsengine.dist import World, gather_rows


class Clock:
    """Times the last step of this rank; on a GPU by events on its stream, read where the host waits anyway. Idle where a rank stands alone."""

    def __init__(self, encoders: nn.ModuleDict, *, world: World, device: torch.device) -> None:
        self._world, self._device = world, device
        self._waited = 0.0
        self._begin: float | torch.cuda.Event | None = None
        self._end: float | torch.cuda.Event | None = None
        for encoder in encoders.values() if world.size > 1 else ():
            encoder.register_forward_pre_hook(self._entered)
            encoder.register_forward_hook(self._left)

    def start(self, *, waited_s: float) -> None:
        """A step begins, for whose batch this rank waited so long."""
        self._waited, self._begin = waited_s, None

    def read(self) -> dict[str, list[float]]:
        """{"rank_s": seconds of each rank's last step}; every rank calls it. {} where there is one rank, or nothing was timed."""
        if self._world.size == 1 or self._begin is None:
            return {}
        if self._device.type == "cuda":
            self._end.synchronize()
        alone = self._begin.elapsed_time(self._end) / 1e3 if self._device.type == "cuda" else self._end - self._begin
        every = gather_rows(torch.tensor([self._waited + alone], dtype=torch.float64, device=self._device), self._world.group)
        return {"rank_s": [round(seconds, 6) for seconds in every.tolist()]}

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _entered(self, encoder: nn.Module, args: tuple) -> None:
        if self._begin is None:
            self._begin = self._now()

    def _left(self, encoder: nn.Module, args: tuple, output: object) -> None:
        self._end = self._now()
