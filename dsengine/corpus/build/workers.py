"""Shards made by processes of this machine. They end with their parent, however that ends, and are not asked for more after a failure."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
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
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    busy: dict[Connection, tuple[_Worker, int]] = {}
    idle: list[_Worker] = []
    failed: Exception | None = None
    try:
        for shard in todo:
            worker = _start(context, job)
            worker.connection.send(shard)
            busy[worker.connection] = worker, shard
            if len(busy) == workers:
                break
        while busy:
            for connection in wait(list(busy)):
                worker, shard = busy.pop(connection)
                error = _outcome(worker, shard)
                if error is None:
                    done(shard)
                failed = failed or error
                following = None if failed else next(todo, None)
                if following is None or error:
                    idle.append(worker)
                    continue
                worker.connection.send(following)
                busy[connection] = worker, following
        for worker in idle:
            _dismiss(worker)
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.process.terminate()  # one that has ended already does not mind
            worker.process.join()
            worker.connection.close()
    if failed is not None:
        raise failed


def _start(context: multiprocessing.context.SpawnContext, job: Job) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, job), name="dsengine-build")
    process.start()
    theirs.close()  # so that its end is noticed
    return _Worker(process, ours)


def _outcome(worker: _Worker, shard: int) -> Exception | None:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        return RunError(f"shard {shard}: its worker process ended with exit code {worker.process.exitcode} (-9 is killed, as when memory runs out); "
                        "the same command continues")


def _dismiss(worker: _Worker) -> None:
    try:
        worker.connection.send(None)
        worker.process.join(timeout=10)
    except OSError:  # it has ended
        pass


def _serve(connection: Connection, job: Job) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
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
