"""Progress bars on standard error, where that is a terminal; else nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Bars, one a task, and lines for the person at the terminal. A context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                   TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bars = Bars(*columns, console=self.console, refresh_per_second=4, disable=not self.console.is_terminal, transient=True)

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """One line."""
        self._bars.console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def task(self, what: str, total: int, *, done: int = 0) -> Iterator[Callable[..., None]]:
        """A bar; yields `advance(steps, note="")`."""
        task = self._bars.add_task(what, total=total, completed=done, note="")
        try:
            yield lambda steps, note="": self._bars.update(task, advance=steps, note=note)
        finally:
            self._bars.remove_task(task)
