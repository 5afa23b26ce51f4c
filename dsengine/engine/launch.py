"""From a configuration to running ranks: prepares the run folder, starts the processes, joins them.

One rank trains in this process. More ranks are started by torch's elastic launcher, each as
`python -m dsengine.engine.launch`; the same module is what torchrun or srun start on many nodes.
"""

import ctypes
import fcntl
import json
import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dsengine import config as configuration
from dsengine import dist
from dsengine.config import RunConfig
from dsengine.corpus import open_corpus
from dsengine.corpus.default import default_corpus
from dsengine.corpus.storage import absolute
from dsengine.data.open import check_request
from dsengine.data.sample import sized
from dsengine.engine import checkpoint, plan
from dsengine.engine.history import noted
from dsengine.engine.train import fresh_method, train
from dsengine.errors import RunError, UsageError
from dsengine.methods import corpus_kind

_LOCK = ".lock"
_ENCODERS = {"patches": "resnet18", "pixels": "resmlp", "series": "temporal"}  # of a run that names none
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
# What a resumed run may change; every other setting decides what the figures of the run mean.
_FREE = {"out", "corpus", "train.epochs", "train.max_steps", "train.log_steps", "train.checkpoint_steps",
         "train.keep_checkpoints", "train.heldout_samples", "data.threads", "data.prefetch", "data.resident", "data.timeout_s", "device.gpus", "device.procs"}


def configure(settings: dict, *, resume: bool = False) -> RunConfig:
    """The run's configuration from nested settings; a resumed run starts from its own config.yaml.

    UsageError names a setting that a resumed run may not change.
    """
    if not resume:
        return configuration.resolve(_with_encoder(settings))
    if settings.get("out") is None:
        raise UsageError("--resume: name the run folder to go on with, --out DIR")
    path = Path(settings["out"]) / "config.yaml"
    if not path.exists():
        raise UsageError(f"out={settings['out']}: holds no run to resume (no config.yaml)")
    saved = configuration.load_file(path)
    config = configuration.resolve(configuration.merge(saved, settings))
    # What the saved file does not name, because it is of an older version, had its default.
    before, now = (configuration.flatten(configuration.dump(x)) for x in (configuration.resolve(saved), config))
    for key in now.keys() - _FREE:
        if before.get(key) != now[key]:
            raise UsageError(f"{key}={now[key]}: the run in {settings['out']} has {before.get(key)}, "
                             "and resuming cannot change it; start a new run")
    return config


def _with_encoder(settings: dict) -> dict:
    """`settings` with an encoder for what the corpus holds, where none is named."""
    chosen = settings.get("encoder")
    if isinstance(chosen, str) or (isinstance(chosen, dict) and "name" in chosen):
        return settings
    try:
        kind = corpus_kind(configuration.resolve(settings).method) if settings.get("corpus") is None else open_corpus(settings["corpus"]).kind
    except UsageError:
        return settings  # the run refuses it, in its own words
    return configuration.merge(settings, {"encoder": {"name": _ENCODERS[kind]}})


def run(config: RunConfig, *, resume: bool = False) -> Path:
    """Train `config` on as many ranks as it asks for; returns the run folder.

    Everything that can be refused is refused here, before a process starts or a file is written.
    """
    kind, ranks = _ranks(config)
    if config.corpus is None:
        config = replace(config, corpus=str(default_corpus(corpus_kind(config.method))))
    corpus = open_corpus(config.corpus)
    contract = corpus.contract()
    if resume:
        checkpoint.check_resumable(Path(config.out), contract, what=f"corpus {config.corpus}")
    config = replace(config, corpus=absolute(config.corpus))
    config = plan.complete(config, corpus, ranks=ranks, device=torch.device(kind))
    method = fresh_method(config, corpus.bands, contract=None if resume else contract)
    check_request(corpus, sized(method.views, config.data.size), global_batch=config.train.batch_size,
                  where=config.data.where, device=kind, resident=config.data.resident, ranks=ranks)
    folder = _run_folder(config, resume)
    with _only_writer(folder):
        _write_config(config, folder)
        with noted(folder, device=kind, ranks=ranks, resumed=resume) if _leads() else nullcontext():
            if ranks == 1 or dist.under_launcher():
                rank_main(config, folder, kind=kind, resume=resume)
            else:
                _start_ranks(config, folder, kind=kind, ranks=ranks, resume=resume)
    return folder


def _ranks(config: RunConfig) -> tuple[str, int]:
    """Device kind and number of ranks, from the launcher above us if there is one."""
    kind, gpus = plan.choose_device(config.device.gpus)
    if dist.under_launcher():
        return kind, int(os.environ["WORLD_SIZE"])
    return kind, gpus if kind == "cuda" else config.device.procs


def rank_main(config: RunConfig, folder: Path, *, kind: str, resume: bool) -> None:
    """What one rank does."""
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_big_blocks()
    world = dist.join(device)
    if kind == "cpu" and world.size > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.size))
    train(config, folder, world=world, device=device, resume=resume)
    dist.leave(world)  # only after success: leaving waits for peers, and a failing rank must not


def keep_big_blocks() -> None:
    """Have glibc keep freed activations instead of giving them to the kernel and faulting them in again every step.

    Measured on ResNet18, 2 cores: 7 % more samples/s at about the same peak memory (docs/performance.md).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _run_folder(config: RunConfig, resume: bool) -> Path:
    """The run's folder, made if need be; UsageError when it cannot be used."""
    folder = Path(config.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out={folder}: is a file; give a new or an empty folder")
    try:
        if _leads() and not resume and folder.exists() and any(path.name != _LOCK for path in folder.iterdir()):
            raise UsageError(f"out={folder}: is not empty; give another folder, or --resume to go on with the run in it")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out={folder}: cannot be written ({error.strerror}); give another folder") from error
    return folder


def _leads() -> bool:
    """Under torchrun only the first process writes; without it there is only one."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock, which the kernel gives back however this process ends."""
    if not _leads():
        yield
        return
    try:
        file = open(folder / _LOCK, "w")
    except OSError as error:
        raise UsageError(f"out={folder}: cannot be written ({error.strerror}); give another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"out={folder}: another process is writing this run; wait for it or stop it") from error
        yield


def _write_config(config: RunConfig, folder: Path) -> None:
    if _leads():
        part = folder / ".config.yaml.part"
        part.write_text(configuration.to_yaml(replace(config, out=str(folder))))
        os.replace(part, folder / "config.yaml")


def _start_ranks(config: RunConfig, folder: Path, *, kind: str, ranks: int, resume: bool) -> None:
    task = json.dumps({"config": configuration.dump(config), "folder": str(folder.resolve()), "kind": kind, "resume": resume,
                       "parent": os.getpid()})
    launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the errors below say it in one line
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    try:
        elastic_launch(launch, sys.executable)("-P", "-m", "dsengine.engine.launch", task)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _as_own_error(rank, failure.message) from error
    except SignalException as stop:
        raise KeyboardInterrupt from stop
    finally:
        for number, handler in handlers.items():  # the launcher leaves its own behind
            signal.signal(number, handler)


def _as_own_error(rank: int, message: object) -> Exception:
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    name, _, rest = text.partition(": ")
    if name == "UsageError":
        return UsageError(rest)
    return RunError(f"rank {rank}: {rest if name == 'RunError' else text}")


def _main() -> None:
    """One rank. An expected error goes to the launcher in words, without a traceback of every rank."""
    handler = get_error_handler()
    handler.initialize()
    task = json.loads(sys.argv[1])
    _die_with(task["parent"])
    try:
        rank_main(configuration.resolve(task["config"]), Path(task["folder"]), kind=task["kind"], resume=task["resume"])
    except BaseException as error:
        handler.record_exception(error)
        if not isinstance(error, (UsageError, RunError, KeyboardInterrupt)) and not _lost_a_peer(error):
            traceback.print_exc()
        # Not sys.exit: peers wait in a collective for this rank, and destroying the group politely would wait for them.
        os._exit(1)


def _die_with(parent: int) -> None:
    """Have the kernel kill this rank when its launcher dies, even by SIGKILL: no rank may go on writing alone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _lost_a_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank ended; that rank has the story to tell."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


if __name__ == "__main__":
    _main()
