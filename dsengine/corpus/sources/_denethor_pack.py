"""The Sentinel-2 arrays of a tile: in a folder, or in the zip they were published in, gzipped or not."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from dsengine.corpus.build.npy import Npy, header, plain, stage, unpacked
from dsengine.errors import RunError, UsageError

MAX_SMALL = 16 << 20  # bytes of a file that is read whole


class Pack:
    """Files by name, such as `data/BANDS.npy`; a `.gz` behind the name and gzip inside the file do not matter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = _members(path) if path.suffix == ".zip" else None

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._find(name) is not None

    def small(self, name: str) -> bytes:
        """All bytes of a file of at most 16 MiB. UsageError when it is larger or cannot be read."""
        try:
            with self._opened(name)() as stream:
                content = stream.read(MAX_SMALL + 1)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"{self.path / name} cannot be read: {error}") from error
        if len(content) > MAX_SMALL:
            raise UsageError(f"{self.path / name}: more than {MAX_SMALL} bytes; legal: at most that")
        return content

    def array(self, name: str) -> Npy:
        """What an array declares. For one that lies plain in a folder, all its bytes are there."""
        found = self._find(name)
        if found is None:
            raise UsageError(f"{self.path}: no {name}; legal: a tile as published")
        try:
            if self.is_plain(name):
                return plain(Path(found))
            with self._opened(name)() as stream:
                return header(stream, f"{self.path / name}")
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"{self.path / name} cannot be read: {error}") from error

    def start(self, name: str, num_bytes: int) -> bytes:
        """The first bytes behind the header."""
        with self._opened(name)() as stream:
            header(stream, str(self.path / name))
            return stream.read(num_bytes)

    def is_plain(self, name: str) -> bool:
        """Whether the array can be read in place."""
        if self._members is not None or not self.has(name):
            return False
        with open(self._find(name) or "", "rb") as file:
            return file.read(2) != b"\x1f\x8b"

    def staged(self, name: str, scratch: Path) -> Npy:
        """The array as a plain file: in place, or below `scratch`, where `unpack` puts it."""
        declared = self.array(name)
        return declared if self.is_plain(name) else declared._replace(path=str(scratch / PurePosixPath(name).name))

    def unpack(self, name: str, scratch: Path) -> None:
        """Put the array below `scratch` unless it can be read in place."""
        if not self.is_plain(name):
            stage(self._opened(name), scratch / PurePosixPath(name).name, self.array(name))

    def _find(self, name: str) -> str | None:
        for candidate in (name, f"{name}.gz"):
            if self._members is None and (self.path / candidate).is_file():
                return str(self.path / candidate)
            if self._members is not None and candidate in self._members:
                return self._members[candidate]
        return None

    def _opened(self, name: str) -> Callable[[], IO[bytes]]:
        found = self._find(name)
        if found is None:
            raise UsageError(f"{self.path}: no {name}; legal: a tile as published")
        if self._members is None:
            return lambda: unpacked(open(found, "rb"))
        return lambda: unpacked(zipfile.ZipFile(self.path).open(found))


def _members(path: Path) -> dict[str, str]:
    """Name within the tile -> name in the zip, whose files lie in one folder or at the top. UsageError for a name that leaves the zip."""
    try:
        with zipfile.ZipFile(path) as file:
            names = [info.filename for info in file.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read as a zip: {error}") from error
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise UsageError(f"{path} is refused: its member {name!r} leaves the archive")
    prefix = next((name[:-len(tail)] for name in names for tail in ("bbox.pkl", "bbox.pkl.gz") if name.endswith(tail)), "")
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def complain(path: Path, error: Exception) -> RunError:
    """What reading a file of a tile failed with."""
    return RunError(f"{path} cannot be read: {error}")


def text_lines(path: Path) -> list[str]:
    """Lines of a small text file that are not empty. UsageError when it cannot be read."""
    try:
        content = path.read_bytes()[:MAX_SMALL].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return [line.strip() for line in io.StringIO(content) if line.strip()]
