"""One array out of an .npz of a stranger: its shape and dtype are compared with what is legal before anything is allocated.

An .npz is a zip of .npy files. What it declares is not believed: names with `..` or an absolute path are refused, sizes are checked
against the header of the array, and no more bytes are inflated than the array has. Arrays of Python objects (pickles) are never read.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from dsengine.errors import RunError

MAX_HEADER = 10_000  # bytes of a .npy header
SLACK = 1 << 20  # bytes that the zip may have beside the array

Shape = tuple[int, ...]


def read_npz(path: str | os.PathLike[str], key: str, *, shape: Shape, dtypes: Sequence[str]) -> np.ndarray:
    """Array `key`, which must have exactly this shape and one of these dtypes. Raises RunError naming the file and what came."""
    path, most = Path(path), int(np.prod(shape)) * max(np.dtype(dtype).itemsize for dtype in dtypes)
    try:
        # A list of a million empty members is a bomb, too: the whole file is bounded before its list is read.
        if (size := path.stat().st_size) > most + SLACK:
            raise RunError(f"{path} has {size} bytes; legal: at most {most + SLACK} for an array of shape {shape}")
        with zipfile.ZipFile(path) as archive:
            with archive.open(_member(archive, key, path)) as file:
                found, fortran, dtype = _header(file, path)
                if found != shape or dtype not in [np.dtype(legal) for legal in dtypes]:
                    raise RunError(f"{path}: {key} has shape {found} and dtype {dtype}; legal: {shape} {' or '.join(dtypes)}")
                return _array(file, found, dtype, fortran=fortran, path=path)
    except RunError:
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise RunError(f"{path} cannot be read as an .npz: {error}") from error


def npz_shape(path: str | os.PathLike[str], key: str, *, max_bytes: int) -> Shape:
    """What the header of array `key` says, without reading the array. Raises RunError as `read_npz` does."""
    path = Path(path)
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise RunError(f"{path} has {size} bytes; legal: at most {max_bytes}")
        with zipfile.ZipFile(path) as archive:
            with archive.open(_member(archive, key, path)) as file:
                return _header(file, path)[0]
    except RunError:
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise RunError(f"{path} cannot be read as an .npz: {error}") from error


def _member(archive: zipfile.ZipFile, key: str, path: Path) -> zipfile.ZipInfo:
    names = archive.namelist()
    for name in names:
        if name.startswith(("/", "\\")) or ":" in name or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise RunError(f"{path} is refused: member {name!r} points outside the archive")
    if f"{key}.npy" not in names:
        raise RunError(f"{path} has no array {key}; it has {', '.join(names[:5]) or 'nothing'}")
    return archive.getinfo(f"{key}.npy")


def _header(file: IO[bytes], path: Path) -> tuple[Shape, bool, np.dtype]:
    """(shape, Fortran order, dtype) of a .npy stream, which then stands at its numbers."""
    version = np.lib.format.read_magic(file)
    width, parse = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}.get(version, (0, None))
    if parse is None:
        raise RunError(f"{path}: .npy version {version}; legal: 1.0 or 2.0")
    length = file.read(width)
    # numpy would read as many bytes as the length says, up to 4 GiB, before it judges them.
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise RunError(f"{path}: the .npy header has {int.from_bytes(length, 'little')} bytes; legal: at most {MAX_HEADER}")
    shape, fortran, dtype = parse(io.BytesIO(length + file.read(int.from_bytes(length, "little"))))
    if dtype.hasobject:
        raise RunError(f"{path} is refused: its array holds Python objects, which only unpickling could read")
    return shape, fortran, dtype


def _array(file: IO[bytes], shape: Shape, dtype: np.dtype, *, fortran: bool, path: Path) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    content = file.read(size + 1)  # one more, so that the checksum at the end is read and a longer member shows
    if len(content) != size:
        raise RunError(f"{path}: the array has {'more' if len(content) > size else 'less'} bytes than its header says ({size})")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
