"""The ways a command ends early; each prints as one line. Everything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The request cannot be carried out as asked: names the argument, what came and what is legal (exit code 2)."""


class RunError(RuntimeError):
    """A legal request failed on the way: damaged data, a full disk, a non-finite loss (exit code 1)."""


class Stopped(RunError):
    """A run was asked to stop by a signal, saved itself and did: going on with it loses nothing (exit code 75, as EX_TEMPFAIL of sysexits.h)."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """`did you mean ...; legal: ...`, for the end of an error about an unknown name."""
    legal = sorted(legal)
    close = difflib.get_close_matches(name, legal, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    return f"{hint}legal: {', '.join(legal)}"
