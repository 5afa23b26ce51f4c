"""Reads arrays of a Zarr v2 group in a zip file, in place and without trust in what the file says of itself.

Member names that leave the group, sizes beyond what the declared chunk needs, codecs other than Blosc, filters and object dtypes (which can
run code) are refused by name before anything is allocated or decoded. A chunk that is not there is damage, not the fill value.
"""

import itertools
import json
import zipfile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.schema import UNKNOWN_TIME
from dsengine.errors import RunError

MAX_CHUNK = 512 << 20  # bytes, decoded; the published files have up to 113 MB
MAX_TAKEN = 512 << 20  # bytes handed out at once; 64 patches have up to 116 MB
MAX_MEMBERS = 200_000
MAX_JSON = 1 << 20
MAX_AXIS = 1 << 24  # entries along one axis
_FRAME = 16  # bytes of a Blosc header: flags, then decoded size at 4 and encoded size at 12, little endian uint32
_SLACK = 4096  # bytes that a frame of incompressible data may be longer than its content
_NS = {"days": 86_400 * 10**9, "hours": 3_600 * 10**9, "minutes": 60 * 10**9, "seconds": 10**9, "milliseconds": 10**6, "microseconds": 10**3,
       "nanoseconds": 1}


class Header(NamedTuple):
    """What .zarray says, checked."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    encoded: bool  # Blosc; else raw
    separator: str

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk."""
        return prod(self.chunks) * self.dtype.itemsize


class ZarrZip:
    """A group, opened for reading; use as a context manager. Every method raises RunError naming file and member."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise RunError(f"{path} cannot be read as a zip file: {error}") from error
        try:
            self._members = _checked_members(path, self._zip.infolist())
        except RunError:
            self._zip.close()
            raise

    def __enter__(self) -> "ZarrZip":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return f"{name}/.zarray" in self._members

    def header(self, name: str) -> Header:
        """Shape, chunks, dtype of an array."""
        return _parsed(f"{self.path}: {name}/.zarray", name, self._json(f"{name}/.zarray"))

    def attributes(self, name: str) -> dict[str, Any]:
        """.zattrs of an array, empty when there is none."""
        return self._json(f"{name}/.zattrs") if f"{name}/.zattrs" in self._members else {}

    def whole(self, name: str, *, limit: int) -> np.ndarray:
        """A small array as a whole, of up to `limit` values."""
        header = self.header(name)
        if prod(header.shape) > limit:
            raise RunError(f"{self.path}: {name} has shape {header.shape}; legal: up to {limit} values")
        return self.take(name, np.zeros((1, 0), np.int64))[0]

    def take(self, name: str, index: np.ndarray) -> np.ndarray:
        """(n, ...) of array[i, j, ...] for each row of `index` (n, k), the k leading axes. Each chunk is decoded once."""
        header, k = self.header(name), index.shape[1]
        if (index < 0).any() or (index >= np.array(header.shape[:k], np.int64)).any():
            raise RunError(f"{self.path}: {name} has shape {header.shape}, too small for what other arrays of the file promise")
        if (size := len(index) * prod(header.shape[k:]) * header.dtype.itemsize) > MAX_TAKEN:
            raise RunError(f"{self.path}: {len(index)} entries of {name}, shape {header.shape}, are {size} bytes; legal: up to {MAX_TAKEN}")
        out = np.empty((len(index), *header.shape[k:]), header.dtype)
        lead = index // np.array(header.chunks[:k], np.int64)
        trails = list(itertools.product(*(range(-(-size // chunk)) for size, chunk in zip(header.shape[k:], header.chunks[k:], strict=True))))
        for where in np.unique(lead, axis=0) if k else lead:
            rows = np.flatnonzero((lead == where).all(axis=1))
            for trail in trails:
                decoded = self._chunk(header, (*where.tolist(), *trail))
                inner = tuple((index[rows] - where * np.array(header.chunks[:k], np.int64)).T)
                starts = [at * chunk for at, chunk in zip(trail, header.chunks[k:], strict=True)]
                stops = [min(start + chunk, size) for start, chunk, size in zip(starts, header.chunks[k:], header.shape[k:], strict=True)]
                inside = tuple(slice(0, stop - start) for start, stop in zip(starts, stops, strict=True))
                part = decoded[inner] if k else decoded[None]
                out[(rows, *(slice(start, stop) for start, stop in zip(starts, stops, strict=True)))] = part[(slice(None), *inside)]
        return out

    def times(self, name: str) -> np.ndarray:
        """int64 ns UTC of a CF-encoded time array: numbers with attribute units, such as `seconds since 2020-01-01`; int64 min is unknown."""
        values, units = self.whole(name, limit=1 << 20), str(self.attributes(name).get("units", ""))
        unit, _, since = units.partition(" since ")
        try:
            start = np.datetime64(since.strip().replace(" ", "T"), "ns")
        except ValueError:
            start = np.datetime64("NaT")
        if unit not in _NS or np.isnat(start) or values.dtype.kind not in "iuf":
            raise RunError(f"{self.path}: {name} has units {units!r}; legal: numbers of days, hours, ... nanoseconds since a date")
        ticks = values.astype(np.int64) * _NS[unit] if values.dtype.kind != "f" else np.rint(np.nan_to_num(values) * float(_NS[unit])).astype(np.int64)
        known = values != np.iinfo(np.int64).min if values.dtype == np.int64 else np.isfinite(values)  # how writers say "not a time"
        return np.where(known, start.astype(np.int64) + np.where(known, ticks, 0), UNKNOWN_TIME)

    def _chunk(self, header: Header, at: tuple[int, ...]) -> np.ndarray:
        from numcodecs import blosc

        name = f"{header.name}/{header.separator.join(map(str, at)) or '0'}"
        content = self._bytes(name, limit=header.chunk_bytes + (_SLACK if header.encoded else 0))
        if header.encoded:
            sizes = np.frombuffer(content[:_FRAME], "<u4") if len(content) >= _FRAME else np.zeros(4, "<u4")
            if (sizes[1], sizes[3]) != (header.chunk_bytes, len(content)):
                raise RunError(f"{self.path}: {name} is not one Blosc frame of {header.chunk_bytes} bytes")
            try:
                content = blosc.decompress(content)
            except (RuntimeError, ValueError) as error:
                raise RunError(f"{self.path}: {name} cannot be decoded: {error}") from error
        if len(content) != header.chunk_bytes:
            raise RunError(f"{self.path}: {name} has {len(content)} bytes; legal: {header.chunk_bytes}")
        return np.frombuffer(content, header.dtype).reshape(header.chunks)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            parsed = json.loads(self._bytes(name, limit=MAX_JSON))
        except ValueError as error:
            raise RunError(f"{self.path}: {name} is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise RunError(f"{self.path}: {name} is not a JSON object")
        return parsed

    def _bytes(self, name: str, *, limit: int) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise RunError(f"{self.path}: {name} is missing")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile inflates the others without a bound
            raise RunError(f"{self.path}: {name} is compressed by zip method {info.compress_type}; legal: stored or deflated")
        if info.file_size > limit:
            raise RunError(f"{self.path}: {name} unpacks to {info.file_size} bytes; legal: up to {limit}")
        try:
            with self._zip.open(info) as file:
                return file.read(info.file_size)  # a plain read() inflates all that is there, whatever the directory says
        except (OSError, EOFError, zipfile.BadZipFile, RuntimeError, ValueError, NotImplementedError) as error:
            raise RunError(f"{self.path}: {name} cannot be read: {error}") from error


def _checked_members(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(infos) > MAX_MEMBERS:
        raise RunError(f"{path} has {len(infos)} members; legal: up to {MAX_MEMBERS}")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.orig_filename
        if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
            raise RunError(f"{path}: member {name!r} leaves the group; legal: relative names without ..")
        members[name] = info  # writers append a changed .zattrs anew: the last one counts
    return members


def _parsed(where: str, name: str, meta: dict[str, Any]) -> Header:
    try:
        shape, chunks = tuple(meta["shape"]), tuple(meta["chunks"])
        dtype = np.dtype(meta["dtype"]) if isinstance(meta["dtype"], str) else np.dtype(object)
        compressor = meta.get("compressor")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{where}: {type(error).__name__}: {error}") from error
    if meta.get("zarr_format") != 2 or meta.get("order", "C") != "C":
        raise RunError(f"{where}: zarr_format {meta.get('zarr_format')}, order {meta.get('order')}; legal: 2, C")
    if dtype.hasobject or dtype.kind not in "iufU" or meta.get("filters"):
        raise RunError(f"{where}: dtype {meta['dtype']}, filters {meta.get('filters')}; legal: numbers or fixed-width text without filters")
    if compressor is not None and (not isinstance(compressor, dict) or compressor.get("id") != "blosc"):
        raise RunError(f"{where}: compressor {compressor}; legal: blosc or none")
    if len(shape) != len(chunks) or not all(type(n) is int and 0 < n <= MAX_AXIS for n in (*shape, *chunks)):
        raise RunError(f"{where}: shape {shape}, chunks {chunks}; legal: as many of each, 1 to {MAX_AXIS}")
    separator = meta.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise RunError(f"{where}: dimension_separator {separator!r}; legal: . or /")
    header = Header(name, shape, chunks, dtype, compressor is not None, separator)
    if header.chunk_bytes > MAX_CHUNK:
        raise RunError(f"{where}: chunks {chunks} of {dtype} are {header.chunk_bytes} bytes; legal: up to {MAX_CHUNK}")
    return header
