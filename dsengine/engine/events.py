"""TensorBoard's event file, written by who has the numbers: what the disk refuses is then an OSError of the run.

`SummaryWriter` writes in a thread of its own, which dies of a full disk with a traceback of its own while the run goes on.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new file in `folder`. TensorBoard leaves out what files before it hold of `first_step` and after."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._file = open(folder / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}", "wb")  # read in the order of names
        self._records = RecordWriter(self._file)
        self._add(Event(step=first_step, file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: dict, *, step: int) -> None:
        """The floats of `record` by their names."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in record.items() if isinstance(value, float)]
        self._add(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Nothing is left to be written."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        with named(self._file.name):
            self._records.write(event.SerializeToString())
            self._file.flush()


@contextmanager
def named(path: str) -> Iterator[None]:
    """Writing to an open file: its OSError is given the name that the system leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise
