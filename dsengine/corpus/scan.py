"""One pass over all patches of an image array, at the speed of the memory: threads decode chunks into buffers of their own and sum them up there."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc, zstd
from zarr.codecs import ShardingCodec

from dsengine.corpus import bitpack
from dsengine.corpus.frames import chain, declared_bytes
from dsengine.corpus.shards import MISSING, parse_table, table_bytes
from dsengine.corpus.storage import Storage
from dsengine.errors import RunError

T = TypeVar("T")
READ_BYTES = 1 << 23  # of an object at once
GROUP = 4  # patches handed over at once: fewer calls, and still in the cache


class Coding(NamedTuple):
    """How the chunks of an array, one patch each, are stored."""

    compressor: str
    checked: bool
    shape: tuple[int, ...]  # of a patch
    dtype: np.dtype
    fill_value: int


def scan(storage: Storage, name: str, array: zarr.Array, work: Callable[[np.ndarray], T]) -> Iterator[tuple[range, T]]:
    """(rows, `work` of them) for a few patches at a time in the order of the rows. `work` gets (n, ...) values that are overwritten afterwards,
    in one of several threads. RunError naming file and patch when something cannot be read.
    """
    codec = array.metadata.codecs[0]
    per_shard = array.metadata.chunk_grid.chunk_shape[0]
    if not isinstance(codec, ShardingCodec) or codec.chunk_shape != (1, *array.shape[1:]) or codec.index_location.value != "end":
        yield from _slowly(storage, name, array, work)
        return
    coding = Coding(*chain([inner.to_dict() for inner in codec.codecs]), array.shape[1:], array.dtype, array.fill_value)
    threads = min(8, len(os.sched_getaffinity(0)))

    def shard_of(number: int) -> list[tuple[range, T]]:
        rows = range(number * per_shard, min(array.shape[0], (number + 1) * per_shard))
        key = f"{name}/{array.metadata.encode_chunk_key((number, *[0] * (array.ndim - 1)))}"
        return list(_shard(storage, key, rows, per_shard, coding, work))

    with ThreadPoolExecutor(threads, thread_name_prefix="dsengine-scan") as pool:
        waiting = []
        for number in range(-(-array.shape[0] // per_shard)):
            waiting.append(pool.submit(shard_of, number))
            if len(waiting) > 2 * threads:  # bounded: results must not pile up
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()


def _shard(storage: Storage, key: str, rows: range, num_slots: int, coding: Coding, work: Callable[[np.ndarray], T]) -> Iterator[tuple[range, T]]:
    out = np.empty((GROUP, *coding.shape), coding.dtype)
    row = rows.start
    try:
        tail, size = storage.get_tail(key, size=table_bytes(num_slots))
        table = parse_table(tail, size=size, num_slots=num_slots)[:len(rows)]
        chunks = (_file_chunks if storage.local else _object_chunks)(storage, key, table)
        for first in range(rows.start, rows.stop, GROUP):
            some = range(first, min(first + GROUP, rows.stop))
            for row, body in zip(some, chunks):  # rows first: zip would take a chunk too many
                _decode(body, out[row - first], coding)
            yield some, work(out[:len(some)])
    except FileNotFoundError as error:
        raise RunError(f"{storage.path / key}: missing file; `dsengine corpus verify {storage.path}` names all damage") from error
    except (OSError, ValueError, RuntimeError) as error:
        what = getattr(error, "strerror", None) or error
        raise RunError(f"{storage.path / key}: array {key.partition('/c/')[0]}, patch {row}: cannot be read ({what}); "
                       f"`dsengine corpus verify {storage.path}` names all damage") from error


def _file_chunks(storage: Storage, key: str, table: np.ndarray) -> Iterator[memoryview | None]:
    """Each chunk, or None for one that is not stored, in a buffer that the next one overwrites."""
    stored = table[table[:, 0] != MISSING]
    buffer = memoryview(bytearray(int(stored[:, 1].max(initial=0))))
    with open(storage.path / key, "rb", buffering=0) as file:
        for offset, length in table.tolist():
            if offset == MISSING:
                yield None
                continue
            got = os.preadv(file.fileno(), [buffer[:length]], offset)
            yield buffer[:got]


def _object_chunks(storage: Storage, key: str, table: np.ndarray) -> Iterator[memoryview | None]:
    """The same, several chunks a request."""
    window, start = memoryview(b""), 0
    stored = table[table[:, 0] != MISSING]
    end = int(stored.sum(axis=1).max(initial=0))
    for offset, length in table.tolist():
        if offset == MISSING:
            yield None
            continue
        if not start <= offset <= offset + length <= start + len(window):
            window, start = memoryview(storage.get_range(key, start=offset, size=max(length, min(READ_BYTES, end - offset)))), offset
        yield window[offset - start:offset - start + length]


def _decode(body: memoryview | None, out: np.ndarray, coding: Coding) -> None:
    if body is None:
        out[...] = coding.fill_value
        return
    if coding.checked:
        if len(body) < 4 or google_crc32c.value(np.frombuffer(body[:-4], np.uint8)) != int.from_bytes(body[-4:], "little"):
            raise ValueError("crc32c does not match")
        body = body[:-4]
    if (size := declared_bytes(coding.compressor, body)) != out.nbytes:
        raise ValueError(f"a chunk becomes {size:,} bytes, a patch has {out.nbytes:,}")
    target = out.reshape(-1).view(np.uint8)
    if coding.compressor == "bitpack":
        bitpack.decode(body, out)
    elif coding.compressor:
        (blosc if coding.compressor == "blosc" else zstd).decompress(body, target)
    else:
        target[:] = np.frombuffer(body, np.uint8)


def _slowly(storage: Storage, name: str, array: zarr.Array, work: Callable[[np.ndarray], T]) -> Iterator[tuple[range, T]]:
    """Arrays of another layout, by zarr-python."""
    step = array.metadata.chunk_grid.chunk_shape[0]
    for start in range(0, array.shape[0], step):
        rows = range(start, min(array.shape[0], start + step))
        try:
            values = np.asarray(array[rows.start:rows.stop])
        except (ValueError, RuntimeError, OSError) as error:
            raise RunError(f"{storage.path / name}: patches {rows.start} to {rows.stop - 1} cannot be read ({error}); "
                           f"`dsengine corpus verify {storage.path}` names the patch") from error
        yield rows, work(values)
