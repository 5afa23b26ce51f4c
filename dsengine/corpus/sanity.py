"""What metadata may say: names, shapes and sizes are checked here before any of them is used for a path or an allocation."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr
from numcodecs import zstd
from zarr.codecs import ShardingCodec

from dsengine.corpus.frames import chain, check_declared
from dsengine.corpus.schema import INDEX_DTYPES, LABEL_KINDS, MAX_PATCH_BYTES, Band, check_name
from dsengine.corpus.storage import Storage, Url
from dsengine.errors import RunError, UsageError

MAX_SHARD_PATCHES = 1 << 20
MAX_FILES = 1 << 22  # of one array; 268 million patches
MAX_CLASSES = 65536
MAX_CHUNK_BYTES = 1 << 30  # decoded chunk of an index column or label vector
MAX_TEXT_BYTES = 1024  # of one value of a text column, on average
DAMAGE = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, NotImplementedError)  # what zarr-python raises on metadata
MAX_RATIO = 2000  # rows that a stored column may claim, per byte; an id column has 1


def check_bands(bands: Sequence[Band], patch_size: int, path: Path | Url) -> None:
    """UsageError when the band table names arrays outside the corpus, or places a band twice or where it cannot be."""
    for band in bands:
        check_name(band.array, f"{path}: the band table: array")
        if type(band.channel) is not int or type(band.factor) is not int or band.factor < 1 or patch_size % band.factor:
            raise UsageError(f"{path}: the band table: band {band.name}: channel {band.channel!r}, factor {band.factor!r}; "
                             f"legal: whole numbers, the factor one of patch size {patch_size}")
    for array in dict.fromkeys(band.array for band in bands):
        mine = [band for band in bands if band.array == array]
        if sorted(band.channel for band in mine) != list(range(len(mine))) or len({(band.sensor, band.factor) for band in mine}) > 1:
            raise UsageError(f"{path}: the band table: array {array} has channels {[band.channel for band in mine]} of sensors "
                             f"{sorted({band.sensor for band in mine})}; legal: each of 0..{len(mine) - 1} once, of one sensor and factor")
    if len({band.name for band in bands}) < len(bands):
        raise UsageError(f"{path}: the band table names a band twice")


def check_image(array: zarr.Array, bands: Sequence[Band], *, num_patches: int, patch_size: int, file: Path | Url) -> None:
    """RunError when an image array is not what root and band table say, or too large to be one."""
    side = patch_size // bands[0].factor
    legal = (num_patches, len(bands), side, side)
    _check(array.shape == legal, file, f"shape {array.shape}, the root says {legal}")
    _check(array.dtype == "int16", file, f"dtype {array.dtype}, legal: int16")
    _check_chunk(array, file, MAX_PATCH_BYTES)
    attrs = dict(array.attrs)
    names = [band.name for band in sorted(bands, key=lambda band: band.channel)]
    _check(attrs.get("bands") == names, file, f"bands {attrs.get('bands')}, the root says {names}")
    _check(_finite(attrs.get("scale_factor")) and attrs["scale_factor"] and _finite(attrs.get("add_offset")), file,
           f"scale_factor {attrs.get('scale_factor')}, add_offset {attrs.get('add_offset')}; legal: numbers, the first not 0")
    _check(type(attrs.get("nodata")) is int, file, f"nodata {attrs.get('nodata')}; legal: a whole number")
    for key in ("mean", "std", "count"):
        values = attrs.get(key)
        _check(values is None or (isinstance(values, list) and len(values) == len(bands) and all(v is None or _finite(v) for v in values)), file,
               f"{key} {values}; legal: {len(bands)} numbers")


def check_label(array: zarr.Array, *, num_patches: int, patch_size: int, file: Path | Url) -> None:
    """RunError when a label array does not have one value, K values or one map a patch, or no class table."""
    attrs = dict(array.attrs)
    kind = attrs.get("kind")
    _check(kind in LABEL_KINDS, file, f"kind {kind!r}; legal: {', '.join(LABEL_KINDS)}")
    classes = attrs.get("classes")
    _check(isinstance(classes, dict) and all(re.fullmatch(r"-?\d{1,18}", str(value)) for value in classes), file, "classes is not a table value -> name")
    width = array.shape[1] if array.ndim > 1 else 0
    legal = {"class": (num_patches,), "multilabel": (num_patches, width), "classmap": (num_patches, patch_size, patch_size)}[kind]
    _check(array.shape == legal and (kind == "classmap" or width <= MAX_CLASSES), file, f"shape {array.shape}, expected {legal}")
    _check(array.dtype.kind in "iub", file, f"dtype {array.dtype}, legal: whole numbers")
    _check_chunk(array, file, MAX_PATCH_BYTES if kind == "classmap" else MAX_CHUNK_BYTES)


def check_array(array: zarr.Array, file: Path | Url) -> None:
    """RunError when one chunk of any other array would be too large."""
    _check(array.ndim >= 1, file, "a scalar; legal: arrays")
    _check_chunk(array, file, MAX_CHUNK_BYTES)


def check_rows(array: zarr.Array, *, num_rows: int, file: Path | Url) -> None:
    """RunError when the values, times or labels of series or pixels are not a row each, or a row or chunk is too large."""
    _check(array.ndim >= 1 and array.shape[0] == num_rows, file, f"shape {array.shape}, the root says {num_rows} rows")
    size = int(np.prod([int(n) for n in array.shape[1:]], dtype=object)) * array.dtype.itemsize
    _check(size <= MAX_PATCH_BYTES, file, f"rows of {size:,} bytes; legal: up to {MAX_PATCH_BYTES:,}")
    _check_chunk(array, file, MAX_CHUNK_BYTES)


def check_column(array: zarr.Array, name: str, *, num_rows: int, storage: Storage) -> None:
    """RunError when an index column does not have a value a row, or its files say that they become more than that.

    Check `id` first: it has to be stored, and so bounds the number of rows for all others.
    """
    file = storage.path / "index" / name / "zarr.json"
    _check(array.shape == (num_rows,), file, f"shape {array.shape}, the root says {(num_rows,)}")
    text = array.dtype.kind in "OTU"
    if name in INDEX_DTYPES:
        _check(text if INDEX_DTYPES[name] == "str" else array.dtype == INDEX_DTYPES[name], file, f"dtype {array.dtype}, legal: {INDEX_DTYPES[name]}")
    codecs = [codec.to_dict() for codec in array.metadata.codecs]
    try:
        compressor, checked = chain(codecs)
    except ValueError as error:
        raise RunError(f"{file}: {error}") from error
    rows = array.chunks[0]
    limit = rows * (4 + MAX_TEXT_BYTES if text else array.dtype.itemsize) + 4 * text
    _check(not text or compressor in ("", "zstd"), file, f"strings in {compressor}; legal: zstd")
    _check(rows >= 1 and (text or limit <= MAX_CHUNK_BYTES), file, f"chunks of {rows:,} rows; legal: up to {MAX_CHUNK_BYTES >> 20} MiB")
    if name == "id" and num_rows > 1:  # the id of a single patch is 0, the fill value, and then there is no chunk
        stored = sum(storage.sizes(f"index/{name}"))
        _check(num_rows <= stored * MAX_RATIO, file, f"{num_rows:,} rows in {stored:,} bytes")
    keys = [f"index/{name}/{array.metadata.encode_chunk_key((number,))}" for number in range(-(-num_rows // rows))]
    storage.concurrently(lambda key: _check_stored(storage, key, compressor, limit), keys)
    if text:
        storage.concurrently(lambda key: _check_text(storage, key, compressor, checked, rows), keys)


def _check_text(storage: Storage, key: str, compressor: str, checked: bool, rows: int) -> None:
    """RunError when a chunk of strings says that it has another number of them: the decoder allocates as many."""
    try:
        body = storage.get(key)
        content = zstd.decompress(body[:-4] if checked else body) if compressor == "zstd" else body
    except FileNotFoundError:
        return
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"{storage.path / key}: damaged column ({error})") from error
    count = int.from_bytes(content[:4], "little")
    _check(count == rows, storage.path / key, f"{count:,} strings, the chunk has {rows:,}")


def _check_stored(storage: Storage, key: str, compressor: str, limit: int) -> None:
    """RunError when a chunk's header states more than `limit` bytes; an absent chunk is all fill value."""
    try:
        head = storage.get_range(key, start=0, size=32)
        size = storage.get_tail(key, size=1)[1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{storage.path / key}: {error.strerror}") from error
    _check(size <= limit + 1024, storage.path / key, f"{size:,} bytes, at most {limit:,} belong here")
    try:
        check_declared(compressor, head if compressor else b"", limit)
    except ValueError as error:
        raise RunError(f"{storage.path / key}: damaged column ({error})") from error


def _check_chunk(array: zarr.Array, file: Path | Url, limit: int) -> None:
    """Bounds of what a reader allocates for one chunk."""
    codec = array.metadata.codecs[0]
    shape = codec.chunk_shape if isinstance(codec, ShardingCodec) else array.chunks
    size = int(np.prod([int(n) for n in shape], dtype=object)) * array.dtype.itemsize
    files = int(np.prod([-(-n // c) for n, c in zip(array.shape, array.metadata.chunk_grid.chunk_shape, strict=True)], dtype=object))
    _check(files <= MAX_FILES, file, f"shape {array.shape} in {files:,} files; legal: up to {MAX_FILES:,}")
    _check(size <= limit, file, f"chunks of {shape} {array.dtype}, {size:,} bytes; legal: up to {limit:,}")
    if isinstance(codec, ShardingCodec):
        slots = int(np.prod([whole // part for whole, part in zip(array.metadata.chunk_grid.chunk_shape, shape, strict=True)], dtype=object))
        _check(1 <= slots <= MAX_SHARD_PATCHES, file, f"{slots:,} chunks a shard; legal: 1 to {MAX_SHARD_PATCHES:,}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _check(holds: object, file: Path | Url, what: str) -> None:
    if not holds:
        raise RunError(f"{file}: damaged metadata: {what}")
