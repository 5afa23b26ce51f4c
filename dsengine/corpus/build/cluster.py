"""Shards made by a Dask cluster. Its workers need dsengine, the source's files and the corpus's place under the same names."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from dsengine.corpus.build.optional import need
from dsengine.errors import RunError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Future

Job = Callable[[int], None]
TIMEOUT_S = 30  # for the scheduler to answer and for a first worker to be there
AHEAD = 2  # tasks a thread, so that none waits for us


def run_on_cluster(job: Job, shards: Iterable[int], *, address: str, done: Callable[[int], None]) -> None:
    """Call `job(shard)` for all shards on the cluster whose scheduler is at `address`, and `done(shard)` here for each that is finished.

    After a failure no further shard is handed out; those that were are finished, then the first error is raised.
    """
    distributed = need("distributed", "cluster")
    try:
        # Here, because a client with an address that cannot be one waits for a minute when it is thrown away.
        if not address.startswith("inproc://"):
            distributed.comm.get_address_host_port(address)
        client = distributed.Client(address, timeout=TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, distributed.TimeoutError) as error:
        raise UsageError(f"--scheduler {address}: no scheduler answers there ({' '.join(str(error).split())}); legal: an address such as "
                         "tcp://host:8786") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=TIMEOUT_S)
        except distributed.TimeoutError as error:
            raise UsageError(f"--scheduler {address}: the cluster has no workers") from error
        _run(client, job, iter(shards), done)


def _run(client: "Client", job: Job, todo: Iterable[int], done: Callable[[int], None]) -> None:
    distributed = need("distributed", "cluster")
    task = client.submit(_itself, job, pure=False)  # unlike scattered data it comes back when the workers that hold it die
    running: "dict[Future, int]" = {}

    def submit(count: int) -> "list[Future]":
        new = {client.submit(_carry_out, task, shard, pure=False): shard for shard in islice(todo, count)}
        running.update(new)
        return list(new)

    failed: Exception | None = None
    finished = distributed.as_completed(submit(AHEAD * max(1, sum(client.nthreads().values()))), loop=client.loop)
    for future in finished:
        shard, error = running.pop(future), _error(future)
        failed = failed or error
        if error is None:
            done(shard)
        if not failed:
            for new in submit(1):
                finished.add(new)
    if failed is not None:
        raise failed


def _itself(job: Job) -> Job:
    return job


def _carry_out(job: Job, shard: int) -> None:
    job(shard)


def _error(future: "Future") -> Exception | None:
    if future.status == "finished":
        return None
    error = future.exception() if future.status == "error" else None
    if isinstance(error, need("distributed", "cluster").KilledWorker):
        return RunError("the workers of a shard died again and again, as when memory runs out; the same command continues")
    return error or RunError(f"the cluster has lost the task of a shard ({future.status}); the same command continues")
