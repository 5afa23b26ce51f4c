"""Opening a corpus, and its table of patches."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr

from dsengine.corpus import sanity
from dsengine.corpus import where as condition
from dsengine.corpus.manifest import differences
from dsengine.corpus.schema import INDEX_DTYPES, OPTIONAL_COLUMNS, SPLITS, VERSION, Band, Contract, check_name
from dsengine.corpus.seal import REMOVE
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.series_schema import KINDS
from dsengine.corpus.storage import Storage, Url, storage_at
from dsengine.errors import RunError, UsageError

if TYPE_CHECKING:
    from dsengine.corpus.neighbours import Neighbours


class Index(NamedTuple):
    """One value a patch; row i is patch i."""

    id: np.ndarray  # int64, equal to the row
    lon: np.ndarray  # float64, degrees WGS 84, centre of the patch
    lat: np.ndarray
    epsg: np.ndarray  # int32, 0 unknown
    x: np.ndarray  # float64, upper left corner in metres of that CRS, NaN unknown
    y: np.ndarray
    time_s2: np.ndarray  # int64 ns UTC, int64 min unknown
    time_s1: np.ndarray
    split: np.ndarray  # uint8, position in schema.SPLITS
    nodata_fraction: np.ndarray  # float32, over all bands
    cloud_fraction: np.ndarray  # float32, NaN unknown
    source: np.ndarray  # object array of str, what the patch was cut from
    shift_y: np.ndarray  # float32, finest pixels that S1 lies off S2, by phase correlation; NaN unknown
    shift_x: np.ndarray
    quarantine: np.ndarray  # uint8, not 0: the patch is in no split


class Corpus:
    """A complete corpus, opened for reading by `open_corpus`."""

    kind = "patches"  # a SeriesCorpus holds series or pixels

    def __init__(self, path: Path | Url, group: zarr.Group) -> None:
        described = group.attrs["dsengine"]
        self.path = path
        self.storage = storage_at(path)
        self.attributes: dict[str, Any] = dict(described)
        self.bands = tuple(Band(**band) for band in described["bands"])
        self.sensors = tuple(dict.fromkeys(band.sensor for band in self.bands))
        self.patch_size = int(described["patch_size"])
        self.resolution_m = float(described["resolution_m"])
        sanity.check_bands(self.bands, self.patch_size, path)
        self.arrays: Mapping[str, zarr.Array] = MappingProxyType({b.array: _member(group, b.array, path) for b in self.bands})
        columns, labels = _arrays(group, "index", path), _arrays(group, "labels", path)
        num_patches = int(described.get("num_patches", columns["id"].shape[0]))
        for name, array in self.arrays.items():
            sanity.check_image(array, [b for b in self.bands if b.array == name], num_patches=num_patches, patch_size=self.patch_size,
                               file=path / name / "zarr.json")
        for name in sorted(columns, key=lambda name: name != "id"):
            sanity.check_column(columns[name], name, num_rows=num_patches, storage=self.storage)
        for name, array in labels.items():
            sanity.check_label(array, num_patches=num_patches, patch_size=self.patch_size, file=path / "labels" / name / "zarr.json")
        self.index = Index(*(_standard_column(columns, name, num_patches, path) for name in Index._fields))
        self.columns: Mapping[str, zarr.Array] = MappingProxyType(  # beyond the standard ones, as the source named them
            {name: array for name, array in columns.items() if name not in Index._fields})
        self.labels: Mapping[str, zarr.Array] = MappingProxyType(labels)
        self._group = group

    def __len__(self) -> int:
        return len(self.index.id)

    def read(self, ids: Sequence[int] | np.ndarray, sensor: str) -> np.ndarray:
        """(B, C, H, W) stored int16 of one sensor by plain zarr-python, bands in corpus order, coarser bands repeated."""
        bands = [band for band in self.bands if band.sensor == sensor]
        rows = np.asarray(ids)
        if rows.size and rows.dtype.kind not in "iu":
            raise UsageError(f"ids must be whole numbers, got {ids!r}")
        rows = rows.astype(np.int64)
        if not bands:
            raise UsageError(f"sensor {sensor!r} is not in {self.path}; legal: {', '.join(self.sensors)}")
        if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= len(self))):
            raise UsageError(f"ids must be a list of rows in 0..{len(self) - 1}, got {ids!r}")
        stored = {name: self.arrays[name].oindex[rows] for name in dict.fromkeys(band.array for band in bands)}
        return np.stack([_upsampled(stored[band.array][:, band.channel], band.factor) for band in bands], axis=1)

    def contract(self) -> Contract:
        """Bands, units and statistics as they travel with weights. UsageError when the corpus has no usable statistics."""
        attrs = [(band, dict(self.arrays[band.array].attrs)) for band in self.bands]
        if any("mean" not in a or "std" not in a for _, a in attrs):
            raise UsageError(f"{self.path}: no statistics: run `dsengine corpus stats {self.path}`")
        if flat := [band.name for band, a in attrs if not a["std"][band.channel]]:
            raise UsageError(f"{self.path}: {', '.join(flat)}: no valid pixel or a constant value, so it cannot be z-scored; legal: bands that vary")
        column = lambda key: tuple(a[key][band.channel] for band, a in attrs)  # noqa: E731
        whole = lambda key: tuple(a[key] for _, a in attrs)  # noqa: E731
        return Contract(bands=self.bands, units=whole("units"), scale=whole("scale_factor"), offset=whole("add_offset"),
                        mean=column("mean"), std=column("std"), nodata=attrs[0][1]["nodata"],
                        patch_size=self.patch_size, resolution_m=self.resolution_m)

    @cached_property
    def neighbours(self) -> "Neighbours":
        """The stored neighbour table. UsageError when there is none, or it was made for another number of patches."""
        from dsengine.corpus.neighbours import open_neighbours  # brings scipy

        return open_neighbours(self._group, len(self), self.path)

    def rows(self, split: str, where: str | None = None) -> np.ndarray:
        """Rows of train, val or test, or of all, ascending int64, without those in quarantine; of them those that meet the condition `where`."""
        usable = self.index.quarantine == 0
        if where is not None:
            usable &= condition.where(self, where)
        if split == "all":
            return np.flatnonzero(usable).astype(np.int64)
        if split not in SPLITS:
            raise UsageError(f"split={split!r} is not legal: {', '.join(SPLITS)}, all")
        return np.flatnonzero(usable & (self.index.split == SPLITS.index(split))).astype(np.int64)


def open_corpus(path: str | os.PathLike[str] | Url, *, checked: bool = True) -> Corpus | SeriesCorpus:
    """Open a corpus of patches, series or pixels. UsageError when there is none, it is unfinished, or of another version; RunError when
    metadata or index are damaged.

    `checked` compares every zarr.json and the index with the manifest; only what reports or mends the damage does without.
    """
    storage = storage_at(path)
    folder = storage.path
    if not _reached(storage):
        raise UsageError(f"{folder} is not a corpus: it has no zarr.json; make one with `dsengine corpus build` or `dsengine corpus synth`")
    try:
        group = zarr.open_group(storage.zarr_store(), mode="r", zarr_format=3)
        described = group.attrs.get("dsengine")
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, FileNotFoundError) as error:
        raise UsageError(f"{folder} is not a corpus: its zarr.json cannot be read as a Zarr v3 group ({error})") from error
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}") from error
    if not isinstance(described, dict):
        raise UsageError(f"{folder} is a Zarr group but not a corpus: it has no attribute `dsengine`")
    if described.get("version") != VERSION:
        raise UsageError(f"{folder}: corpus version {described.get('version')} is not legal: this build reads version {VERSION}")
    if not described.get("complete"):
        raise UsageError(f"{folder} is an unfinished build; run the command that started it again, it continues")
    if checked:
        _check_sealed(folder)
    try:
        return SeriesCorpus(folder, group) if described.get("kind") in KINDS else Corpus(folder, group)
    except (UsageError, RunError):
        raise
    except sanity.DAMAGE as error:
        raise RunError(f"{folder / 'zarr.json'}: damaged metadata ({type(error).__name__}: {error})") from error
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}") from error


def _reached(storage: Storage) -> bool:
    """Whether there is a root. RunError when the place cannot be asked."""
    try:
        return storage.exists("zarr.json")
    except OSError as error:
        raise RunError(f"{storage.path}: {error.strerror}") from error


def _arrays(group: zarr.Group, folder: str, path: Path | Url) -> dict[str, zarr.Array]:
    """The arrays in index/ or labels/, sorted; opened in one go. RunError when one is damaged."""
    try:
        found = dict(sorted(group[folder].arrays())) if folder in group else {}
    except sanity.DAMAGE as error:
        raise RunError(f"{path / folder}: damaged metadata ({error})") from error
    for name in found:
        check_name(name, f"{path / folder}: array")
    return found


def _check_sealed(folder: Path | Url) -> None:
    if storage_at(folder).exists(REMOVE):
        raise RunError(f"{folder}: an edit of this corpus is under way or was interrupted; `dsengine corpus verify {folder}` completes it")
    for name, what in differences(folder, metadata_only=True):
        raise RunError(f"{folder / name}: {what}; restore the file or rebuild the corpus, or, if it was changed on purpose, "
                       f"`dsengine corpus verify --seal {folder}` accepts it")


def _member(group: zarr.Group, name: str, path: Path | Url) -> zarr.Array:
    try:
        member = group.get(name)
    except (ValueError, KeyError, TypeError) as error:  # JSONDecodeError is a ValueError
        raise RunError(f"{path / name / 'zarr.json'}: damaged metadata ({error})") from error
    if not isinstance(member, zarr.Array):
        raise UsageError(f"{path}: array {name} is missing")
    return member


def _standard_column(columns: Mapping[str, zarr.Array], name: str, num_patches: int, path: Path | Url) -> np.ndarray:
    if name in columns:
        return _column(columns[name], path / "index" / name)
    if name in OPTIONAL_COLUMNS:
        return np.full(num_patches, OPTIONAL_COLUMNS[name], INDEX_DTYPES[name])
    raise UsageError(f"{path}: array index/{name} is missing")


def _column(array: zarr.Array, path: Path | Url) -> np.ndarray:
    try:
        column = np.asarray(array[...])
    except (ValueError, RuntimeError, OSError, MemoryError) as error:  # what zarr-python's codecs raise on damaged bytes
        raise RunError(f"{path}: damaged column ({error})") from error
    return column.astype(object) if column.dtype.kind == "T" else column


def _upsampled(x_BHW: np.ndarray, factor: int) -> np.ndarray:
    return x_BHW if factor == 1 else x_BHW.repeat(factor, axis=1).repeat(factor, axis=2)
