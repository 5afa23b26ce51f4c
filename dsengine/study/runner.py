"""Carrying a study out: as many children at once as there are slots, each cell when what it needs is done."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dsengine.study import processes, state
from dsengine.study.cells import JOINT, Cell
from dsengine.study.processes import Child, Slot
from dsengine.study.progress import Progress
from dsengine.study.state import DONE, FAILED, SKIPPED, Outcome

_POLL_S = 0.05


class Runner:
    """One call of `dsengine study`. After `run`, `outcomes` has how each cell ended."""

    def __init__(self, study: Path, cells: Sequence[Cell], slots: Sequence[Slot], progress: Progress) -> None:
        self.study, self.cells, self.progress = study, {cell.id: cell for cell in cells}, progress
        self._free = list(slots)
        self._running: list[Child] = []
        self.outcomes: dict[str, Outcome] = {cell.id: state.read(study, cell) for cell in cells if state.is_finished(study, cell)}
        self._waiting = [cell for cell in cells if cell.id not in self.outcomes]

    def run(self) -> None:
        """Until all cells ended. On KeyboardInterrupt children are stopped, and it goes on."""
        self.progress.begin(list(self.cells.values()), self.outcomes)
        with _terminated_like_interrupted():
            try:
                while self._waiting or self._running:
                    self._skip()
                    self._begin()
                    self._gather()
                    self.progress.tick(self._running)
                    time.sleep(_POLL_S)
            finally:
                processes.stop(self._running)

    def _skip(self) -> None:
        """Give up cells that lack something that failed; an evaluation of several runs does without those."""
        for cell in list(self._waiting):
            lost = [need for need in cell.needs if need in self.outcomes and self.outcomes[need].status != DONE]
            vital = [need for need in lost if not _can_lack(cell, need) or len(self._lost_runs(cell)) == len(cell.runs)]
            if vital:
                of = self.outcomes[vital[0]]
                self._waiting.remove(cell)
                self._end(cell, Outcome(status=SKIPPED, name=cell.name, error=f"not done, because {of.name} failed: {of.error}"))

    def _begin(self) -> None:
        for cell in list(self._waiting):
            if not self._free:
                return
            if all(need in self.outcomes for need in cell.needs):
                self._waiting.remove(cell)
                folders = {id: self.cells[id].folder for id in cell.runs.values() if self.outcomes[id].status == DONE}
                corpora = {id: str(self.study / self.cells[id].folder) for id in cell.needs if self.cells[id].kind == "corpus"}
                child = processes.start(cell, self._free.pop(0), self.study, corpora=corpora, folders=folders)
                self._running.append(child)
                self.progress.started(cell)

    def _gather(self) -> None:
        for child in list(self._running):
            code = child.poll()
            if code is not None:
                self._running.remove(child)
                self._free.append(child.slot)
                before = state.read(self.study, child.cell)
                seconds, cpu_s, attempts = (before.seconds, before.cpu_s, before.attempts) if before else (0.0, 0.0, 0)
                self._end(child.cell, Outcome(
                    status=FAILED if code else DONE, name=child.cell.name, seconds=round(seconds + child.seconds, 2),
                    cpu_s=round(cpu_s + child.cpu_s, 2), attempts=attempts + 1, error=child.error(code) if code else "", without=tuple(self._lost_runs(child.cell))))

    def _end(self, cell: Cell, outcome: Outcome) -> None:
        self.outcomes[cell.id] = outcome
        state.write(self.study, cell, outcome)
        self.progress.ended(cell, outcome)

    def _lost_runs(self, cell: Cell) -> list[str]:
        return [name for name, of in cell.runs.items() if of in self.outcomes and self.outcomes[of].status != DONE]


def slots(*, gpus: int | None, procs: int) -> list[Slot]:
    """One a GPU, or `procs` of them on CPU."""
    if gpus:
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        return [Slot(name, 0) for name in (visible or [str(k) for k in range(gpus)])[:gpus]]
    return [Slot(None, max(1, len(os.sched_getaffinity(0)) // procs))] * procs


def _can_lack(cell: Cell, need: str) -> bool:
    return cell.kind == "evaluate" and cell.task.command in JOINT and need in cell.runs.values()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end this process as Ctrl-C does: through `finally`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
