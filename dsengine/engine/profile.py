"""`--profile`: where a step goes. A few steps after a warm-up are traced, then training goes on.

RUN/profile/trace.json      torch's profiler, for chrome://tracing or https://ui.perfetto.dev
RUN/profile/steps.json      the table below and what it was made of

The table divides the time of a step among its parts, each moment to one of them, so that they sum to the step (`engine.timeline`). Loading goes on
behind the step in other threads: what the step pays for it is its waiting, and what it takes by itself is measured afterwards, batch after batch.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from dsengine.data.sample import Batch
from dsengine.dist import World
from dsengine.engine.timeline import ENCODER, WAIT, Event, parts_of
from dsengine.errors import RunError

WARM, BARE, TRACED = 5, 5, 5  # steps: unlooked at, timed without the tracer, traced
NEEDED = WARM + BARE + TRACED


class Profiler:
    """A context manager beside the loop, which tells it of every step that is done."""

    def __init__(self, run: Path, method: nn.Module, *, device: torch.device, world: World) -> None:
        self._folder, self._device, self._world = run / "profile", device, world
        self._encoders = list(method.encoders.values())
        self._count, self._from, self._bare_s = 0, 0.0, 0.0
        self._handles: list[Any] = []
        self._inside: list[Any] = []  # ranges that are open
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self._tracer = profile(activities=activities, acc_events=True)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, each wait for one on the trace."""
        while True:
            with record_function(WAIT):
                batch = next(batches)
            yield batch

    def step_done(self) -> str:
        """A step is over. A sentence when it was the last to be traced and the profile is written, else ""."""
        self._count += 1
        if self._count == WARM:
            self._from = self._now()
        if self._count == WARM + BARE:
            self._bare_s = (self._now() - self._from) / BARE
            for encoder in self._encoders:
                self._handles += [encoder.register_forward_pre_hook(self._enter), encoder.register_forward_hook(self._leave)]
            self._tracer.start()
            self._from = self._now()
        if self._count != NEEDED:
            return ""
        seconds = self._now() - self._from
        self._tracer.stop()
        self.__exit__()
        self._folder.mkdir(exist_ok=True)
        self._tracer.export_chrome_trace(str(self._folder / "trace.json"))
        parts = parts_of(_events(self._tracer), ranks=self._world.size, seconds=seconds)
        found = {"steps": TRACED, "step_s": self._bare_s, "traced_step_s": seconds / TRACED,
                 "parts_s": {name: s / TRACED for name, s in parts.items()}}
        write(self._folder.parent, found)
        return f"traced {TRACED} steps into {self._folder}"

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _enter(self, encoder: nn.Module, args: tuple) -> None:
        if encoder.training:  # an evaluation between two steps is none of them
            self._inside.append(record_function(ENCODER))
            self._inside[-1].__enter__()

    def _leave(self, encoder: nn.Module, args: tuple, output: object) -> None:
        if encoder.training:
            self._inside.pop().__exit__(None, None, None)


def write(run: Path, found: dict[str, Any]) -> None:
    """RUN/profile/steps.json."""
    (run / "profile" / "steps.json").write_text(json.dumps(found, indent=1))


def read(run: Path) -> dict[str, Any]:
    """RUN/profile/steps.json; RunError where the run traced nothing."""
    try:
        return json.loads((run / "profile" / "steps.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{run}: holds no profile ({error}); `--profile` takes {NEEDED} steps") from error


def lines(found: dict[str, Any]) -> list[str]:
    """The profile as a table for a terminal."""
    step = found["traced_step_s"]
    told = [f"where a step goes: {found['step_s'] * 1e3:.2f} ms a step, {step * 1e3:.2f} ms while traced ({found['steps']} steps)"]
    told += [f"  {name:<14} {s * 1e3:10.2f} ms {s / step:7.1%}" for name, s in found["parts_s"].items()]
    told.append(f"  {'sum':<14} {sum(found['parts_s'].values()) * 1e3:10.2f} ms")
    if loader := found.get("loader_s"):
        told.append("behind it, a batch by itself: " + ", ".join(f"{name} {s * 1e3:.2f} ms" for name, s in loader.items()))
    if "flops" in found:
        told.append(f"achieved {found['flops'] / found['step_s'] / 1e12:.3g} TFLOP/s, {found['moved_bytes'] / found['step_s'] / 1e9:.3g} GB/s "
                    f"(operations and bytes counted, {found['flops'] / 1e9:.4g} GFLOP and {found['moved_bytes'] / 1e6:.4g} MB a step of this rank)")
    if "bound_s" in found:
        told.append(f"{found['bound_s'] / found['step_s']:.1%} of the serial bound, {found['bound_s'] * 1e3:.2f} ms: {found['bound']}")
    return told


def _events(tracer: profile) -> list[Event]:
    """What was traced, in seconds; a kernel with the moment at which it was launched."""
    raw = tracer.events()
    launched = {e.id: e.time_range.start for e in raw if e.device_type == torch.autograd.DeviceType.CPU and "Launch" in e.name}
    main = next((e.thread for e in raw if e.name == WAIT), None)
    found = []
    for e in raw:
        on_device = e.device_type != torch.autograd.DeviceType.CPU
        at = launched.get(e.id) if on_device else None
        found.append(Event(e.name, e.time_range.start / 1e6, e.time_range.end / 1e6, main=not on_device and e.thread == main, device=on_device,
                           launched=None if at is None else at / 1e6))
    return found
