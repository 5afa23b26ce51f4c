"""Where a corpus lies: a local folder, or an object store named by a URL, behind the few operations that a corpus needs.

Keys are names relative to the corpus with "/" between their parts. A failure is an OSError whose one-line `strerror` holds no
credentials, FileNotFoundError for a key that is not there; so local disks and object stores fail alike. Objects are written
whole or not at all by the store itself; what is transient is tried again, for about half a minute.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsengine.corpus.shards import sync, write_file
from dsengine.errors import UsageError

if TYPE_CHECKING:
    from zarr.abc.store import Store

SCHEMES = ("s3", "gs", "az")
FOREIGN = ("abfs", "abfss", "file", "ftp", "gcs", "hdfs", "http", "https", "s3a", "s3n")  # names for which no folder is meant


class Url:
    """An object-store URL, joined and printed like a path."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __truediv__(self, key: str) -> "Url":
        return Url(f"{self._text}/{key}")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Url({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def name(self) -> str:
        """The last part."""
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """All but the last part."""
        return Url(self._text.rpartition("/")[0])


class Storage(ABC):
    """One corpus's place."""

    path: Path | Url  # for messages: `path / key`
    local: bool

    @abstractmethod
    def get(self, key: str) -> bytes:
        """All bytes of a key."""

    @abstractmethod
    def get_range(self, key: str, *, start: int, size: int) -> bytes:
        """`size` bytes from `start`; fewer only where the key ends before."""

    @abstractmethod
    def get_tail(self, key: str, *, size: int) -> tuple[bytes, int]:
        """The last `size` bytes, or all if there are fewer, and how many the key has."""

    @abstractmethod
    def put(self, key: str, parts: Sequence[bytes]) -> None:
        """Write a key so that it is there whole or not at all, and there to stay."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such a key."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys below a folder, in any order, deeper ones too."""

    @abstractmethod
    def sizes(self, prefix: str = "") -> Iterator[int]:
        """Bytes of each key below a folder, in any order."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys; those that are not there are passed over."""

    @abstractmethod
    def concurrently(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """`work` of each item, in order, as many at once as this place gains from. Raises the first item's error."""

    @abstractmethod
    def zarr_store(self) -> "Store":
        """The same place for zarr-python, for reading."""


class LocalStorage(Storage):
    """A folder."""

    local = True

    def __init__(self, path: Path) -> None:
        self.path: Path = path

    def get(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def get_range(self, key: str, *, start: int, size: int) -> bytes:
        with open(self.path / key, "rb") as file:
            file.seek(start)
            return file.read(size)

    def get_tail(self, key: str, *, size: int) -> tuple[bytes, int]:
        with open(self.path / key, "rb") as file:
            total = file.seek(0, os.SEEK_END)
            file.seek(max(0, total - size))
            return file.read(size), total

    def put(self, key: str, parts: Sequence[bytes]) -> None:
        write_file(self.path / key, parts)

    def exists(self, key: str) -> bool:
        return (self.path / key).is_file()

    def keys(self, prefix: str = "") -> Iterator[str]:
        for folder, _, names in os.walk(self.path / prefix):
            for name in names:
                yield os.path.relpath(os.path.join(folder, name), self.path)

    def sizes(self, prefix: str = "") -> Iterator[int]:
        return (os.path.getsize(self.path / key) for key in self.keys(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        folders = set()
        for key in keys:
            (self.path / key).unlink(missing_ok=True)
            folders.add((self.path / key).parent)
        for folder in folders:
            if folder.is_dir():
                sync(folder)

    def concurrently(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [work(item) for item in items]

    def zarr_store(self) -> "Store":
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)


def located(path: "str | os.PathLike[str] | Url") -> Path | Url:
    """A folder's path or a checked URL. UsageError for a URL that is not legal, without repeating credentials in it."""
    if isinstance(path, Url):
        return path
    text = os.fspath(path)
    # One slash is enough: where an argument is declared as a Path, that has taken the other one out.
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*):(//?)(.*)", text, re.DOTALL)
    if not found or (found[2] == "/" and found[1] not in SCHEMES + FOREIGN):
        return Path(text)
    scheme, parts = found[1], found[3].removesuffix("/").split("/")
    if scheme not in SCHEMES:
        raise UsageError(f"{scheme}://...: legal: a folder, or a URL of {', '.join(f'{name}://' for name in SCHEMES)}")
    if re.search(r"[@?#\\\s]", found[3]):
        raise UsageError(f"{scheme}://...: a URL is scheme://bucket/path without user, password, query or spaces; credentials and the endpoint "
                         "come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)")
    if any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{text}: legal: {scheme}://bucket/path without empty parts, . and ..")
    return Url(f"{scheme}://{'/'.join(parts)}")


def absolute(path: "str | os.PathLike[str] | Url") -> str:
    """The same place whatever the current folder."""
    place = located(path)
    return str(place.resolve()) if isinstance(place, Path) else str(place)


def storage_at(path: "str | os.PathLike[str] | Url") -> Storage:
    """The storage of a folder or URL; nothing is read. UsageError for an illegal URL or without the package for it."""
    place = located(path)
    if isinstance(place, Path):
        return LocalStorage(place)
    from dsengine.corpus.objects import ObjectStorage

    return ObjectStorage(place)
