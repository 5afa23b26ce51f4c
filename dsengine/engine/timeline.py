"""From what a profiler saw to how long each part of a step takes: every moment belongs to one part, so the parts sum to the whole.

    load        the loop waits for its batch
    forward     encoders
    loss        from the end of the last encoder to the backward pass: heads, scores, loss
    backward    from its first to its last node
    communication   collectives that nothing hides: those in the loss, and after backward the wait for the last gradients
    optimiser   the update
    other       the rest: checks of gradients, logging, the loop, and on a GPU the time in which it has nothing to do
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

ENCODER, WAIT = "dsengine: encoder", "dsengine: waiting for data"
PARTS = ("load", "forward", "loss", "backward", "communication", "optimiser", "other")
_NODE = "autograd::engine::evaluate_function"
_COLLECTIVE = ("c10d::", "gloo:", "nccl:", "ncclDevKernel", "ncclKernel", "record_param_comms")
_UPDATE = ("Optimizer.step", "Optimizer.zero_grad")

Span = tuple[float, float]


class Event(NamedTuple):
    """One thing that took time, in seconds."""

    name: str
    start: float
    end: float
    main: bool = True  # in the thread of the loop
    device: bool = False  # a kernel
    launched: float | None = None  # of a kernel: when the host asked for it


def parts_of(events: Sequence[Event], *, ranks: int, seconds: float) -> dict[str, float]:
    """{part: seconds} of steps that took `seconds` together; with kernels, the device's time, else the host's."""
    host = _host_spans(events, ranks=ranks)
    kernels = [e for e in events if e.device]
    found = _device_parts(kernels, _part_at(host)) if kernels else {part: _length(spans) for part, spans in _disjoint(host).items()}
    if kernels:
        # The device idles while the host waits for data, unless work is queued: the wait is what no kernel covers.
        busy = _union([(e.start, e.end) for e in kernels])
        found["load"] = sum(_length(_minus([span], busy)) for span in host["load"])
    found = {part: found.get(part, 0.0) for part in PARTS}
    return {**found, "other": found["other"] + max(0.0, seconds - sum(found.values()))}


def _host_spans(events: Sequence[Event], *, ranks: int) -> dict[str, list[Span]]:
    """Where the loop's thread is when; those named first have the moment where several claim it."""
    main = [e for e in events if e.main]
    nodes = sorted((e.start, e.end) for e in events if e.name.startswith(_NODE))
    encoders = sorted((e.start, e.end) for e in main if e.name == ENCODER)
    updates = sorted((e.start, e.end) for e in main if e.name.startswith(_UPDATE))
    waits = sorted((e.start, e.end) for e in main if e.name == WAIT)
    backward, loss, tail = [], [], []
    for k, (begin, _) in enumerate(waits):
        end = waits[k + 1][0] if k + 1 < len(waits) else float("inf")
        mine = [span for span in nodes if begin <= span[0] < end]
        before = [span[1] for span in encoders if begin <= span[0] < end]
        if mine:
            last = max(span[1] for span in mine)
            backward.append((mine[0][0], last))
            if before and before[-1] < mine[0][0]:
                loss.append((before[-1], mine[0][0]))
            following = [e.start for e in main if last <= e.start < end]
            if ranks > 1 and following:
                tail.append((last, min(following)))
    collectives = [(e.start, e.end) for e in main if e.name.startswith(_COLLECTIVE)] + tail
    return {"load": waits, "communication": collectives, "optimiser": updates, "backward": backward, "forward": encoders, "loss": loss}


def _disjoint(spans: dict[str, list[Span]]) -> dict[str, list[Span]]:
    taken: list[Span] = []
    found = {}
    for part, mine in spans.items():
        found[part] = _minus(_union(mine), taken)
        taken = _union([*taken, *mine])
    return found


def _part_at(spans: dict[str, list[Span]]) -> Callable[[float], str]:
    def part_at(moment: float) -> str:
        return next((part for part, mine in spans.items() for start, end in mine if start <= moment <= end), "other")

    return part_at


def _device_parts(kernels: Sequence[Event], part_at: Callable[[float], str]) -> dict[str, float]:
    """Time in which kernels of each part run; where several do at once the first of these has it, communication last: that is what hides it."""
    spans: dict[str, list[Span]] = {part: [] for part in ("forward", "loss", "backward", "optimiser", "other", "communication")}
    for e in kernels:
        part = "communication" if e.name.startswith(_COLLECTIVE) else part_at(e.start if e.launched is None else e.launched)
        spans["other" if part == "load" else part].append((e.start, e.end))
    return {part: _length(mine) for part, mine in _disjoint(spans).items()}


def _union(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _minus(spans: Sequence[Span], taken: Sequence[Span]) -> list[Span]:
    """`spans` (disjoint) without what `taken` (disjoint, ascending) covers."""
    left = []
    for start, end in spans:
        for lo, hi in taken:
            if hi <= start or lo >= end:
                continue
            if lo > start:
                left.append((start, lo))
            start = max(start, hi)
        if start < end:
            left.append((start, end))
    return left


def _length(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)
