"""Reading a corpus of time series or pixels: plain access to its arrays by zarr-python."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import zarr

from dsengine.corpus import sanity
from dsengine.corpus import where as condition
from dsengine.corpus.schema import SPLITS, Band, Contract, check_name
from dsengine.corpus.storage import storage_at
from dsengine.errors import RunError, UsageError


class Series(NamedTuple):
    """Some rows of one sensor."""

    values: np.ndarray  # (B, T, C) as stored, int16 or float32; -32768 where there is no data
    time: np.ndarray  # (B, T) int64 ns UTC, int64 min unknown
    valid: np.ndarray  # (B, T) bool


class Columns(Mapping[str, np.ndarray]):
    """Index columns by name, read on first use and kept; `arrays` are the same as zarr arrays."""

    def __init__(self, group: zarr.Group, folder: Path) -> None:
        self._folder = folder
        self.arrays = dict(sorted(group.arrays()))
        self._loaded: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._loaded:
            column = read_rows(self.arrays[name], slice(None), self._folder / name)
            self._loaded[name] = column.astype(object) if column.dtype.kind == "T" else column
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


class SeriesCorpus:
    """A complete corpus of kind `series` or `pixels`, opened by `open_corpus`. Arrays are zarr arrays, by sensor."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        described = group.attrs["dsengine"]
        self.path = path
        self.kind = str(described["kind"])
        self.attributes: dict[str, Any] = dict(described)
        self.bands = tuple(Band(**band) for band in described["bands"])
        self.sensors = tuple(dict.fromkeys(band.sensor for band in self.bands))
        for sensor in self.sensors:
            check_name(sensor, f"{path}: the band table: sensor")
        self.values = self._members(group, self.kind)  # of either kind: sensor -> (P, T, C) or (M, C)
        self.series: Mapping[str, zarr.Array] = self.values if self.kind == "series" else MappingProxyType({})
        self.pixels: Mapping[str, zarr.Array] = self.values if self.kind == "pixels" else MappingProxyType({})
        self.time = self._members(group, "time") if self.series else MappingProxyType({})  # (P or 1, T)
        self.valid = self._members(group, "valid") if self.series else MappingProxyType({})  # (P, T)
        self.index = Columns(group["index"], path / "index")
        names = sorted(group["labels"].array_keys()) if "labels" in group else []
        self.labels: Mapping[str, zarr.Array] = MappingProxyType({name: group[f"labels/{name}"] for name in names})
        self._check()

    def __len__(self) -> int:
        return int(self.attributes["num_rows"])

    def read_series(self, ids: Sequence[int] | np.ndarray, sensor: str) -> Series:
        """Values as stored, times and validity of the rows `ids`, in that order."""
        array, rows = self._array(self.series, sensor), self._rows(ids)
        values = read_rows(array, rows, self.path / "series" / sensor)
        valid = read_rows(self.valid[sensor], rows, self.path / "valid" / sensor)
        time = self.time[sensor]
        shared = time.shape[0] == 1 and len(self) != 1
        stamps = read_rows(time, np.zeros(len(rows), np.int64) if shared else rows, self.path / "time" / sensor)
        return Series(values, stamps, valid)

    def read_pixels(self, ids: Sequence[int] | np.ndarray, sensor: str) -> np.ndarray:
        """(B, C) values as stored of the rows `ids`, in that order."""
        array = self._array(self.pixels, sensor)
        return read_rows(array, self._rows(ids), self.path / "pixels" / sensor)

    def rows(self, split: str, where: str | None = None) -> np.ndarray:
        """Rows of train, val or test, or of all, ascending int64, without those in quarantine; of them those that meet the condition `where`."""
        usable = self.index["quarantine"] == 0
        if where is not None:
            usable &= condition.where(self, where)
        if split == "all":
            return np.flatnonzero(usable).astype(np.int64)
        if split not in SPLITS:
            raise UsageError(f"split={split!r} is not legal: {', '.join(SPLITS)}, all")
        return np.flatnonzero(usable & (self.index["split"] == SPLITS.index(split))).astype(np.int64)

    def contract(self, sensor: str | None = None) -> Contract:
        """Bands, units and statistics as they travel with weights, of one sensor or of all. Its patch size is 1."""
        if sensor is not None:
            self._array(self.values, sensor)
        bands = tuple(band for band in self.bands if sensor in (None, band.sensor))
        attrs = [(band, dict(self.values[band.sensor].attrs)) for band in bands]
        if any("mean" not in a or "std" not in a for _, a in attrs):
            raise UsageError(f"{self.path}: no statistics: run `dsengine corpus stats {self.path}`")
        if flat := [f"{band.sensor} {band.name}" for band, a in attrs if not a["std"][band.channel]]:
            raise UsageError(f"{self.path}: {', '.join(flat)}: no valid value or a constant one, so it cannot be z-scored; legal: bands that vary")
        column = lambda key: tuple(a[key][band.channel] for band, a in attrs)  # noqa: E731
        whole = lambda key: tuple(a[key] for _, a in attrs)  # noqa: E731
        return Contract(bands=bands, units=whole("units"), scale=whole("scale_factor"), offset=whole("add_offset"), mean=column("mean"),
                        std=column("std"), nodata=attrs[0][1]["nodata"], patch_size=1, resolution_m=min(whole("resolution_m")))

    def _check(self) -> None:
        """RunError when an array is not what the root says, or too large to be that."""
        storage = storage_at(self.path)
        for name in sorted(self.index.arrays, key=lambda name: name != "id"):
            sanity.check_column(self.index.arrays[name], name, num_rows=len(self), storage=storage)
        for folder, arrays in ((self.kind, self.values), ("time", self.time), ("valid", self.valid), ("labels", self.labels)):
            for name, array in arrays.items():
                rows = 1 if folder == "time" and array.shape[0] == 1 else len(self)
                sanity.check_rows(array, num_rows=rows, file=self.path / folder / name / "zarr.json")

    def _no_patches(self) -> NoReturn:
        raise UsageError(f"{self.path} holds {self.kind}, not image patches; legal here: a corpus of patches")

    # What code for patches asks a corpus for first, so that a wrong path ends in one line.
    patch_size = property(_no_patches)
    resolution_m = property(_no_patches)
    arrays = property(_no_patches)
    columns = property(_no_patches)
    read = property(_no_patches)

    def _members(self, group: zarr.Group, folder: str) -> Mapping[str, zarr.Array]:
        found = {}
        for sensor in self.sensors:
            try:
                member = group.get(f"{folder}/{sensor}")
            except (ValueError, KeyError, TypeError) as error:  # JSONDecodeError is a ValueError
                raise RunError(f"{self.path / folder / sensor / 'zarr.json'}: damaged metadata ({error})") from error
            if not isinstance(member, zarr.Array):
                raise UsageError(f"{self.path}: array {folder}/{sensor} is missing")
            found[sensor] = member
        return MappingProxyType(found)

    def _array(self, arrays: Mapping[str, zarr.Array], sensor: str) -> zarr.Array:
        if sensor not in self.sensors:
            raise UsageError(f"sensor {sensor!r} is not in {self.path}; legal: {', '.join(self.sensors)}")
        if sensor not in arrays:
            raise UsageError(f"{self.path} holds {self.kind}: legal: read_{self.kind}")
        return arrays[sensor]

    def _rows(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        rows = np.asarray(ids)
        if rows.size and rows.dtype.kind not in "iu":
            raise UsageError(f"ids must be whole numbers, got {ids!r}")
        rows = rows.astype(np.int64)
        if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= len(self))):
            raise UsageError(f"ids must be a list of rows in 0..{len(self) - 1}, got {ids!r}")
        return rows


def read_rows(array: zarr.Array, rows: np.ndarray | slice, name: Path) -> np.ndarray:
    """Rows of a zarr array. RunError naming it when its bytes are damaged."""
    try:
        return np.asarray(array[rows] if isinstance(rows, slice) else array.oindex[rows])
    except (ValueError, RuntimeError, OSError) as error:  # what zarr-python's codecs raise on damaged bytes
        raise RunError(f"{name}: cannot be read ({error}); `dsengine corpus verify` names the part") from error
