"""The manifest of a corpus, which covers what has no checksum of its own, and edits of a corpus that happen whole or not at all.

The attributes of the Zarr group `manifest` hold the sha256 of every zarr.json and of every chunk file of an array without shards
(index columns, label vectors, the neighbour table); the chunks and chunk tables of shards carry a crc32c each. The root says `sealed`
where there is a manifest; an older corpus has none and is read without.

An edit is staged in `.change`, beside the files that it will replace. Renaming the folder to that name is the moment from which
the edit counts: `finish` moves the files to their places, however often it is interrupted.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from dsengine.corpus.shards import sync_folder, write_file
from dsengine.errors import RunError, UsageError

MANIFEST = "manifest/zarr.json"  # a group, because zarr-python warns of every other file it finds in one
VERSION = 1
CHANGE = ".change"  # an edit that counts but is not finished
REMOVE = "remove.json"  # in CHANGE: the files that the edit deletes


def digest(data: bytes) -> str:
    """What the manifest holds of a file."""
    return hashlib.sha256(data).hexdigest()


def manifest_bytes(files: Mapping[str, str]) -> bytes:
    """The one legal spelling of a manifest: `files` (relative path -> sha256) in order, and the sha256 of that table itself."""
    table = dict(sorted(files.items()))
    attributes = {"version": VERSION, "files": table, "sha256": digest(json.dumps(table).encode())}
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=1).encode()


def read_manifest(path: Path) -> dict[str, str]:
    """Relative path -> sha256. FileNotFoundError when there is none, ValueError when it is damaged or names a file outside the corpus."""
    stored = (path / MANIFEST).read_bytes()
    try:
        files = {str(name): str(value) for name, value in json.loads(stored)["attributes"]["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a manifest ({type(error).__name__})") from error
    if stored != manifest_bytes(files):
        raise ValueError("does not have the sha256 that it states of itself")
    for name in files:
        check_inside(name)
    return files


def check_inside(name: str) -> None:
    """ValueError unless `name` is a relative path that stays below the folder it is relative to."""
    if not name or name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"the path {name!r} leaves the corpus")


def covered(path: Path) -> list[str]:
    """Relative paths of the files that a manifest lists, sorted. RunError when a zarr.json cannot be read."""
    found = ["zarr.json"]
    _collect_below(path, path, found)
    return sorted(found)


def first_seal(path: Path, root: bytes) -> bytes:
    """Write the manifest of a corpus whose files are all there but for `root`, its own zarr.json; returns that with attribute `sealed`."""
    manifest, described = sealed({name: digest((path / name).read_bytes()) for name in covered(path) if name != "zarr.json"}, root)
    write_file(path / MANIFEST, [manifest])
    return described


def sealed(files: Mapping[str, str], root: bytes) -> tuple[bytes, bytes]:
    """(the manifest, the root's zarr.json with attribute `sealed`) of a corpus with `files` (relative path -> sha256) and `root`."""
    described = _marked(root)
    return manifest_bytes({**files, "zarr.json": digest(described)}), described


def seal(path: str | os.PathLike[str], *changed: str) -> None:
    """Write the manifest anew: for files below the folders `changed`, such as "neighbours", or for the whole corpus when none is named.

    Call it after files of a corpus were written in place. RunError when the disk refuses.
    """
    root = Path(path)
    known = read_manifest(root) if changed and (root / MANIFEST).exists() else {}
    kept = {name: value for name, value in known.items() if not _below(name, changed)}
    described = _marked((root / "zarr.json").read_bytes())
    files = {name: digest((root / name).read_bytes()) for name in covered(root) if name not in kept}
    with staged(root, manifest={**kept, **files, "zarr.json": digest(described)}) as folder:
        write_file(folder / "zarr.json", [described])


def differences(path: Path, *, metadata_only: bool = False) -> list[tuple[str, str]]:
    """(relative path, what is wrong) of each file that does not agree with the manifest; none for a corpus without a manifest.

    `metadata_only`: only what opening a corpus reads, every zarr.json and the index.
    """
    try:
        files = read_manifest(path)
    except FileNotFoundError:
        return [(MANIFEST, "missing file")] if _says_sealed(path) else []
    except (OSError, ValueError) as error:
        return [(MANIFEST, str(error))]
    looked = [name for name in files if not metadata_only or name.startswith("index/") or name.endswith("zarr.json")]
    found = [(name, why) for name in looked if (why := _difference(path / name, files[name]))]
    try:
        strangers = [] if found or metadata_only else [name for name in covered(path) if name not in files]
    except RunError as error:
        return [(MANIFEST, str(error))]
    return found + [(name, f"is not in the manifest") for name in strangers]


@contextmanager
def staged(path: Path, *, replaces: Sequence[str] = (), manifest: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A folder to write files in that, when the block ends well, all take the place of those of the same relative path in the corpus.

    `replaces` names folders ("index/split") that are replaced as a whole: files below them that were not written anew go away.
    `manifest` is the new manifest where the caller knows it; else the old one is brought up to date, if there is one.
    UsageError when another process changes the corpus, RunError when the disk refuses: nothing has changed then.
    """
    with _only_editor(path):
        finish(path)
        part = path / f"{CHANGE}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            _commit(path, part, replaces, manifest)
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; nothing was changed") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        finish(path)


def finish(path: Path) -> bool:
    """Complete an edit that was interrupted after it counted; True when there was one. RunError when its file list leaves the corpus."""
    change = path / CHANGE
    if not change.is_dir():
        return False
    try:
        removed = json.loads((change / REMOVE).read_bytes()) if (change / REMOVE).exists() else []
        files = [name for name in _files_below(change) if name != REMOVE]
        for name in [*removed, *files]:
            check_inside(name)
            if not (path / name).parent.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"the path {name!r} leaves the corpus")
        _move(path, change, removed, files)
    except (OSError, ValueError) as error:
        raise RunError(f"{change}: an interrupted edit cannot be completed: {error}") from error
    return True


def _move(path: Path, change: Path, removed: list[str], files: list[str]) -> None:
    for name in removed:
        (path / name).unlink(missing_ok=True)
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(change / name, path / name)
    for folder in {(path / name).parent for name in (*removed, *files)}:
        if folder.is_dir():
            sync_folder(folder)
    shutil.rmtree(change)


def _commit(path: Path, part: Path, replaces: Sequence[str], manifest: Mapping[str, str] | None) -> None:
    files = _files_below(part)
    removed = [name for folder in replaces if (path / folder).is_dir() for below in _files_below(path / folder)
               if (name := f"{folder}/{below}") not in files]
    if manifest is None and (path / MANIFEST).exists():
        kept = {name: value for name, value in _intact_manifest(path).items() if name not in removed}
        manifest = {**kept, **{name: digest((part / name).read_bytes()) for name in files}}
    if manifest is not None:
        write_file(part / MANIFEST, [manifest_bytes(manifest)])
    write_file(part / REMOVE, [json.dumps(removed).encode()])
    for name in files:
        sync_file(part / name)
    os.rename(part, path / CHANGE)
    sync_folder(path)


def sync_file(path: Path) -> None:
    """Make a file and its name durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _intact_manifest(path: Path) -> dict[str, str]:
    try:
        return read_manifest(path)
    except ValueError as error:
        raise RunError(f"{path / MANIFEST}: {error}") from error


def _difference(file: Path, stated: str) -> str:
    try:
        return "" if digest(file.read_bytes()) == stated else f"does not have the sha256 that the manifest states"
    except FileNotFoundError:
        return "missing file"
    except OSError as error:
        return str(error.strerror)


def _collect(root: Path, folder: Path, found: list[str]) -> None:
    """Add the listed files of a group or array and of the groups and arrays in it."""
    file = folder / "zarr.json"
    if not file.is_file():
        return
    found.append(file.relative_to(root).as_posix())
    node = _node(file)
    if node.get("node_type") == "array":
        codecs = node.get("codecs") or [{}]
        if codecs[0].get("name") != "sharding_indexed":
            chunks = (name for name in _files_below(folder) if name != "zarr.json" and not name.endswith(".tmp"))
            found.extend(f"{folder.relative_to(root).as_posix()}/{name}" for name in chunks)
        return
    _collect_below(root, folder, found)


def _collect_below(root: Path, folder: Path, found: list[str]) -> None:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith(".") and entry.path != str(root / MANIFEST.split("/")[0]):
            _collect(root, Path(entry.path), found)


def _node(file: Path) -> dict[str, Any]:
    try:
        node = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: damaged metadata ({error})") from error
    if not isinstance(node, dict):
        raise RunError(f"{file}: damaged metadata (not an object)")
    return node


def _files_below(folder: Path) -> list[str]:
    return sorted(PurePosixPath(Path(parent, name).relative_to(folder)).as_posix() for parent, _, names in os.walk(folder) for name in names)


def _below(name: str, folders: Sequence[str]) -> bool:
    return not folders or any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _says_sealed(path: Path) -> bool:
    try:
        return bool(json.loads((path / "zarr.json").read_bytes())["attributes"]["dsengine"].get("sealed"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _marked(root: bytes) -> bytes:
    """The root's zarr.json with attribute `sealed`."""
    node = json.loads(root)
    node["attributes"]["dsengine"]["sealed"] = True
    return json.dumps(node, indent=2).encode()


@contextmanager
def _only_editor(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(f"{path}: another process is changing this corpus") from error
    finally:
        os.close(handle)
