"""SIGTERM and SIGUSR1 ask a run to save and end; every rank must do that after the same step.

A signal reaches ranks at different moments, or only one of them. So each step every rank begins a gloo all-reduce (the greatest signal number
seen) and reads the result of the step before, which has arrived while this step ran: the answer is the same everywhere, one step late, and neither
host nor device waits. On GPUs this group is apart from NCCL's, so a step gets no device work and no synchronisation from it.
"""

import signal
import threading
from types import FrameType, TracebackType

import torch

from dsengine import dist
from dsengine.dist import World

ASKED = (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Notes these signals while it is entered; a second one changes nothing, SIGKILL and Ctrl-C still end the process."""

    def __init__(self, world: World, *, timeout_s: float) -> None:
        self._seen = 0
        self._before: dict[int, object] = {}
        self._group = dist.side_group(world, timeout_s=timeout_s)
        self._exchange: dist.Exchange | None = None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python refuses handlers elsewhere; then nobody asks
            self._before = {number: signal.signal(number, self._note) for number in ASKED}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._seen = self._seen or number

    def asked(self) -> str:
        """The signal's name once the run should end after this step, else "". To be called once a step, by every rank."""
        number = self._seen
        if self._group is not None:
            before, self._exchange = self._exchange, dist.begin_max(torch.tensor([self._seen], dtype=torch.int32), self._group)
            number = 0 if before is None else before.result()
        return signal.Signals(number).name if number else ""
