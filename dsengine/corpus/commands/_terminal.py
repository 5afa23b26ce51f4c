"""What the commands print with: a console, a progress bar, the summary of a corpus."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Standard output; rich is imported late."""
    from rich.console import Console

    return Console()


def show(path: Path) -> int:
    """Print what a corpus holds; returns exit code 0."""
    from dsengine.corpus import open_corpus
    from dsengine.corpus.report import print_info

    print_info(open_corpus(path), console())
    return 0


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields `advance(done, total)`."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
