"""Checks a corpus on disk: every chunk against its crc32c and size, index, labels, and statistics against the pixels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import ShardingCodec

from dsengine.corpus.index import Corpus
from dsengine.corpus.shards import MISSING, decoder, read_table
from dsengine.corpus.stats import BandSums, band_sums, statistics

DECODED = frozenset({"bytes", "blosc", "zstd", "crc32c"})
RTOL = 1e-9  # of statistics; ours are exact, another writer's may round


class Problem(NamedTuple):
    """One thing that is wrong. `patch` is -1 where it is not about one patch."""

    file: Path
    array: str
    patch: int
    what: str


class Verified(NamedTuple):
    """What `verify` looked at and found."""

    num_chunks: int
    problems: list[Problem]


def verify(corpus: Corpus, *, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Read everything once. Problems are returned, not raised."""
    problems = _check_index(corpus)
    num_chunks = 0
    valid, samples = np.zeros(len(corpus)), 0
    members = {**corpus.arrays, **{f"labels/{name}": array for name, array in corpus.labels.items()}}
    for number, (name, array) in enumerate(members.items()):
        if shape_problem := _check_shape(corpus, name, array):
            problems.append(shape_problem)
            continue
        sums = None
        for row, chunk, found in _chunks(corpus.path, name, array):
            problems += found
            num_chunks += chunk is not None
            if chunk is not None and name in corpus.arrays:
                part, valid_NC = band_sums(chunk, nodata=array.attrs["nodata"])
                sums = part if sums is None else sums.add(part)
                valid[row:row + len(chunk)] += valid_NC.sum(axis=1)
            elif chunk is not None and found == []:
                problems += _check_label(corpus.path, name, array, row, chunk)
            if progress and row >= 0:
                progress((number * len(corpus) + row) // len(members), len(corpus))
        if name in corpus.arrays:
            samples += int(np.prod(array.shape[1:]))
            if sums is not None and not any(p.array == name for p in problems):
                problems += _check_statistics(corpus.path, name, array, sums)
    if not problems:
        wrong = np.flatnonzero(~np.isclose(corpus.index.nodata_fraction, 1.0 - valid / samples, atol=1e-6))
        problems += [Problem(corpus.path / "index/nodata_fraction", "index", int(row), "does not agree with the pixels") for row in wrong]
    return Verified(num_chunks, problems)


def _check_index(corpus: Corpus) -> list[Problem]:
    index, folder = corpus.index, corpus.path / "index"
    stated = corpus.attributes.get("num_patches", len(corpus))
    problems = [Problem(folder / name, "index", -1, f"{len(column)} rows, the corpus has {stated}")
                for name, column in index._asdict().items() if len(column) != stated]
    if problems:
        return problems
    bad = {
        "id": index.id != np.arange(len(index.id)),
        "lon": ~(np.abs(index.lon) <= 180),
        "lat": ~(np.abs(index.lat) <= 90),
        "split": index.split > 2,
        "nodata_fraction": ~((index.nodata_fraction >= 0) & (index.nodata_fraction <= 1)),
    }
    return [Problem(folder / name, "index", int(row), f"value {getattr(index, name)[row]} is not legal")
            for name, wrong in bad.items() for row in np.flatnonzero(wrong)]


def _check_shape(corpus: Corpus, name: str, array: zarr.Array) -> Problem | None:
    bands = [band for band in corpus.bands if band.array == name]
    if bands:
        side = corpus.patch_size // bands[0].factor
        legal: tuple[int, ...] = (len(corpus), len(bands), side, side)
    else:
        tail = {"class": (), "classmap": (corpus.patch_size,) * 2}.get(array.attrs.get("kind"), array.shape[1:])
        legal = (len(corpus), *tail)
    return None if array.shape == legal else Problem(corpus.path / name, name, -1, f"shape {array.shape}, expected {legal}")


def _chunks(path: Path, name: str, array: zarr.Array) -> Iterator[tuple[int, np.ndarray | None, list[Problem]]]:
    """(first row, decoded rows or None when they cannot be had, problems) for each chunk of an array."""
    codec = array.metadata.codecs[0]
    inner = [c.to_dict()["name"] for c in codec.codecs] if isinstance(codec, ShardingCodec) else []
    ours = isinstance(codec, ShardingCodec) and codec.index_location.value == "end" and DECODED.issuperset(inner) and codec.chunk_shape[0] == 1
    if not ours:
        yield from _plain_chunks(path, name, array)
        return
    rows_per_shard = array.metadata.chunk_grid.chunk_shape[0]
    for shard in range(-(-array.shape[0] // rows_per_shard)):
        rows = range(shard * rows_per_shard, min(array.shape[0], (shard + 1) * rows_per_shard))
        file = path / name / array.metadata.encode_chunk_key((shard, *[0] * (array.ndim - 1)))
        yield from _shard_chunks(file, name, array, rows, num_slots=rows_per_shard, inner=inner)


def _shard_chunks(file: Path, name: str, array: zarr.Array, rows: range, *, num_slots: int,
                  inner: list[str]) -> Iterator[tuple[int, np.ndarray | None, list[Problem]]]:
    try:
        table = read_table(file, num_slots)
    except (OSError, ValueError) as error:
        why = "missing file" if isinstance(error, FileNotFoundError) else str(error)
        yield rows[0], None, [Problem(file, name, row, why) for row in rows]
        return
    decode, checked = decoder(inner), inner[-1] == "crc32c"
    dtype = array.dtype.newbyteorder("<")
    with open(file, "rb") as handle:
        for row, (start, length) in zip(rows, table[:len(rows)], strict=True):
            if start == MISSING:
                yield row, None, [Problem(file, name, row, "missing chunk")]
                continue
            handle.seek(int(start))
            body = handle.read(int(length))
            if checked and (len(body) < 4 or google_crc32c.value(body[:-4]) != int.from_bytes(body[-4:], "little")):
                yield row, None, [Problem(file, name, row, "crc32c does not match")]
                continue
            yield row, *_decoded(decode, body[:-4] if checked else body, file, name, row, shape=(1, *array.shape[1:]), dtype=dtype)


def _decoded(decode: Callable[[bytes], bytes], body: bytes, file: Path, name: str, row: int, *, shape: tuple[int, ...],
             dtype: np.dtype) -> tuple[np.ndarray | None, list[Problem]]:
    try:
        return np.frombuffer(decode(body), dtype).reshape(shape), []
    except (ValueError, RuntimeError) as error:
        return None, [Problem(file, name, row, f"cannot be decoded: {error}")]


def _plain_chunks(path: Path, name: str, array: zarr.Array) -> Iterator[tuple[int, np.ndarray | None, list[Problem]]]:
    """Arrays of another layout, such as small label vectors: whatever zarr-python raises is the problem."""
    step = array.chunks[0]
    for row in range(0, array.shape[0], step):
        try:
            yield row, np.asarray(array[row:row + step]), []
        except (ValueError, RuntimeError, OSError) as error:
            yield row, None, [Problem(path / name, name, row, str(error))]


def _check_label(path: Path, name: str, array: zarr.Array, row: int, chunk: np.ndarray) -> list[Problem]:
    attrs = dict(array.attrs)
    if attrs.get("kind") == "multilabel":
        legal = {0, 1}
    else:
        legal = {int(value) for value in attrs["classes"]} | {attrs.get("ignore")}
    unknown = sorted({int(v) for v in np.unique(chunk)} - legal)
    return [Problem(path / name, name, row, f"value {', '.join(map(str, unknown))} is not in the class table")] if unknown else []


def _check_statistics(path: Path, name: str, array: zarr.Array, sums: BandSums) -> list[Problem]:
    attrs = dict(array.attrs)
    if "mean" not in attrs:
        return [Problem(path / name / "zarr.json", name, -1, f"no statistics: run `dsengine corpus stats {path}`")]
    problems = []
    for key, values in statistics(sums, scale_factor=attrs["scale_factor"], add_offset=attrs["add_offset"]).items():
        for band, stored, found in zip(attrs["bands"], attrs[key], values, strict=True):
            if stored != found and (None in (stored, found) or not np.isclose(stored, found, rtol=RTOL, atol=0)):
                problems.append(Problem(path / name / "zarr.json", name, -1, f"{key} of {band} is {stored}, the pixels give {found}"))
    return problems
