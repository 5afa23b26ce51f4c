"""SIGTERM and SIGUSR1 ask a run to save and end; every rank must do that after the same step.

A signal reaches ranks at different moments, or only one of them. So each step every rank begins a gloo all-reduce (the greatest signal number
seen) and reads the result of the step before, which has arrived while this step ran: the answer is the same everywhere, one step late, and neither
host nor device waits. On GPUs this group is apart from NCCL's, so a step gets no device work and no synchronisation from it.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from dsengine.errors import Stopped

if TYPE_CHECKING:  # the command line is within `before_the_first_step` while torch is being imported
    from dsengine.dist import Exchange, World

ASKED = (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Notes these signals while it is entered; a second one changes nothing, SIGKILL and Ctrl-C still end the process."""

    def __init__(self, world: "World", *, timeout_s: float) -> None:
        from dsengine import dist

        self._seen = 0
        self._before: dict[int, object] = {}
        self._group = dist.side_group(world, timeout_s=timeout_s)
        self._exchange: Exchange | None = None

    def __enter__(self) -> "Stop":
        self._before = _handled_by(self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._seen = self._seen or number

    def asked(self) -> str:
        """The signal's name once the run should end after this step, else "". To be called once a step, by every rank."""
        number = self._seen
        if self._group is not None:
            from dsengine import dist

            before, self._exchange = self._exchange, dist.begin_max(self._seen, self._group)
            number = 0 if before is None else before.result()
        return signal.Signals(number).name if number else ""


class _Asked(BaseException):
    """Nothing that handles errors may take it for one."""


@contextmanager
def before_the_first_step() -> Iterator[None]:
    """Within, where no `Stop` is entered, these signals end what is going on at once, as Stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Asked(signal.Signals(number).name)

    before = _handled_by(interrupt)
    try:
        yield
    except _Asked as asked:
        raise Stopped(f"stopped by {asked} outside of training, no step is lost; the same command with `--resume auto` goes on") from None
    finally:
        _restore(before)


def _handled_by(handler: Callable[[int, FrameType | None], None]) -> dict[int, object]:
    """Have `handler` called; what was called before. Python refuses handlers outside of the main thread: then nobody asks."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in ASKED}


def _restore(handlers: dict[int, object]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
