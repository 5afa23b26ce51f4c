"""What a build that is under way knows about itself, in `.journal` of the unfinished corpus, and who may write there.

`header.json` says what is being built, so that only an equal build continues. Each finished shard has one entry, its own JSON file:
writers need no order and no common file. In a folder the writer holds a lock for as long as it lives, and every task of a worker
holds a shared one, so that a new writer first waits for what workers of a killed one still do. An object store has no locks and
needs none: equal builds write equal bytes, and each object is there whole or not at all.
"""

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dsengine.corpus.shards import write_file
from dsengine.corpus.storage import Storage
from dsengine.errors import RunError, UsageError

JOURNAL = ".journal"
HEADER = f"{JOURNAL}/header.json"
WORKERS = f"{JOURNAL}/workers"  # locked by tasks; holds the name of the writer whose tasks may write
PATIENCE_S = 20.0  # for tasks of a killed build
BATCH = 256  # entries read at once
MOST_SHOWN = 200  # characters of a value in an error


class Stale(RunError):
    """A task of a writer that is no longer the one."""


def claim(storage: Storage, header: dict[str, Any], *, overwrite: bool) -> ExitStack | None:
    """Make or take over the place; returns the lock, to be closed, and None in an object store.

    UsageError when it holds anything but an unfinished build with an equal header, cannot be written, or has a writer. `overwrite`
    first removes a corpus, complete or not, and never anything else.
    """
    try:
        if overwrite and is_corpus(storage):
            clear(storage)
        _check_free(storage)
        with ExitStack() as stack:
            if storage.local:
                _lock(storage, stack)
                _check_free(storage)  # again: another writer may have come and gone
            if not storage.exists(HEADER):
                storage.put(HEADER, [json.dumps(header).encode()])
            _same_build(storage, json.loads(storage.get(HEADER)), header)
            return stack.pop_all() if storage.local else None
    except OSError as error:
        raise UsageError(f"cannot write the corpus folder {storage.path}: {error.strerror}") from error


def _lock(storage: Storage, stack: ExitStack) -> None:
    """Lock the journal's folder, which unlike a file in it is never replaced."""
    folder = storage.path / JOURNAL
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, handle)
    if not _locked(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
        raise UsageError(f"{storage.path}: another process is writing this corpus")


def _check_free(storage: Storage) -> None:
    if not _empty(storage) and not storage.exists(HEADER):  # in this order: another writer's header may come in between
        raise UsageError(f"{storage.path} is not empty and holds no unfinished build; give a new folder")


def is_corpus(storage: Storage) -> bool:
    """Whether a corpus lies there, complete or not."""
    return storage.exists(HEADER) or "version" in described(storage)


def described(storage: Storage) -> dict[str, Any]:
    """Attribute `dsengine` of the root; empty when there is none."""
    try:
        found = json.loads(storage.get("zarr.json"))["attributes"]["dsengine"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def clear(storage: Storage) -> None:
    """Remove everything, that it is a corpus last."""
    if storage.local:
        shutil.rmtree(storage.path)
        return
    keys = list(storage.keys())
    storage.delete(key for key in keys if key not in (HEADER, "zarr.json"))
    storage.delete([HEADER, "zarr.json"])


def admit(storage: Storage) -> str:
    """Become the one whose tasks may write, once those of a killed build have ended; returns the name that they must give."""
    name = uuid.uuid4().hex
    if not storage.local:
        return name
    path = storage.path / WORKERS
    with open(path, "ab") as lock:
        deadline = time.monotonic() + PATIENCE_S
        while not _locked(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() > deadline:
                raise UsageError(f"{storage.path}: workers of another build are still writing this corpus; wait for them, or end them")
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(name.encode())
    return name


@contextmanager
def task(storage: Storage, name: str) -> Iterator[None]:
    """While one shard is cut and written. RunError when another writer has taken over since `name` was given."""
    if not storage.local:
        yield
        return
    try:
        lock = open(storage.path / WORKERS, "rb")
    except FileNotFoundError as error:
        raise Stale(f"{storage.path}: no build is under way there; do all workers see the same folder?") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if lock.read().decode() != name:
            raise Stale(f"{storage.path}: another process has taken this build over")
        yield


def write_entry(storage: Storage, shard: int, entry: Mapping[str, Any]) -> None:
    """Note that all files of a shard are there."""
    storage.put(f"{JOURNAL}/{shard:08d}.json", [json.dumps(entry, separators=(",", ":")).encode()])


def finished_shards(storage: Storage) -> set[int]:
    """Shards that have an entry."""
    return {int(found[1]) for key in storage.keys(JOURNAL) if (found := re.fullmatch(rf"{re.escape(JOURNAL)}/(\d{{8}})\.json", key))}


def entries(storage: Storage, num_shards: int) -> Iterator[dict[str, Any]]:
    """All entries in the order of their shards, a few hundred in memory at a time. RunError when one cannot be read."""
    for first in range(0, num_shards, BATCH):
        keys = [f"{JOURNAL}/{shard:08d}.json" for shard in range(first, min(num_shards, first + BATCH))]
        try:
            for raw in storage.concurrently(storage.get, keys):
                yield json.loads(raw)
        except (OSError, ValueError) as error:
            raise RunError(f"{storage.path / JOURNAL}: entries {keys[0]} to {keys[-1]} cannot all be read ({error}); "
                           "do all workers write to the same folder?") from error


def discard(storage: Storage) -> None:
    """Remove the journal of a complete corpus, the header last: until then the same build may come back and end this."""
    storage.delete([key for key in storage.keys(JOURNAL) if key != HEADER])
    storage.delete([HEADER])
    if storage.local:
        shutil.rmtree(storage.path / JOURNAL)


def _empty(storage: Storage) -> bool:
    if storage.local:
        path: Path = storage.path
        if not path.exists():
            return True
        # A kill may have come before the header was complete.
        return path.is_dir() and {p.name for p in path.iterdir()} <= {JOURNAL} and set(storage.keys(JOURNAL)) <= {f"{HEADER}.tmp"}
    return next(iter(storage.keys()), None) is None


def _locked(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def _same_build(storage: Storage, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key, value in ours.items():
        if theirs.get(key) != value:
            place, before, now = _difference([key], theirs.get(key), value)
            raise UsageError(f"{storage.path} holds an unfinished build with another {key}: {place} was {_shown(before)}, now {_shown(now)}; "
                             "give the same options or a new folder")


def _difference(place: list[str], theirs: Any, ours: Any) -> tuple[str, Any, Any]:
    """Where two unequal values first differ, as far down as both have the same parts."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        parts = [(str(key), theirs.get(key), ours.get(key)) for key in {**theirs, **ours}]
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        parts = [(str(number), *pair) for number, pair in enumerate(zip(theirs, ours, strict=True))]
    else:
        return ".".join(place), theirs, ours
    return next(_difference([*place, name], a, b) for name, a, b in parts if a != b)


def _shown(value: Any) -> str:
    text = "not there" if value is None else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
