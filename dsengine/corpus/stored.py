"""The chunks of one array as they lie in its files: where each is, whether its bytes are whole, and what they decode to."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc, zstd
from zarr.codecs import ShardingCodec

from dsengine.corpus import bitpack
from dsengine.corpus.frames import chain, declared_bytes
from dsengine.corpus.shards import MISSING, parse_table, table_bytes
from dsengine.corpus.storage import Storage


WHOLE_BYTES = 64 << 20  # shards up to this size are read at once


class Stored(NamedTuple):
    """One chunk; `values` is None when it cannot be had, and `what` says why."""

    key: str  # of its file, in the corpus
    start: tuple[int, ...]  # index in the array of its first element
    values: np.ndarray | None
    what: str = ""
    absent: bool = False  # not stored at all


class Cut(NamedTuple):
    """How one kind of chunk of an array is coded."""

    shape: tuple[int, ...]
    dtype: np.dtype
    compressor: str
    checked: bool

    def decoded(self, body: bytes | memoryview) -> np.ndarray:
        """The chunk whose stored bytes are `body`. ValueError when they are damaged or would become another size."""
        if self.checked:
            if len(body) < 4 or google_crc32c.value(bytes(body[:-4])) != int.from_bytes(body[-4:], "little"):
                raise ValueError("crc32c does not match")
            body = body[:-4]
        out = np.empty(self.shape, self.dtype)
        if (size := declared_bytes(self.compressor, body)) != out.nbytes:
            raise ValueError(f"becomes {size:,} bytes, a chunk has {out.nbytes:,}")
        if self.compressor == "bitpack":
            bitpack.decode(body, out)
        elif self.compressor:
            (blosc if self.compressor == "blosc" else zstd).decompress(body, out.reshape(-1).view(np.uint8))
        else:
            out.reshape(-1).view(np.uint8)[:] = np.frombuffer(body, np.uint8)
        return out


def stored_chunks(storage: Storage, name: str, array: zarr.Array) -> Iterator[Stored]:
    """Every chunk of `array`, whose key is `name`, cut to the array at its edge; in memory are a shard of up to 64 MiB, or one chunk.

    A problem of a whole file is reported at each chunk of it.
    """
    codec = array.metadata.codecs[0]
    if not isinstance(codec, ShardingCodec):
        yield from _plain(storage, name, array)
    elif codec.index_location.value == "end" and [c.to_dict()["name"] for c in codec.index_codecs] == ["bytes", "crc32c"]:
        yield from _sharded(storage, name, array, codec)
    else:
        yield Stored(f"{name}/zarr.json", (0,) * array.ndim, None, "shard tables of this kind are not checked; legal: at the end, with crc32c")


def chunk_rows(array: zarr.Array) -> int:
    """Rows of one (inner) chunk."""
    codec = array.metadata.codecs[0]
    return int(codec.chunk_shape[0] if isinstance(codec, ShardingCodec) else array.chunks[0])


def _sharded(storage: Storage, name: str, array: zarr.Array, codec: ShardingCodec) -> Iterator[Stored]:
    try:
        cut = Cut(codec.chunk_shape, array.dtype.newbyteorder("<"), *chain([inner.to_dict() for inner in codec.codecs]))
    except ValueError as error:
        yield Stored(f"{name}/zarr.json", (0,) * array.ndim, None, str(error))
        return
    outer = array.metadata.chunk_grid.chunk_shape
    slots = tuple(whole // part for whole, part in zip(outer, cut.shape, strict=True))
    for place in _grid(array.shape, outer):
        origin = tuple(p * n for p, n in zip(place, outer, strict=True))
        starts = [tuple(o + s * n for o, s, n in zip(origin, slot, cut.shape, strict=True)) for slot in np.ndindex(*slots)]
        yield from _one_shard(storage, f"{name}/{array.metadata.encode_chunk_key(place)}", array.shape, cut, starts)


def _one_shard(storage: Storage, key: str, shape: tuple[int, ...], cut: Cut, starts: list[tuple[int, ...]]) -> Iterator[Stored]:
    inside = [all(s < n for s, n in zip(start, shape, strict=True)) for start in starts]
    try:
        tail, size = storage.get_tail(key, size=table_bytes(len(starts)))
        table = parse_table(tail, size=size, num_slots=len(starts))
        whole = memoryview(storage.get(key)) if size <= WHOLE_BYTES else None
        if stray := _untiled(table, inside, size):
            yield Stored(key, starts[0], None, stray)
        for start, (offset, length) in itertools.compress(zip(starts, table.tolist(), strict=True), inside):
            if offset == MISSING:
                yield Stored(key, start, None, "missing chunk", absent=True)
                continue
            body = storage.get_range(key, start=offset, size=length) if whole is None else whole[offset:offset + length]
            yield _decoded(key, shape, cut, start, body)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "missing file" if missing else getattr(error, "strerror", None) or str(error)
        yield from (Stored(key, start, None, what, missing) for start in itertools.compress(starts, inside))


def _untiled(table: np.ndarray, inside: list[bool], size: int) -> str:
    """Whether the chunks lie back to back from the start of the file to its table, so that no byte belongs to none or to two."""
    present = table[table[:, 0] != MISSING].astype(np.int64)
    present = present[np.argsort(present[:, 0], kind="stable")]
    ends = np.r_[0, present.sum(axis=1)]
    begins = np.r_[present[:, 0], size - table_bytes(len(table))]
    if (ends != begins).any():
        return "its chunks do not fill the file exactly"
    outside = table[~np.asarray(inside)]
    return "it has chunks outside the array" if (outside != MISSING).any() else ""


def _plain(storage: Storage, name: str, array: zarr.Array) -> Iterator[Stored]:
    codecs = [codec.to_dict() for codec in array.metadata.codecs]
    try:
        compressor, checked = chain(codecs)
    except ValueError as error:
        yield Stored(f"{name}/zarr.json", (0,) * array.ndim, None, str(error))
        return
    cut = Cut(array.chunks, array.dtype.newbyteorder("<"), compressor, checked) if codecs[0]["name"] != "vlen-utf8" else None
    for place in _grid(array.shape, array.chunks):
        key = f"{name}/{array.metadata.encode_chunk_key(place)}"
        start = tuple(p * n for p, n in zip(place, array.chunks, strict=True))
        try:
            body = memoryview(storage.get(key))
        except FileNotFoundError:
            yield Stored(key, start, None, "missing file", absent=True)
        except OSError as error:
            yield Stored(key, start, None, str(error.strerror))
        else:
            yield _decoded(key, array.shape, cut, start, body) if cut else _text(key, array, start)


def _decoded(key: str, shape: tuple[int, ...], cut: Cut, start: tuple[int, ...], body: bytes | memoryview) -> Stored:
    try:
        values = cut.decoded(body)
    except (ValueError, RuntimeError) as error:
        return Stored(key, start, None, str(error))
    return Stored(key, start, values[tuple(slice(0, n - s) for s, n in zip(start, shape, strict=True))])


def _text(key: str, array: zarr.Array, start: tuple[int, ...]) -> Stored:
    """A chunk of strings, through zarr-python."""
    try:
        return Stored(key, start, np.asarray(array[tuple(slice(s, s + n) for s, n in zip(start, array.chunks, strict=True))]))
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return Stored(key, start, None, str(error))


def _grid(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(-(-n // c)) for n, c in zip(shape, chunk, strict=True)))
