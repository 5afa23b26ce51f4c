"""What a study says while it runs: a bar and the running cells on a terminal, else a line for each cell that begins or ends."""

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from dsengine.engine.log import read_metrics
from dsengine.study.cells import Cell
from dsengine.study.processes import Child
from dsengine.study.state import DONE, Outcome

_EVERY_S = 1.0  # between two looks at what runs


class Progress:
    """Cells done, running and failed, and the time that is left. A context manager."""

    def __init__(self, *, num_slots: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        self._bars = Bars(*columns, console=self.console, refresh_per_second=4, disable=not self.console.is_terminal)
        self._num_slots, self._looked = num_slots, 0.0
        self._cells: list[Cell] = []
        self._outcomes: Mapping[str, Outcome] = {}
        self._lines: dict[str, int] = {}

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> None:
        """outcomes: of cells that ended, a mapping that grows."""
        self._cells, self._outcomes = list(cells), outcomes
        self._all = self._bars.add_task("cells", total=len(cells), completed=len(outcomes), note="")
        if outcomes:
            self.say(f"{len(outcomes)} of {len(cells)} cells are done")

    def say(self, text: str) -> None:
        """One line."""
        self._bars.console.print(text, soft_wrap=True, markup=False)

    def started(self, cell: Cell) -> None:
        """A cell began."""
        self._lines[cell.id] = self._bars.add_task(f"  {title(cell)}", total=None, note="")
        if not self.console.is_terminal:
            self.say(f"begun   {title(cell)}")

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """A cell ended."""
        if cell.id in self._lines:
            self._bars.remove_task(self._lines.pop(cell.id))
        what = f"done    {title(cell)} in {duration(outcome.seconds)}" if outcome.status == DONE else f"{outcome.status:<7} {title(cell)}: {outcome.error}"
        self.say(f"{what}  [{self.summary()}]")
        self._bars.update(self._all, completed=len(self._outcomes), note=self.summary())

    def tick(self, running: Sequence[Child]) -> None:
        """Look at what runs, now and then."""
        if self._bars.disable or time.monotonic() - self._looked < _EVERY_S:
            return
        self._looked = time.monotonic()
        for child in running:
            self._bars.update(self._lines[child.cell.id], note=_note(child))
        self._bars.update(self._all, note=self.summary())

    def summary(self) -> str:
        """Counts, and the time left by the mean duration of cells of the same kind."""
        bad = sum(outcome.status != DONE for outcome in self._outcomes.values())
        left = remaining(self._cells, self._outcomes, num_slots=self._num_slots)
        counts = f"{len(self._outcomes) - bad} done, {len(self._lines)} running, {bad} failed of {len(self._cells)}"
        return counts + (f", about {duration(left)} left" if left else "")


def remaining(cells: Sequence[Cell], outcomes: Mapping[str, Outcome], *, num_slots: int) -> float | None:
    """Seconds, were every cell as long as the mean of those of its kind and encoder (or kind) that are done; None where that is not known."""
    known: dict[tuple, list[float]] = {}
    for cell in cells:
        outcome = outcomes.get(cell.id)
        if outcome is not None and outcome.status == DONE:
            for key in _alike(cell):
                known.setdefault(key, []).append(outcome.seconds)
    total = 0.0
    for cell in cells:
        if cell.id not in outcomes:
            found = next((known[key] for key in _alike(cell) if key in known), None)
            if found is None:
                return None
            total += sum(found) / len(found)
    return total / num_slots


def title(cell: Cell) -> str:
    """For people."""
    what = {"corpus": "corpus", "train": "train", "evaluate": f"evaluate {cell.about.get('evaluation')}"}[cell.kind]
    return f"{what} {cell.name}"


def duration(seconds: float) -> str:
    """h:mm:ss, or seconds."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _alike(cell: Cell) -> list[tuple]:
    kind = (cell.kind, cell.about.get("evaluation"))
    return [(*kind, cell.about.get("encoder"), cell.about.get("method")), (*kind, cell.about.get("encoder")), kind]


def _note(child: Child) -> str:
    if child.cell.kind != "train":
        return ""
    records = read_metrics(child.folder)
    return f"epoch {records[-1]['epoch'] + 1} of {child.cell.task['train']['epochs']}" if records else ""
