"""Starts the sides of a job, has them agree on the loss, and asks them in turn for runs, loaders and steps."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from peers.job import Job
from safetensors.torch import save_file

WHATS = ("run", "load", "step")
LOSS_ROWS, LOSS_TOLERANCE = 16, 2e-4  # relative, float32: sides add up in other orders
WARM = 4  # batches that no rate counts: queues fill, memory is touched, code is compiled
FEWEST = 4  # steps or batches of a rate
# glibc keeps what it was given, on all sides: else big blocks are unmapped and faulted in again in each step (our engine sets it by itself).
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}


class Found(NamedTuple):
    """What a job's sides did. rates[side][what]: samples/s of each round; memory[side]: bytes of the process and its workers, at most."""

    losses: dict[str, tuple[float, float]]
    rates: dict[str, dict[str, list[float]]]
    memory: dict[str, int]


class Child:
    """A side's process; calls block until it answers."""

    def __init__(self, side: str, job: Job) -> None:
        here = Path(__file__).with_name("child.py")
        env = {**os.environ, **ALLOCATOR, "PYTHONUNBUFFERED": "1"}
        self.side, self.batch = side, job.batch
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([sys.executable, "-P", str(here), side, json.dumps(asdict(job))], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env)
        self._read()

    def ask(self, do: str, **rest: object) -> object:
        """One line there, one line back."""
        self.process.stdin.write(json.dumps({"do": do, **rest}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def rate(self, do: str, count: int) -> float:
        """Samples/s between the end of the warm-up and the last of WARM + count."""
        times = self.ask(do, count=WARM + count)
        return self.batch * count / (times[-1] - times[WARM - 1])

    def close(self) -> None:
        """End it; its workers end with their parent's pipes."""
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _read(self) -> object:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"bench/peers: the side {self.side} ended:\n{self.errors.read()[-4000:]}")
        return json.loads(line)


def measure(job: Job, *, rounds: int, seconds: float, minutes: float) -> Found:
    """Everything of one job; no round begins after `minutes`."""
    latest = time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        children = {side: Child(side, job) for side in job.sides}
        for child in children.values():
            stack.callback(child.close)
        found = Found(_agree(children, job), {side: {what: [] for what in WHATS} for side in children}, dict.fromkeys(children, 0))
        if not rounds:
            return found
        counts = {side: _counts(child, seconds) for side, child in children.items()}
        for number in range(rounds):
            if number and time.monotonic() > latest:
                break
            print(f"{job.name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            order = list(children)
            order = order[number % len(order):] + order[:number % len(order)]
            for what in WHATS:
                for side in order:
                    with _watching(children[side].process.pid) as peak:
                        rate = children[side].rate(what, counts[side][what])
                    found.rates[side][what].append(rate)
                    if what == "run":
                        found.memory[side] = max(found.memory[side], peak[0])
    return found


def _agree(children: dict[str, Child], job: Job) -> dict[str, tuple[float, float]]:
    """Loss and gradient norm of each side; SystemExit where one differs from ours."""
    with tempfile.TemporaryDirectory() as folder:
        weights, views = f"{folder}/weights.safetensors", f"{folder}/views.safetensors"
        children["ours"].ask("weights", path=weights)
        g = torch.Generator().manual_seed(1)
        save_file({str(k): torch.randn(LOSS_ROWS, 14, job.size, job.size, generator=g) for k in range(2)}, views)
        losses = {side: tuple(child.ask("loss", weights=weights, views=views)) for side, child in children.items()}
    for side, pair in losses.items():
        for what, mine, theirs in zip(("loss", "gradient norm"), losses["ours"], pair):
            if not abs(mine - theirs) <= LOSS_TOLERANCE * abs(mine):
                raise SystemExit(f"bench/peers: {job.name}: {what} of {side} is {theirs}, ours {mine}: not the same work")
    return losses


def _counts(child: Child, seconds: float) -> dict[str, int]:
    """Steps or batches that take about `seconds` for a run, half of that for its parts; from one short call each, which warms up too."""
    share = {"run": 1.0, "load": 0.5, "step": 0.5}
    return {what: max(FEWEST, round(share[what] * seconds * child.rate(what, FEWEST) / child.batch)) for what in WHATS}


@contextmanager
def _watching(pid: int) -> Iterator[list[int]]:
    """The most memory of a process and its children meanwhile: proportional set sizes, so that shared pages count once."""
    peak, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.25):
            peak[0] = max(peak[0], sum(_pss(one) for one in _family(pid)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _family(pid: int) -> list[int]:
    """`pid` and its descendants."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it ended
            pass
    return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
