"""The manifest of a corpus: sha256 of every file that has no checksum of its own.

It is the attributes of the Zarr group `manifest`: `files`, key -> sha256, and `sha256`, of that table. It lists every zarr.json and every
chunk file of an array without shards (index columns, label vectors, the neighbour table); the chunks and chunk tables of shards carry a
crc32c each. The root says `sealed` where there is a manifest; an older corpus has none and is read without.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from dsengine.corpus.storage import Storage, Url, storage_at
from dsengine.errors import RunError

MANIFEST = "manifest/zarr.json"  # a group, because zarr-python warns of every other file it finds in one
VERSION = 1
Place = str | os.PathLike[str] | Url


def digest(data: bytes) -> str:
    """What the manifest holds of a file."""
    return hashlib.sha256(data).hexdigest()


def manifest_bytes(files: Mapping[str, str]) -> bytes:
    """The one legal spelling of a manifest: `files` (relative path -> sha256) in order, and the sha256 of that table itself."""
    table = dict(sorted(files.items()))
    attributes = {"version": VERSION, "files": table, "sha256": digest(json.dumps(table).encode())}
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=1).encode()


def read_manifest(storage: Storage) -> dict[str, str]:
    """Relative path -> sha256. FileNotFoundError when there is none, ValueError when it is damaged or names a file outside the corpus."""
    stored = storage.get(MANIFEST)
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


def nodes(storage: Storage) -> dict[str, dict[str, Any]]:
    """The zarr.json of every group and array but the manifest, by folder ("" is the root). RunError when one cannot be read."""
    found = sorted(key for key in _visible(storage) if _is_node(key) and key != MANIFEST)
    return {key.removesuffix("zarr.json").rstrip("/"): _node(storage, key) for key in found}


def covered(storage: Storage) -> list[str]:
    """The keys that a manifest lists, sorted. RunError when a zarr.json cannot be read."""
    keys = [key for key in _visible(storage) if key != MANIFEST]
    found = [key for key in keys if _is_node(key)]
    plain = {key.removesuffix("/zarr.json") for key in found if _is_plain_array(_node(storage, key))}
    return sorted([*found, *(key for key in keys if not _is_node(key) and not plain.isdisjoint(_folders(key)))])


def sealed(storage: Storage, root: bytes, known: Mapping[str, str]) -> tuple[bytes, bytes]:
    """(manifest, root with attribute `sealed`) of a corpus all of whose files are there but for these two; `known` are sha256 by key."""
    described = marked(root)
    files = {key: known.get(key) or digest(storage.get(key)) for key in covered(storage) if key != "zarr.json"}
    return manifest_bytes({**files, "zarr.json": digest(described)}), described


def differences(path: Place, *, metadata_only: bool = False) -> list[tuple[str, str]]:
    """(key, what is wrong) of each file that does not agree with the manifest; none for a corpus without a manifest.

    `metadata_only`: only what opening a corpus reads, every zarr.json and the index.
    """
    storage = storage_at(path)
    try:
        files = read_manifest(storage)
    except FileNotFoundError:
        return [(MANIFEST, "missing file")] if _says_sealed(storage) else []
    except (OSError, ValueError) as error:
        return [(MANIFEST, getattr(error, "strerror", None) or str(error))]
    looked = [key for key in files if not metadata_only or key.startswith("index/") or _is_node(key)]
    wrong = storage.concurrently(lambda key: _difference(storage, key, files[key]), looked)
    found = [(key, what) for key, what in zip(looked, wrong, strict=True) if what]
    if metadata_only:
        return found
    try:
        return found + [(key, "is not in the manifest") for key in covered(storage) if key not in files]
    except RunError as error:
        return found or [(MANIFEST, str(error))]


def _says_sealed(storage: Storage) -> bool:
    try:
        return bool(json.loads(storage.get("zarr.json"))["attributes"]["dsengine"].get("sealed"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def marked(root: bytes) -> bytes:
    """The root's zarr.json with attribute `sealed`."""
    node = json.loads(root)
    node["attributes"]["dsengine"]["sealed"] = True
    return json.dumps(node, indent=2).encode()


def _difference(storage: Storage, key: str, stated: str) -> str:
    try:
        return "" if digest(storage.get(key)) == stated else "does not have the sha256 that the manifest states"
    except FileNotFoundError:
        return "missing file"
    except OSError as error:
        return str(error.strerror)


def _visible(storage: Storage) -> Iterator[str]:
    """Keys of the corpus proper: no journal, staged edit or temporary file."""
    return (key for key in storage.keys() if not key.endswith(".tmp") and not any(part.startswith(".") for part in key.split("/")))


def _is_node(key: str) -> bool:
    return key == "zarr.json" or key.endswith("/zarr.json")


def _is_plain_array(node: Mapping[str, Any]) -> bool:
    codecs = node.get("codecs") or [{}]
    return node.get("node_type") == "array" and codecs[0].get("name") != "sharding_indexed"


def _folders(key: str) -> Iterator[str]:
    """Every folder above a key."""
    parts = key.split("/")
    return ("/".join(parts[:n]) for n in range(1, len(parts)))


def _node(storage: Storage, key: str) -> dict[str, Any]:
    try:
        node = json.loads(storage.get(key))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{storage.path / key}: damaged metadata ({error})") from error
    if not isinstance(node, dict):
        raise RunError(f"{storage.path / key}: damaged metadata (not an object)")
    return node
