"""Shards made by processes of this machine. They end with their parent, however that ends, and are not asked for more after a failure."""

import ctypes
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Protocol

from dsengine.errors import RunError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


class Job(Protocol):
    """What a worker does; it pickles."""

    def prepare(self, shard: int) -> Callable[[], None]:
        """Make a shard; calling what is returned writes it."""


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection  # shards down, outcomes up
    shards: list[int]  # that it was given and has not finished


def run_in_processes(job: Job, shards: Iterable[int], *, workers: int, done: Callable[[int], None]) -> None:
    """Make all shards in `workers` new processes, and call `done(shard)` here for each that is written, in any order.

    After a failure no further shard is handed out; those that were are finished, then the first error is raised. RunError when a process dies.
    """
    todo = iter(shards)
    started: list[_Worker] = []
    failed: Exception | None = None
    try:
        for shard in islice(todo, workers):
            _hand(_start(job, started), shard)
        for worker in started:  # a second one each: while one is written, the next is cut
            _hand(worker, next(todo, None))
        while busy := {worker.connection: worker for worker in started if worker.shards}:
            for connection in wait(list(busy)):
                worker = busy[connection]
                shard, error = _outcome(worker)
                if error is None:
                    done(shard)
                failed = failed or error
                _hand(worker, None if failed else next(todo, None))
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
    started.append(_Worker(process, ours, []))
    # Ctrl-C reaches the whole group, but what it means is the parent's to decide: the process is born with it blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that its end is noticed
    return started[-1]


def _hand(worker: _Worker, shard: int | None) -> None:
    """Give it another shard, None for no more. A process that has ended is noticed when its outcome is asked for."""
    with suppress(OSError):
        worker.connection.send(shard)
    if shard is not None:
        worker.shards.append(shard)


def _outcome(worker: _Worker) -> tuple[int, Exception | None]:
    """Of the shard that it has finished. A dead one has none left."""
    try:
        shard, error = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        lost = ", ".join(map(str, worker.shards))
        worker.shards.clear()
        return -1, RunError(f"shard {lost}: the worker process ended with exit code {worker.process.exitcode} "
                            "(-9 is killed, as when memory runs out); the same command continues")
    worker.shards.remove(shard)
    return shard, error


def _serve(connection: Connection, job: Job) -> None:
    """What a worker process does."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc: keep the memory of one shard for the next, which saves a tenth of the work
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work = threading.Thread(target=_work, args=(connection, job))  # not the main thread: see `shards.encoder`
    work.start()
    work.join()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(connection: Connection, job: Job) -> None:
    """Make shards until told to stop, or until nobody is there to tell."""
    with ThreadPoolExecutor(1) as pool, suppress(EOFError):
        before = None
        while (shard := connection.recv()) is not None:
            try:
                write = job.prepare(shard)
            except Exception as error:
                write = partial(_raise, error)
            if before is not None:
                before.result()  # at most one waits in memory
            before = pool.submit(_report, connection, shard, write)


def _raise(error: Exception) -> None:
    raise error


def _report(connection: Connection, shard: int, write: Callable[[], None]) -> None:
    """Write a shard and tell the parent how that went."""
    outcome = None
    try:
        write()
    except Exception as error:
        outcome = error
        outcome.add_note(f"In a worker process, shard {shard}:\n{traceback.format_exc()}")
    try:
        connection.send((shard, outcome))
    except (TypeError, AttributeError, ValueError, ImportError):  # an error that does not pickle
        connection.send((shard, RuntimeError("".join(outcome.__notes__))))
