"""From a configuration to running ranks: prepares the run folder, starts the processes, joins them.

One rank trains in this process. More ranks are started by torch's elastic launcher (`engine.elastic`), each as
`python -m dsengine.engine.launch`; torchrun and srun start the command line itself as ranks.
"""

import ctypes
import errno
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from dsengine import config as configuration
from dsengine import dist
from dsengine.config import RunConfig
from dsengine.corpus import open_corpus
from dsengine.corpus.default import default_corpus
from dsengine.corpus.shards import sync
from dsengine.corpus.storage import absolute
from dsengine.data.open import check_request
from dsengine.data.sample import sized
from dsengine.engine import checkpoint, elastic, elastic_beat, elastic_slurm, plan
from dsengine.engine.history import noted
from dsengine.engine.train import fresh_method, train
from dsengine.errors import RunError, Stopped, UsageError
from dsengine.methods import corpus_kind
from dsengine.nn.stem import set_form

_LOCK, _PART = ".lock", ".config.yaml.part"
_OURS = {_LOCK, _PART, elastic_beat.FOLDER}  # what a run that was killed before it began may leave
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_ENCODERS = {"patches": "resnet18", "pixels": "resmlp", "series": "temporal"}  # of a run that names none
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
# What a resumed run may change; every other setting decides what the figures of the run mean.
_FREE = {"out", "corpus", "train.epochs", "train.max_steps", "train.log_steps", "train.checkpoint_steps", "train.async_save",
         "train.keep_checkpoints", "train.heldout_samples", "train.knn_epochs", "train.knn_label",
         "train.capture_step", "train.capture_alarms", "train.monitor", "train.profile", "data.threads", "data.prefetch", "data.resident", "data.timeout_s"}


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
    for key in sorted(key for key in now.keys() - _FREE if not key.startswith("device.")):
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


def begun(settings: dict) -> bool:
    """Whether the folder that `settings` name holds a run, to be gone on with; what `--resume auto` asks."""
    return settings.get("out") is not None and (Path(settings["out"]) / "config.yaml").exists()


class Ended(NamedTuple):
    """A run that came to its end."""

    folder: Path
    leads: bool  # whether this process, of all that ran, is the one to speak for it


def run(config: RunConfig, *, resume: bool = False) -> Ended:
    """Train `config` on as many ranks as it asks for.

    Everything that can be refused is refused here, before a process starts or a file is written. Raises UsageError, RunError,
    or Stopped when a signal asked the run to save and end.
    """
    if config.device.nodes == 1:
        elastic_slurm.adopt()
    kind, ranks = _ranks(config)
    if config.device.nodes > 1 and not dist.under_launcher():
        checked_folder(config, resume=resume)  # before the machines meet, so before any rank writes to it
        return Ended(Path(config.out or "."), elastic.train_on_nodes(config, kind=kind, ranks=ranks))
    config = checked(config, kind=kind, ranks=ranks, resume=resume)
    folder = _run_folder(config, resume)
    with _only_writer(folder):
        with _disk_named(folder):
            _write_config(config, folder)
            if dist.under_launcher() or (ranks == 1 and not config.device.max_restarts):
                resumed = resume and (folder / "checkpoints").exists()
                with noted(folder, device=kind, ranks=ranks, resumed=resumed) if _leads() else nullcontext():
                    rank_main(config, folder, kind=kind, resume=resume)
            else:
                elastic.train_here(config, folder, kind=kind, ranks=ranks, resume=resume)
    return Ended(folder, _leads())


def checked(config: RunConfig, *, kind: str, ranks: int, resume: bool) -> RunConfig:
    """`config` with nothing left open, its corpus made where it names none; UsageError for what `ranks` on that kind of device cannot run."""
    if config.out is None and ranks > 1 and dist.under_launcher():
        raise UsageError("out: ranks started by torchrun or srun must agree on the run folder; name it, --out DIR")
    elastic.check_restarts(config, ranks)
    if config.corpus is None:
        config = replace(config, corpus=str(default_corpus(corpus_kind(config.method))))
    corpus = open_corpus(config.corpus)
    contract = corpus.contract()
    if resume:
        checkpoint.check_resumable(Path(config.out), contract, what=f"corpus {config.corpus}")
    config = replace(config, corpus=absolute(config.corpus))
    config = plan.complete(config, corpus, ranks=ranks, device=torch.device(kind))
    if config.device.restart_ranks is not None:
        plan.complete(config, corpus, ranks=config.device.restart_ranks, device=torch.device(kind))  # refuses what does not divide
    method = fresh_method(config, corpus.bands, contract=None if resume else contract)
    set_form(method, config.train.first_conv)
    check_request(corpus, sized(method.views, config.data.size), global_batch=config.train.batch_size,
                  where=config.data.where, device=kind, resident=config.data.resident, ranks=ranks)
    return config


@contextmanager
def _disk_named(folder: Path) -> Iterator[None]:
    """A disk that refuses is damage that the user can mend: a RunError, whoever met it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise RunError(f"{error.filename or folder}: cannot be written ({error.strerror}); make room, then `--resume` with the same --out "
                       "goes on from the last checkpoint") from error


def _ranks(config: RunConfig) -> tuple[str, int]:
    """Device kind and number of ranks, from the launcher above us if there is one."""
    kind, gpus = plan.choose_device(config.device.gpus)
    if dist.under_launcher():
        return kind, int(os.environ["WORLD_SIZE"])
    return kind, gpus if kind == "cuda" else config.device.procs


def rank_main(config: RunConfig, folder: Path, *, kind: str, resume: bool) -> None:
    """What one rank does."""
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device(kind, _gpu(int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()))
        torch.cuda.set_device(device)
    else:
        keep_big_blocks()
    # The heartbeat, which can say who is missing, comes first.
    world = dist.join(device, timeout_s=config.device.collective_timeout_s + 60)
    if kind == "cpu" and world.size > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.size))
    try:
        with _disk_named(folder):
            train(config, folder, world=world, device=device, resume=resume)
    except Stopped:
        dist.leave(world)
        raise
    except Exception as error:
        if isinstance(error, (UsageError, RunError)) or not dist.lost_a_peer(error):
            raise
        gone = elastic_beat.lost(folder, elastic.batches(config, world.size))
        raise RunError(f"{dist.LOST_PEER}: {gone}; `--resume` with the same --out goes on from the last checkpoint") from error
    dist.leave(world)  # not after a failure: leaving waits for peers, and a failing rank must not


def _gpu(local_rank: int, visible: int) -> int:
    """The GPU of a rank. A launcher that gives each process one of its own shows it that one alone."""
    if visible > 1 and local_rank >= visible:
        raise UsageError(f"LOCAL_RANK={local_rank}: this machine shows {visible} GPUs; start at most {visible} ranks on it")
    return 0 if visible == 1 else local_rank


def keep_big_blocks() -> None:
    """Have glibc keep freed activations instead of giving them to the kernel and faulting them in again every step.

    Measured on ResNet18, 2 cores: 7 % more samples/s at about the same peak memory (docs/performance.md).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def checked_folder(config: RunConfig, *, resume: bool) -> Path:
    """The run's folder, which may not be there yet; UsageError when it cannot be used."""
    folder = Path(config.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out={folder}: is a file; give a new or an empty folder")
    try:
        if _leads() and not resume and folder.exists() and any(path.name not in _OURS for path in folder.iterdir()):
            raise UsageError(f"out={folder}: is not empty; give another folder, or --resume to go on with the run in it")
    except OSError as error:
        raise UsageError(f"out={folder}: cannot be written ({error.strerror}); give another folder") from error
    return folder


def _run_folder(config: RunConfig, resume: bool) -> Path:
    """The run's folder, made if need be, then for its owner alone: what was trained on may be confidential. UsageError when it cannot be used."""
    folder = checked_folder(config, resume=resume)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        part = folder / _PART
        part.write_text(configuration.to_yaml(replace(config, out=str(folder))))
        sync(part)
        os.replace(part, folder / "config.yaml")


def _main() -> None:
    """One rank. An expected error goes to the launcher in words, without a traceback of every rank."""
    handler = get_error_handler()
    handler.initialize()
    task = json.loads(sys.argv[1])
    _die_with(task["parent"])
    config = configuration.resolve(task["config"])
    try:
        if task["folder"] is None:
            run(config, resume=task["resume"])
        else:
            rank_main(config, Path(task["folder"]), kind=task["kind"], resume=task["resume"])
    except Stopped as stop:
        if _leads():
            (Path(config.out) / elastic_beat.FOLDER / elastic.STOPPED).write_text(str(stop))
    except BaseException as error:
        handler.record_exception(error)
        if not isinstance(error, (UsageError, RunError, KeyboardInterrupt)):
            traceback.print_exc()
        # Not sys.exit: peers wait in a collective for this rank, and destroying the group politely would wait for them.
        os._exit(1)


def _die_with(parent: int) -> None:
    """Have the kernel kill this rank when its launcher dies, even by SIGKILL: no rank may go on writing alone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


if __name__ == "__main__":
    _main()
