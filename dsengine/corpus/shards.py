"""Bytes of one shard: inner chunks back to back, then (offset, length) of each as uint64, then the crc32c of that table.

Follows the Zarr v3 sharding codec with `index_location` "end". Written here rather than by zarr-python so that a shard is
one sequential write to a temporary name and so that compressing runs in threads.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np

from dsengine.corpus import bitpack
from dsengine.corpus.schema import NODATA

MISSING = np.uint64(2**64 - 1)  # offset and length of a chunk that is not there
BLOSC_BLOCK = 65536  # bytes; fixed so that a GPU can inflate block by block
CODECS = ("lz4", "zstd", "none", "bitpack", "bitpack-lorenzo")
BITPACK = {"bitpack": "none", "bitpack-lorenzo": "lorenzo"}  # predictor of each


def codec_of(codec: str, dtype: np.dtype) -> str:
    """`codec`, or lz4 where that is bitpack and values of `dtype` are not for it."""
    return "lz4" if codec in BITPACK and dtype.name not in bitpack.DTYPES else codec


def encoder(codec: str, itemsize: int) -> Callable[[np.ndarray], bytes]:
    """Function from a contiguous little-endian chunk to its stored bytes, crc32c included.

    Call it outside the main thread: there numcodecs runs Blosc without its thread pool, whose block order varies.
    """
    if codec in BITPACK:
        return lambda chunk: _closed(bitpack.encode(chunk, predictor=BITPACK[codec], nodata=bitpack_nodata(chunk.dtype)))
    compress = {
        "lz4": numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE, blocksize=BLOSC_BLOCK, typesize=itemsize).encode,
        "zstd": numcodecs.Zstd(level=3).encode,
        "none": lambda chunk: chunk.tobytes(),
    }[codec]

    return lambda chunk: _closed(bytes(compress(chunk)))


def bitpack_nodata(dtype: np.dtype) -> int | None:
    """The value that stands apart in arrays of `dtype`."""
    return NODATA if dtype == "int16" else None


def _closed(body: bytes) -> bytes:
    return body + google_crc32c.value(body).to_bytes(4, "little")


def decoder(codec_names: Sequence[str]) -> Callable[[bytes], bytes]:
    """Function from the bytes of a chunk without its crc32c to the raw chunk; `codec_names` as in the array's metadata."""
    for name in codec_names:
        if name == "blosc":
            return numcodecs.Blosc().decode
        if name == "zstd":
            return numcodecs.Zstd().decode
    return bytes


def shard_bytes(chunks: Sequence[bytes], num_slots: int) -> list[bytes]:
    """The parts of a shard file with `num_slots` inner chunks of which the first `len(chunks)` are there."""
    table = np.full((num_slots, 2), MISSING, "<u8")
    lengths = [len(chunk) for chunk in chunks]
    table[:len(chunks), 0] = np.cumsum([0, *lengths[:-1]])
    table[:len(chunks), 1] = lengths
    index = table.tobytes()
    return [*chunks, index, google_crc32c.value(index).to_bytes(4, "little")]


def read_table(path: Path, num_slots: int) -> np.ndarray:
    """The (num_slots, 2) uint64 offsets and lengths of a shard file. Raises ValueError when the table is damaged."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - table_bytes(num_slots)))
        return parse_table(file.read(), size=size, num_slots=num_slots)


def table_bytes(num_slots: int) -> int:
    """Bytes of a chunk table with its crc32c."""
    return 16 * num_slots + 4


def parse_table(tail: bytes, *, size: int, num_slots: int) -> np.ndarray:
    """The table at the end of a shard of `size` bytes, whose last `table_bytes(num_slots)` are `tail`. Raises ValueError when it is damaged."""
    if len(tail) < table_bytes(num_slots):
        raise ValueError(f"{size} bytes, shorter than its own table")
    index, crc = tail[:-4], tail[-4:]
    if google_crc32c.value(index) != int.from_bytes(crc, "little"):
        raise ValueError("crc32c of the chunk table does not match (truncated or damaged file)")
    table = np.frombuffer(index, "<u8").reshape(num_slots, 2)
    present = table[table[:, 0] != MISSING]
    end = size - len(tail)
    # Each alone first: the sum of two damaged numbers can wrap around.
    if present.size and (int(present.max()) > end or int(present.sum(axis=1).max()) > end):
        raise ValueError("the chunk table points past the end of the data")
    return table


def write_file(path: Path, parts: Sequence[bytes]) -> None:
    """Write a file so that after a crash it is there whole or not at all: temporary name, fsync, rename, fsync of the folder and of new ones."""
    changed = [path.parent]
    while not changed[-1].is_dir():
        changed.append(changed[-1].parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for folder in changed:  # those above the first were made before the file was synced, and most file systems keep that order: no wait
        sync(folder)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
