"""Shards made by processes of this machine. They end with their parent, however that ends, and are not asked for more after a failure."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from dsengine.errors import RunError

Job = Callable[[int], None]


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection  # shards down, outcomes up


def run_in_processes(job: Job, shards: Iterable[int], *, workers: int, done: Callable[[int], None]) -> None:
    """Call `job(shard)` for all shards in `workers` new processes, and `done(shard)` here for each that is finished, in any order.

    After a failure no further shard begins; those under way are finished, then the first error is raised. RunError when a process dies.
    """
    todo = iter(shards)
    started: list[_Worker] = []
    try:
        busy: dict[Connection, tuple[_Worker, int]] = {}
        for shard in islice(todo, workers):
            worker = _start(job, started)
            busy[worker.connection] = worker, shard
            _hand(worker, shard)
        failed: Exception | None = None
        while busy:
            for connection in wait(list(busy)):
                worker, shard = busy.pop(connection)
                error = _outcome(worker, shard)
                if error is None:
                    done(shard)
                failed = failed or error
                following = None if failed else next(todo, None)
                if following is not None:
                    busy[connection] = worker, following
                _hand(worker, following)
        if failed is not None:
            raise failed
        for worker in started:
            worker.process.join(timeout=10)
    finally:
        for worker in started:
            if worker.process.pid is not None:
                worker.process.terminate()  # one that has ended does not mind
                worker.process.join()
            worker.connection.close()


def _start(job: Job, started: list[_Worker]) -> _Worker:
    """A new process, put into `started` before it runs, so that no interruption loses it."""
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, job), name="dsengine-build", daemon=True)
    started.append(_Worker(process, ours))
    # Ctrl-C reaches the whole group, but what it means is the parent's to decide: the process is born with it blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that its end is noticed
    return started[-1]


def _hand(worker: _Worker, shard: int | None) -> None:
    """Send the next shard, None for no more. A process that has ended is noticed when its outcome is asked for."""
    with suppress(OSError):
        worker.connection.send(shard)


def _outcome(worker: _Worker, shard: int) -> Exception | None:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        return RunError(f"shard {shard}: its worker process ended with exit code {worker.process.exitcode} (-9 is killed, as when memory runs out); "
                        "the same command continues")


def _serve(connection: Connection, job: Job) -> None:
    """What a worker process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work = threading.Thread(target=_work, args=(connection, job))  # not the main thread: see `shards.encoder`
    work.start()
    work.join()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(connection: Connection, job: Job) -> None:
    while (shard := connection.recv()) is not None:
        outcome = None
        try:
            job(shard)
        except Exception as error:
            outcome = error
            outcome.add_note(f"In a worker process, shard {shard}:\n{traceback.format_exc()}")
        try:
            connection.send(outcome)
        except (TypeError, AttributeError, ValueError, ImportError):  # an error that does not pickle
            connection.send(RuntimeError("".join(outcome.__notes__)))
