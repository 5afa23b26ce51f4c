"""Checks a corpus on disk: every file against the manifest, every chunk against its crc32c and size, index, labels, and statistics."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import ShardingCodec

from dsengine.corpus import sanity
from dsengine.corpus.index import Corpus, open_corpus
from dsengine.corpus.manifest import Place, differences, nodes
from dsengine.corpus.sanity import DAMAGE
from dsengine.corpus.schema import UNKNOWN_TIME
from dsengine.corpus.seal import finish
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.storage import Storage, Url, located, storage_at
from dsengine.corpus.stored import Stored, chunk_rows, stored_chunks
from dsengine.corpus.totals import PatchTotals, SeriesTotals
from dsengine.errors import RunError, UsageError

RTOL = 1e-9  # of statistics; ours are exact, another writer's may round
Progress = Callable[[int, int], None]


class Problem(NamedTuple):
    """One thing that is wrong. `patch` is -1 where it is not about patches, else the first of `num_patches`."""

    file: Path | Url
    array: str
    patch: int
    what: str
    num_patches: int = 1


class Verified(NamedTuple):
    """What `verify` looked at and found."""

    num_chunks: int
    problems: list[Problem]
    corpus: Corpus | SeriesCorpus | None = None  # None where it cannot be opened


def verify_path(path: Place, *, progress: Progress | None = None) -> Verified:
    """`verify` of what lies at `path`, also where damaged metadata or index keep it from being opened; completes an interrupted edit first.

    UsageError when there is no complete corpus and no sign that there was one.
    """
    finish(path)
    unlike = _unlike(path)
    try:
        corpus = open_corpus(path, checked=False)
        if isinstance(corpus, SeriesCorpus):
            dict(corpus.index)  # read now, as that of patches is when they are opened
    except (UsageError, RunError) as error:
        if not unlike and isinstance(error, UsageError):
            raise
        return Verified(0, unlike or [Problem(located(path), "-", -1, str(error))])
    return _verify(corpus, unlike, progress)


def verify(corpus: Corpus | SeriesCorpus, *, progress: Progress | None = None) -> Verified:
    """Read everything once. Problems are returned, not raised."""
    return _verify(corpus, _unlike(corpus.path), progress)


def _verify(corpus: Corpus | SeriesCorpus, unlike: list[Problem], progress: Progress | None) -> Verified:
    storage, num_chunks = storage_at(corpus.path), 0
    totals = PatchTotals(corpus) if isinstance(corpus, Corpus) else SeriesTotals(corpus)
    arrays, problems = _arrays(storage)
    problems += _check_index(corpus)
    for number, (name, array) in enumerate(arrays.items()):
        found: list[Problem] = []
        for chunk in stored_chunks(storage, name, array):
            num_chunks += chunk.values is not None
            found += _check_chunk(corpus, name, array, chunk, totals)
            if progress:
                progress((number * len(corpus) + min(chunk.start[0], len(corpus))) // len(arrays), len(corpus))
        if name in totals.names and not found:
            found += _check_statistics(corpus.path, name, array, totals.statistics(name, array))
        problems += found
    fits = totals.nodata_fits()
    problems += [Problem(corpus.path / "index/nodata_fraction", "index", int(row), "does not agree with the pixels") for row in np.flatnonzero(~fits)]
    known = {problem.file for problem in problems}  # more exactly than the manifest can
    return Verified(num_chunks, [problem for problem in unlike if problem.file not in known] + problems, corpus)


def _unlike(path: Place) -> list[Problem]:
    """Files that do not agree with the manifest."""
    return [Problem(located(path) / key, key.rpartition("/")[0] or "-", -1, what) for key, what in differences(path)]


def _arrays(storage: Storage) -> tuple[dict[str, zarr.Array], list[Problem]]:
    """Every array of a corpus by its key, sorted, and the metadata that make none."""
    arrays, problems = {}, []
    try:
        found = nodes(storage)
    except RunError as error:
        return {}, [Problem(storage.path, "-", -1, str(error))]
    for name, node in sorted(found.items()):
        if node.get("node_type") == "group":
            continue
        try:
            array = zarr.open_array(storage.zarr_store(), path=name, mode="r")
            sanity.check_array(array, storage.path / name / "zarr.json")
            arrays[name] = array
        except (*DAMAGE, RunError) as error:
            problems.append(Problem(storage.path / name / "zarr.json", name, -1, f"damaged metadata ({error})"))
    return arrays, problems


def _check_chunk(corpus: Corpus | SeriesCorpus, name: str, array: zarr.Array, chunk: Stored, totals: PatchTotals | SeriesTotals) -> list[Problem]:
    if chunk.values is None:
        return _damage(corpus, name, array, chunk, measured=name in totals.names)
    if name not in totals.names:
        return _check_values(corpus, name, array, chunk)
    if chunk.values.shape[1:] != array.shape[1:]:
        return [Problem(corpus.path / chunk.key, name, -1, f"chunks of {chunk.values.shape}; legal: whole rows of {array.shape[1:]}")]
    totals.add(name, array, chunk)
    return []


def _damage(corpus: Corpus | SeriesCorpus, name: str, array: zarr.Array, chunk: Stored, *, measured: bool) -> list[Problem]:
    """What an unreadable or absent chunk means. `measured`: the array holds values of a sensor, which are never left out."""
    if chunk.absent and not measured and not isinstance(array.metadata.codecs[0], ShardingCodec):
        return []  # all fill value: zarr-python does not store such chunks; the manifest knows whether there was one
    if chunk.key.endswith("zarr.json") or not (measured or name.startswith("labels/")):
        return [Problem(corpus.path / chunk.key, name, -1, chunk.what)]
    return [Problem(corpus.path / chunk.key, name, chunk.start[0], chunk.what, min(chunk_rows(array), len(corpus) - chunk.start[0]))]


def _check_index(corpus: Corpus | SeriesCorpus) -> list[Problem]:
    index, folder = corpus.index, corpus.path / "index"
    columns = index._asdict() if isinstance(corpus, Corpus) else dict(index)
    problems = [Problem(folder / name, "index", -1, f"{len(column)} rows, the corpus has {len(corpus)}")
                for name, column in columns.items() if len(column) != len(corpus)]
    if problems:
        return problems
    placeless = np.isnan(columns["lon"]) & np.isnan(columns["lat"])  # some published sets do not say where they lie
    tests: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "id": lambda v: v == np.arange(len(v)),
        "lon": lambda v: (np.abs(v) <= 180) | placeless,
        "lat": lambda v: (np.abs(v) <= 90) | placeless,
        "split": lambda v: v <= 2,
        "epsg": lambda v: v >= 0,
        "x": lambda v: ~np.isinf(v),
        "y": lambda v: ~np.isinf(v),
        "time_s2": lambda v: (v == UNKNOWN_TIME) | (v > 0),
        "time_s1": lambda v: (v == UNKNOWN_TIME) | (v > 0),
        "nodata_fraction": lambda v: (v >= 0) & (v <= 1),
        "cloud_fraction": lambda v: np.isnan(v) | ((v >= 0) & (v <= 1)),
    }
    return [Problem(folder / name, "index", int(row), f"value {columns[name][row]} is not legal")
            for name, legal in tests.items() if name in columns for row in np.flatnonzero(~legal(columns[name]))]


def _check_values(corpus: Corpus | SeriesCorpus, name: str, array: zarr.Array, chunk: Stored) -> list[Problem]:
    if name.startswith("labels/"):
        return _check_label(corpus.path / chunk.key, chunk, name, dict(array.attrs))
    if name == "neighbours/indices" and chunk.values.size and not (0 <= chunk.values.min() and chunk.values.max() < len(corpus)):
        return [Problem(corpus.path / chunk.key, name, -1, f"rows outside 0..{len(corpus) - 1}")]
    if name == "neighbours/indptr" and (np.diff(chunk.values) < 0).any():
        return [Problem(corpus.path / chunk.key, name, -1, "does not ascend")]
    return []


def _check_label(file: Path | Url, chunk: Stored, name: str, attrs: Mapping[str, Any]) -> list[Problem]:
    ignored = set() if attrs.get("ignore") is None else {int(attrs["ignore"])}
    legal = {0, 1} if attrs.get("kind") == "multilabel" else {int(value) for value in attrs["classes"]} | ignored
    wrong = ~np.isin(chunk.values, sorted(legal)).reshape(len(chunk.values), -1)
    return [Problem(file, name, chunk.start[0] + int(row), f"value {_listed(chunk.values[row].ravel()[wrong[row]])} is not in the class table")
            for row in np.flatnonzero(wrong.any(axis=1))]


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, np.unique(values)[:5].tolist()))


def _check_statistics(path: Path | Url, name: str, array: zarr.Array, measured: Mapping[str, Any]) -> list[Problem]:
    attrs = dict(array.attrs)
    keys = ("mean", "std", "count")
    if any(key not in attrs for key in keys):
        return [Problem(path / name / "zarr.json", name, -1, f"no statistics: run `dsengine corpus stats {path}`")]
    problems = []
    for key in keys:
        for band, stored, found in zip(attrs["bands"], attrs[key], measured[key], strict=True):
            if stored != found and (None in (stored, found) or not np.isclose(stored, found, rtol=RTOL, atol=0)):
                problems.append(Problem(path / name / "zarr.json", name, -1, f"{key} of {band} is {stored}, the pixels give {found}"))
    return problems
