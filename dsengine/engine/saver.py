"""Checkpoints written in a thread: beside the steps, which wait for a copy of the state in host memory, or while they wait."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from dsengine.corpus.schema import Contract
from dsengine.corpus.shards import sync
from dsengine.engine import checkpoint
from dsengine.engine.checkpoint import State
from dsengine.engine.log import METRICS


class Saver:
    """Writes a run's checkpoints in a thread, at most one at a time. A context manager: leaving it waits for the one on its way.

    beside: `start` leaves it on its way, off the critical path. Else it waits, and a kill costs at most the steps since the last one.

    What goes wrong in the thread is raised by the next call of any method, else on leaving (unless another error is on its way out).
    The copies live on between checkpoints: host memory of once the model and the optimiser's state.
    """

    def __init__(self, run: Path, *, beside: bool, keep: int, config: dict, contract: Contract, inputs: dict[str, dict]) -> None:
        self._run, self._beside, self._keep = run, beside, keep
        self._fixed = {"config": config, "contract": contract, "inputs": inputs}
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wait()
        if error is None:
            self.check()

    def start(self, step: int, *, method: nn.Module, optimizer: torch.optim.Optimizer, loader: dict[str, int], heldout_loss: float | None) -> None:
        """Copy the state as it is now and begin to write it. Waits for the checkpoint before, and for this one unless it goes beside the steps."""
        self.finish()
        state = {"model": method.state_dict(), "optimizer": optimizer.state_dict()}
        copies = self._copied(state, "") if self._beside or torch.cuda.is_initialized() else state  # which nobody changes while the step waits
        ready = torch.cuda.current_stream().record_event() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        parts = State(step, copies["model"], copies["optimizer"], dict(loader), heldout_loss)
        self._thread = threading.Thread(target=self._write, args=(parts, ready), name="checkpoint", daemon=True)
        self._thread.start()
        if not self._beside:
            self.finish()

    def check(self) -> None:
        """Raise what went wrong, without waiting."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self) -> None:
        """Wait for the checkpoint on its way, and raise what went wrong."""
        self._wait()
        self.check()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: State, ready: torch.cuda.Event | None) -> None:
        try:
            if ready is not None:
                ready.synchronize()
            sync(self._run / METRICS)  # a checkpoint refers to the records before it
            checkpoint.write(self._run, state, keep=self._keep, **self._fixed)
        except BaseException as error:
            self._error = error

    def _copied(self, value: Any, name: str) -> Any:
        """`value` with every tensor in it copied to this object's memory, strides kept; on CUDA the copy may still be on its way."""
        if isinstance(value, Tensor):
            return self._copy(name, value.detach())
        if isinstance(value, dict):
            return {key: self._copied(part, f"{name}/{key}") for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copied(part, f"{name}/{k}") for k, part in enumerate(value))
        return value

    def _copy(self, name: str, value: Tensor) -> Tensor:
        copy = self._copies.get(name)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype or copy.stride() != value.stride():
            # Pinned, so that the device copies while the host goes on.
            copy = self._copies[name] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return copy.copy_(value, non_blocking=True)
