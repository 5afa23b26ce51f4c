"""Where each rank is: a small file a rank, mapped into memory, that whoever outlives it can read.

`.ranks/00003` in the run folder is written at every step (two stores into memory, no system call) and once a second by a thread, which also
notices when this rank has come to a standstill, and then says which rank the others wait for.
"""

import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

import numpy as np
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from dsengine.data import order
from dsengine.dist import World
from dsengine.errors import RunError

FOLDER = ".ranks"
STANDSTILL = "no rank got further"  # how the message of one begins
DATA, STEP, REST, OVER = "waiting for data", "in the step", "between steps", "over"  # parts of a step
_PARTS = (REST, DATA, STEP, OVER)
_HEAD = struct.Struct("<qqqd")  # step, part, pid, when the thread last looked
_SIZE = 1024
_WAITING = ("/torch/distributed/", "/torch/autograd/", "/dsengine/dist.py")  # where the main thread stands while it waits for other ranks


class Beat(NamedTuple):
    """One rank as its file shows it."""

    rank: int
    step: int  # counted from 0; -1 before the first
    part: str
    pid: int
    alive: float  # Unix time, by the clock of its machine
    host: str
    place: str  # file, line and function of its main thread
    waits: bool  # whether that is a place where ranks wait for each other

    def where(self, batch: "Batches") -> str:
        """In words, with the samples that the rank had in hand."""
        if self.step < 0:
            return f"before its first step (pid {self.pid} on {self.host})"
        ids = batch.of(self.step, self.rank)
        return (f"at step {self.step + 1}, {self.part} (pid {self.pid} on {self.host}), "
                f"samples {', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}")


class Batches(NamedTuple):
    """What decides which samples a rank has at a step."""

    rows: np.ndarray  # of the train split
    seed: int
    global_batch: int
    ranks: int

    def of(self, step: int, rank: int) -> np.ndarray:
        """Sample ids of `rank` at `step`, counted from 0."""
        ids = order.batch_ids(self.rows, seed=self.seed, step=step, global_batch=self.global_batch)[1]
        return ids[order.local_slice(self.global_batch, rank, self.ranks)]


class Heartbeat:
    """This rank's file and the thread that keeps it; for a rank alone neither. A context manager.

    A rank that gets no further for timeout_s seconds ends its process with a line that names the missing rank.
    """

    def __init__(self, run: Path, world: World, batches: Batches, *, timeout_s: float) -> None:
        self._run, self._rank, self._batches, self._timeout_s = run, world.rank, batches, timeout_s
        self._memory: mmap.mmap | bytearray = bytearray(_SIZE)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if world.group is not None:
            self._memory = _mapped(run, world.rank)
            self._thread = threading.Thread(target=self._look, args=(threading.get_ident(),), name="heartbeat", daemon=True)
        _HEAD.pack_into(self._memory, 0, -1, 0, os.getpid(), time.time())

    def __enter__(self) -> "Heartbeat":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        struct.pack_into("<q", self._memory, 8, _PARTS.index(OVER))  # a rank that was killed never says so

    def at(self, step: int, part: str) -> None:
        """Say where this rank is; costs less than a microsecond."""
        struct.pack_into("<qq", self._memory, 0, step, _PARTS.index(part))

    def _look(self, main: int) -> None:
        seen, since = None, time.monotonic()
        every_s = min(1.0, self._timeout_s / 8)
        self._say_alive(main)
        while not self._over.wait(every_s):
            self._say_alive(main)
            now = struct.unpack_from("<qq", self._memory, 0)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._timeout_s and now[0] >= 0:
                before = {beat.rank: beat.alive for beat in read_beats(self._run, self._batches.ranks)}
                for _ in range(4):
                    self._over.wait(every_s)
                    self._say_alive(main)
                end(*standstill(read_beats(self._run, self._batches.ranks), before, self._batches, self._timeout_s))

    def _say_alive(self, main: int) -> None:
        frame = sys._current_frames().get(main)
        text = json.dumps([_host(), _place(frame), _waits(frame)]).encode()[:_SIZE - _HEAD.size - 1]
        self._memory[_HEAD.size:_HEAD.size + len(text) + 1] = text + b"\0"
        struct.pack_into("<d", self._memory, _HEAD.size - 8, time.time())
        if isinstance(self._memory, mmap.mmap):
            self._memory.flush()  # for ranks on other machines


def end(message: str, missing: list[Beat]) -> None:
    """End this process, whose main thread may hang for ever, with an error for whoever started it, and the missing ones of this machine."""
    get_error_handler().record_exception(RunError(message))
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        print(f"dsengine: {message}", file=sys.stderr, flush=True)
    for beat in missing:
        if beat.host == _host() and beat.pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(beat.pid, signal.SIGKILL)  # a launcher would ask first, and wait half a minute for an answer
    os._exit(1)


def read_beats(run: Path, ranks: int) -> list[Beat]:
    """Every rank that has a file."""
    return [beat for rank in range(ranks) if (beat := _read(run, rank)) is not None]


def standstill(beats: list[Beat], before: dict[int, float], batches: Batches, timeout_s: float) -> tuple[str, list[Beat]]:
    """Which rank the others wait for, in one line, and those ranks. before: {rank: its last sign of life, a while ago}."""
    missing = [beat for beat in beats if beat.rank in _missing(beats, before, batches.ranks)]
    head = f"{STANDSTILL} for {timeout_s:g} s (device.collective_timeout_s): "
    words = [f"rank {rank} is missing: it has no file" for rank in sorted(set(range(batches.ranks)) - {beat.rank for beat in beats})]
    words += [f"rank {beat.rank} is missing: {beat.where(batches)}, {'without a sign of life' if beat.alive == before.get(beat.rank) else beat.place}"
              for beat in missing]
    others = [beat for beat in beats if beat not in missing]
    if not words:
        return head + f"all ranks wait for each other, the network or a device hangs; rank 0 {beats[0].where(batches)}, {beats[0].place}", []
    return head + "; ".join(words) + (f"; the others wait at step {others[0].step + 1}" if others else ""), missing


def _missing(beats: list[Beat], before: dict[int, float], ranks: int) -> set[int]:
    """The ranks that differ from those that wait: silent, else behind, else busy elsewhere, else in a place where nobody waits."""
    most = max((beat.step for beat in beats), default=0)
    for differs in (lambda b: b.alive == before.get(b.rank), lambda b: b.step < most, lambda b: b.part != STEP, lambda b: not b.waits):
        found = {beat.rank for beat in beats if differs(beat)}
        if found and len(found) < ranks:
            return found
    return set()


def lost(run: Path, batches: Batches, *, wait_s: float = 2.5) -> str:
    """Which ranks ended without a word, or at least show no life for wait_s seconds, in one line."""
    before = {beat.rank: beat.alive for beat in read_beats(run, batches.ranks)}
    time.sleep(wait_s)  # meanwhile a launcher sees for itself who was killed
    gone = [f"rank {beat.rank} {beat.where(batches)}" for beat in read_beats(run, batches.ranks)
            if beat.part != OVER and beat.alive == before.get(beat.rank)]
    return "; ".join(gone) or "each rank that ended says why itself"


def clear(run: Path) -> None:
    """Forget the ranks of an earlier start."""
    for path in (run / FOLDER).glob("*"):
        path.unlink(missing_ok=True)


def killed_by(code: int) -> str:
    """The signal's name for a process's negative exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _mapped(run: Path, rank: int) -> mmap.mmap:
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    with open(folder / f"{rank:05d}", "wb+") as file:
        file.write(bytes(_SIZE))  # written, not truncated to size: a full disk must say so here, not kill by SIGBUS later
        file.flush()
        return mmap.mmap(file.fileno(), _SIZE)


def _read(run: Path, rank: int) -> Beat | None:
    try:
        data = (run / FOLDER / f"{rank:05d}").read_bytes()
        step, part, pid, alive = _HEAD.unpack_from(data)
    except (OSError, struct.error):
        return None
    try:
        host, place, waits = json.loads(data[_HEAD.size:].partition(b"\0")[0])
    except ValueError:  # not written yet, or being written
        host, place, waits = "this machine", "", False
    return Beat(rank, step, _PARTS[part], pid, alive, host, place, waits)


def _host() -> str:
    return socket.gethostname()[:64]


def _place(frame: FrameType | None) -> str:
    return "" if frame is None else f"in {frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"


def _waits(frame: FrameType | None) -> bool:
    for _ in range(4):
        if frame is None:
            return False
        if any(part in frame.f_code.co_filename for part in _WAITING):
            return True
        frame = frame.f_back
    return False
