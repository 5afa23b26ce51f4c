"""Large .npy files from strangers: header and size are checked before anything is read, and rows are read in place."""

import ast
import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from dsengine.errors import RunError, UsageError

MAGIC = b"\x93NUMPY"
GZIP = b"\x1f\x8b"
MAX_HEADER = 1 << 16
PIECE = 1 << 22


class Npy(NamedTuple):
    """An array in C order at `offset` of a file."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        size = np.dtype(self.dtype).itemsize
        for length in self.shape:  # Python integers: a declared shape may exceed any machine integer
            size *= length
        return size

    def open(self) -> np.memmap:
        """The values, mapped: reading some of them reads their pages only. RunError when the file has changed."""
        try:
            if os.path.getsize(self.path) != self.offset + self.nbytes:
                raise RunError(f"{self.path}: its size has changed since the build was planned")
            return np.memmap(self.path, np.dtype(self.dtype), "r", self.offset, self.shape)
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error}") from error


def header(stream: IO[bytes], source: str) -> Npy:
    """What a stream that starts with a .npy header declares; `path` is `source`. UsageError when it is none, or holds objects."""
    start = stream.read(10)
    if start[:6] != MAGIC or len(start) < 10 or start[6] not in (1, 2, 3):
        raise UsageError(f"{source} is not a .npy file")
    wide = start[6] > 1
    length = int.from_bytes(start[8:10] + (stream.read(2) if wide else b""), "little")
    if length > MAX_HEADER:
        raise UsageError(f"{source}: a header of {length} bytes; legal: at most {MAX_HEADER}")
    try:
        described = ast.literal_eval(stream.read(length).decode("utf-8" if start[6] == 3 else "latin1"))
        shape, text = tuple(described["shape"]), described["descr"]
        if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?[biuf]\d", text) or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"dtype {text!r}, shape {shape}; legal: numbers")
        if described["fortran_order"]:
            raise ValueError("columns first; legal: C order")
    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise UsageError(f"{source}: the .npy header cannot be taken: {error}") from error
    return Npy(source, shape, np.dtype(text).str, (12 if wide else 10) + length)


def plain(path: Path) -> Npy:
    """A .npy file on disk. UsageError when it does not have the bytes that it declares."""
    with open(path, "rb") as file:
        found = header(file, str(path))
        size = os.fstat(file.fileno()).st_size
    if size != found.offset + found.nbytes:
        raise UsageError(f"{path} declares {found.shape} {found.dtype}, {found.nbytes} bytes, but holds {size - found.offset}; "
                         "legal: a complete file")
    return found


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """The stream, inflated where its first bytes are those of gzip, whatever its name says. It must be seekable."""
    start = stream.read(2)
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if start == GZIP else stream


def stage(opened: Callable[[], IO[bytes]], target: Path, declared: Npy) -> None:
    """Unpack a .npy to `target`, once: a complete file of the declared size stays as it is. RunError when the stream is shorter or longer than
    its header declares, or the disk has no room."""
    total = declared.offset + declared.nbytes
    if target.is_file() and target.stat().st_size == total:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < total:
        raise RunError(f"{target.parent}: unpacking {declared.path} takes {total} bytes, more than are free (--scratch)")
    part = target.with_name(target.name + ".part")
    written = 0
    try:
        with opened() as stream, open(part, "wb") as file:
            while piece := stream.read(min(PIECE, total + 1 - written)):
                written += len(piece)
                if written > total:
                    break
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, EOFError) as error:  # BadGzipFile is an OSError
        raise RunError(f"{declared.path} cannot be unpacked: {error}") from error
    if written != total:
        raise RunError(f"{declared.path} declares {total} bytes and holds {'more' if written > total else written}; legal: a complete file")
    os.replace(part, target)
