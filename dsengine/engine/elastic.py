"""Ranks on this machine, or on several, started by torch's elastic launcher; what they end with, and starting them again.

On one machine the group is started anew here, from the last checkpoint and if asked with fewer ranks. On several, torch's agents agree on the
restart among themselves and keep the number of ranks.
"""

import hashlib
import json
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dsengine import config as configuration
from dsengine import dist
from dsengine.config import RunConfig
from dsengine.corpus import open_corpus
from dsengine.engine import elastic_beat, elastic_slurm
from dsengine.engine.elastic_beat import Batches
from dsengine.engine.history import noted
from dsengine.engine.signals import ASKED
from dsengine.errors import RunError, Stopped, UsageError

STOPPED = "stopped"  # file of the run's `.ranks`: what the ranks said when they ended because they were asked to
_MODULE = "dsengine.engine.launch"


class Lost(RunError):
    """A rank was killed, or hung, or met an error that is not of the run's making: another try may end well."""


def train_here(config: RunConfig, folder: Path, *, kind: str, ranks: int, resume: bool) -> None:
    """Train on `ranks` ranks of this machine, again from the last checkpoint after each loss of a rank, up to `device.max_restarts` times."""
    for restart in range(config.device.max_restarts + 1):
        try:
            with noted(folder, device=kind, ranks=ranks, resumed=resume):
                return _group(config, folder, kind=kind, ranks=ranks, resume=resume)
        except Lost as lost:
            if restart == config.device.max_restarts:
                raise
            ranks, resume = config.device.restart_ranks or ranks, True
            print(f"dsengine: {lost}; restart {restart + 1} of {config.device.max_restarts} on {ranks} rank{'s' * (ranks > 1)}", file=sys.stderr, flush=True)


def _group(config: RunConfig, folder: Path, *, kind: str, ranks: int, resume: bool) -> None:
    elastic_beat.clear(folder)
    task = {"config": configuration.dump(config), "folder": str(folder.resolve()), "kind": kind, "resume": resume, "parent": os.getpid()}
    launch = _launch_config(1, ranks, run_id=uuid.uuid4().hex, endpoint="localhost:0")
    try:
        _launch(launch, task)
    except ChildFailedError as error:
        raise _told(error.failures, batches(config, ranks), folder) from error
    if (folder / elastic_beat.FOLDER / STOPPED).exists():
        raise Stopped((folder / elastic_beat.FOLDER / STOPPED).read_text())
    elastic_beat.clear(folder)


def train_on_nodes(config: RunConfig, *, kind: str, ranks: int) -> bool:
    """This machine's part of a run on `device.nodes` machines; `ranks`: of this machine. Returns whether rank 0 was among them."""
    endpoint = config.device.rendezvous or elastic_slurm.endpoint()
    if endpoint is None:
        raise UsageError(f"device.nodes={config.device.nodes}: name where the machines meet, --set device.rendezvous=HOST:PORT, the same for all; "
                         "HOST is one of them")
    if config.out is None:
        raise UsageError(f"device.nodes={config.device.nodes}: name one run folder that all machines see, --out DIR")
    # Ranks go on with what is there: torch starts them again without a word to this process, and agents count restarts differently.
    task = {"config": configuration.dump(config), "folder": None, "kind": kind, "resume": True, "parent": os.getpid()}
    name = hashlib.sha256(str(config.out).encode()).hexdigest()[:16]
    launch = _launch_config(config.device.nodes, ranks, run_id=name, endpoint=endpoint, max_restarts=config.device.max_restarts)
    folder = Path(config.out)
    (folder / elastic_beat.FOLDER / STOPPED).unlink(missing_ok=True)  # nobody starts before all machines are here
    # torch's shared store keeps the keys of the ranks before a restart, on which those after it hang; without it rank 0 opens a new one each time.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        leads = 0 in _launch(launch, task)
    except ChildFailedError as error:
        dealt = batches(_written(folder), ranks * config.device.nodes) if (folder / "config.yaml").exists() else None
        raise _told(error.failures, dealt, folder) from error
    except (RendezvousError, ConnectionError, TimeoutError) as error:
        raise RunError(f"device.rendezvous={endpoint}: the {config.device.nodes} machines did not meet ({' '.join(str(error).split())})") from error
    if (folder / elastic_beat.FOLDER / STOPPED).exists():
        raise Stopped((folder / elastic_beat.FOLDER / STOPPED).read_text())
    return leads


def _written(folder: Path) -> RunConfig:
    """The configuration as the ranks completed it."""
    return configuration.resolve(configuration.load_file(folder / "config.yaml"))


def _launch_config(nodes: int, ranks: int, *, run_id: str, endpoint: str, max_restarts: int = 0) -> LaunchConfig:
    return LaunchConfig(min_nodes=nodes, max_nodes=nodes, nproc_per_node=ranks, run_id=run_id, rdzv_backend="c10d", rdzv_endpoint=endpoint,
                        max_restarts=max_restarts, monitor_interval=0.2, signals_to_handle="SIGINT,SIGHUP,SIGQUIT")


def _launch(launch: LaunchConfig, task: dict) -> dict:
    """Run the ranks of this machine to their end; {global rank: nothing}. Signals that ask to stop are handed on to them."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # errors are said in one line, by whoever catches them
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        with _handing_on():
            return elastic_launch(launch, sys.executable)("-P", "-m", _MODULE, json.dumps(task))
    except SignalException as stop:
        raise KeyboardInterrupt from stop
    finally:
        for number, handler in handlers.items():  # the launcher leaves its own behind
            signal.signal(number, handler)


@contextmanager
def _handing_on() -> Iterator[None]:
    """Within, SIGTERM and SIGUSR1 reach the ranks as SIGUSR1, and this process goes on waiting for them: SIGTERM kills a rank at once."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        children = _children()
        if not children:
            raise Stopped(f"stopped by {signal.Signals(number).name} before its ranks were started, no step is lost; the same command "
                          "with `--resume auto` goes on")
        for pid in children:
            try:
                os.kill(pid, signal.SIGUSR1)
            except ProcessLookupError:
                pass

    before = {number: signal.signal(number, hand_on) for number in ASKED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    """Processes that this one started and that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended
        if int(parent) == os.getpid() and state != "Z":
            found.append(int(path.parent.name))
    return found


def batches(config: RunConfig, ranks: int) -> Batches:
    """What decides which samples each of `ranks` ranks has at a step."""
    rows = open_corpus(config.corpus).rows("train", config.data.where)
    return Batches(rows, config.train.seed, config.train.batch_size, ranks)


def _told(failures: dict[int, ProcessFailure], dealt: Batches | None, folder: Path) -> Exception:
    """The error that tells what happened: of a rank that was killed, else of one with an own error, else of one that lost its peers.

    dealt: None where the run came to nothing before it was known.
    """
    number, failure = min(failures.items(), key=lambda item: (_order(item[1]), item[1].timestamp))
    if failure.exitcode == -signal.SIGUSR1:
        return Stopped("stopped by SIGUSR1 before its first step")
    if failure.exitcode < 0:
        beat = {beat.rank: beat for beat in elastic_beat.read_beats(folder, dealt.ranks)}.get(number) if dealt else None
        where = "before it had joined the others" if beat is None else beat.where(dealt)
        return Lost(f"rank {number} was killed by {elastic_beat.killed_by(failure.exitcode)} {where}")
    text = failure.message.get("message", "") if isinstance(failure.message, dict) else str(failure.message)
    name, _, rest = re.sub(r"\s+", " ", text).partition(": ")
    if name == "UsageError":
        return UsageError(rest)
    if name != "RunError":
        return Lost(f"rank {number}: {text}")
    if rest.startswith(elastic_beat.STANDSTILL):
        return Lost(rest)
    return (Lost if rest.startswith(dist.LOST_PEER) else RunError)(f"rank {number}: {rest}")


def _order(failure: ProcessFailure) -> int:
    """A rank that noticed a standstill knows most; one that SIGTERM ended was ended by the launcher because of another."""
    if failure.exitcode < 0:
        return 4 if failure.exitcode == -signal.SIGTERM else 1
    if elastic_beat.STANDSTILL in str(failure.message):
        return 0
    return 3 if dist.LOST_PEER in str(failure.message) else 2


def check_restarts(config: RunConfig, ranks: int) -> None:
    """UsageError for settings of restarts that cannot be met."""
    fewer = config.device.restart_ranks
    if fewer is not None and config.device.nodes > 1:
        raise UsageError(f"device.restart_ranks={fewer}: with device.nodes={config.device.nodes} every restart has all ranks; leave it out")
    if fewer is not None and fewer > ranks:
        raise UsageError(f"device.restart_ranks={fewer}: the run has {ranks} ranks; legal: 1 to {ranks}")
    if fewer is not None and not config.device.max_restarts:
        raise UsageError(f"device.restart_ranks={fewer}: has no effect with device.max_restarts=0; set that too")
