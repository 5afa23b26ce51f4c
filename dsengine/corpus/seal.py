"""Edits of a corpus that happen whole or not at all, and bring its manifest up to date.

An edit is staged in `.change`, beside the files that it will replace. It counts from the moment that its list of files to remove is
there (in a folder all of it appears by one rename): `finish` moves its files to their places, however often it is interrupted.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dsengine.corpus.manifest import MANIFEST, Place, check_inside, covered, digest, manifest_bytes, marked, read_manifest
from dsengine.corpus.shards import sync, write_file
from dsengine.corpus.storage import LocalStorage, Storage, storage_at
from dsengine.errors import RunError, UsageError

CHANGE = ".change"  # an edit that counts but is not finished
REMOVE = f"{CHANGE}/remove.json"  # the files that the edit deletes


def seal(path: Place, *changed: str) -> None:
    """Write the manifest anew: for files below the folders `changed`, such as "neighbours", or for the whole corpus when none is named.

    Call it after files of a corpus were written in place. RunError when the disk refuses.
    """
    storage = storage_at(path)
    known = _intact_manifest(storage) if changed and storage.exists(MANIFEST) else {}
    kept = {key: value for key, value in known.items() if changed and not _below(key, changed)}
    present = covered(storage)
    described = marked(storage.get("zarr.json"))
    files = {key: kept.get(key) or digest(storage.get(key)) for key in present if key != "zarr.json"}
    with staged(path, manifest={**files, "zarr.json": digest(described)}) as folder:
        write_file(folder / "zarr.json", [described])


@contextmanager
def staged(path: Place, *, replaces: Sequence[str] = (), manifest: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A folder to write files in that, when the block ends well, all take the place of those of the same key in the corpus.

    `replaces` names folders ("index/split") that are replaced as a whole: files below them that were not written anew go away.
    `manifest` is the new manifest where the caller knows it; else the old one is brought up to date, if there is one.
    UsageError when another process changes the corpus, RunError when the disk refuses: nothing has changed then.
    """
    storage = storage_at(path)
    try:
        with _only_editor(storage), _staging(storage) as part:
            finish(path)
            yield part
            _commit(storage, part, replaces, manifest)
            finish(path)
    except OSError as error:
        raise RunError(f"{storage.path}: {error.strerror}; the corpus is as it was, or the next command completes the edit") from error


def finish(path: Place) -> bool:
    """Complete an edit that was interrupted after it counted; True when there was one. RunError when its file list leaves the corpus."""
    storage = storage_at(path)
    if not storage.exists(REMOVE):
        return False
    try:
        removed = json.loads(storage.get(REMOVE))
        files = sorted(key.removeprefix(f"{CHANGE}/") for key in storage.keys(CHANGE) if key != REMOVE)
        for key in [*removed, *files]:
            check_inside(key)
            if isinstance(storage, LocalStorage) and not (storage.path / key).parent.resolve().is_relative_to(storage.path.resolve()):
                raise ValueError(f"the path {key!r} leaves the corpus")
        storage.delete(removed)
        for key in files:
            _move(storage, key)
        _remove_emptied(storage, removed)
        _discard(storage, files)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{storage.path / CHANGE}: an interrupted edit cannot be completed: {error}") from error
    return True


def _move(storage: Storage, key: str) -> None:
    if isinstance(storage, LocalStorage):
        (storage.path / key).parent.mkdir(parents=True, exist_ok=True)
        os.replace(storage.path / CHANGE / key, storage.path / key)
    else:
        storage.put(key, [storage.get(f"{CHANGE}/{key}")])


def _remove_emptied(storage: Storage, removed: Sequence[str]) -> None:
    """Remove folders that are left without a file: zarr-python warns of folders that are no node."""
    if not isinstance(storage, LocalStorage):
        return
    folders = {folder for key in removed for folder in (storage.path / key).parents if storage.path in folder.parents}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _discard(storage: Storage, files: Sequence[str]) -> None:
    """Remove what is left of a finished edit, the list that makes it count last."""
    if isinstance(storage, LocalStorage):
        for folder in {(storage.path / key).parent for key in files}:
            sync(folder)
        shutil.rmtree(storage.path / CHANGE)
    else:
        storage.delete([f"{CHANGE}/{key}" for key in files])
        storage.delete([REMOVE])


@contextmanager
def _staging(storage: Storage) -> Iterator[Path]:
    """An empty folder, on the disk of the corpus if that is a folder, and gone afterwards."""
    part = storage.path / f"{CHANGE}.part" if isinstance(storage, LocalStorage) else Path(tempfile.mkdtemp(prefix="dsengine-change-"))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _commit(storage: Storage, part: Path, replaces: Sequence[str], manifest: Mapping[str, str] | None) -> None:
    staging = LocalStorage(part)
    files = sorted(staging.keys())
    removed = sorted(key for folder in replaces for key in storage.keys(folder) if key not in files)
    if manifest is None and storage.exists(MANIFEST):
        kept = {key: value for key, value in _intact_manifest(storage).items() if key not in removed}
        manifest = {**kept, **{key: digest(staging.get(key)) for key in files}}
    if manifest is not None:
        staging.put(MANIFEST, [manifest_bytes(manifest)])
    for key in files:
        sync_file(part / key)
    staging.put(REMOVE.removeprefix(f"{CHANGE}/"), [json.dumps(removed).encode()])
    if isinstance(storage, LocalStorage):
        os.rename(part, storage.path / CHANGE)
        sync(storage.path)
    else:
        storage.delete(list(storage.keys(CHANGE)))  # of an edit that never came to count
        for key in sorted(staging.keys(), key=lambda key: f"{CHANGE}/{key}" == REMOVE):
            storage.put(f"{CHANGE}/{key}", [staging.get(key)])


def sync_file(path: Path) -> None:
    """Make a file and its name durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    sync(path.parent)


def _intact_manifest(storage: Storage) -> dict[str, str]:
    try:
        return read_manifest(storage)
    except ValueError as error:
        raise RunError(f"{storage.path / MANIFEST}: {error}") from error


def _below(key: str, folders: Sequence[str]) -> bool:
    return any(key == folder or key.startswith(f"{folder}/") for folder in folders)


@contextmanager
def _only_editor(storage: Storage) -> Iterator[None]:
    if not isinstance(storage, LocalStorage):
        yield  # an object store has no locks
        return
    handle = os.open(storage.path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(f"{storage.path}: another process is changing this corpus") from error
    finally:
        os.close(handle)
