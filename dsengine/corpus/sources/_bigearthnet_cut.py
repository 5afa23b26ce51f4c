"""Reads BigEarthNet patches: 12 bands at 10, 20 and 60 m, VV and VH, multi-labels, reference map."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine

from dsengine.corpus.build.offset import Decision
from dsengine.corpus.build.raster import lonlat
from dsengine.corpus.build.shard import Block
from dsengine.corpus.schema import UNKNOWN_TIME, ArraySpec
from dsengine.corpus.sources import _patches
from dsengine.corpus.sources._bigearthnet_classes import CODES, MAP_NODATA, NAMES_19, NAMES_43, many_hot, map_to_19
from dsengine.corpus.sources._bigearthnet_release import Release
from dsengine.corpus.sources._patches import Cell, Place, read_json
from dsengine.errors import RunError, UsageError, nearest

SIDE = 120  # pixels of 10 m
STRIDE_M = 1200.0  # patches lie side by side in their Sentinel-2 tile; names end in column and row
TILE_M = 109_800.0
CLC_NODATA = 999  # CORINE's own
_TIME = re.compile(r"(?<!\d)\d{8}T\d{6}(?!\d)")


@dataclass(frozen=True)
class Cut:
    """Consecutive patches of a release as a Block."""

    release: Release
    specs: Sequence[ArraySpec]
    classes: int  # 19 or 43
    maps: str | None  # clc, 19 or None
    shift: int  # what is added to S2 numbers

    def __call__(self, rows: range) -> Block:
        return _patches.collate([self._cell(row) for row in rows])

    def read(self, row: int) -> tuple[dict[str, np.ndarray], Place]:
        """Raw numbers of each array of one patch and the 10 m grid. RunError when two files do not cover the same ground."""
        raw, first = {}, None
        for spec in self.specs:
            folder = self.release.folder(spec.sensor, row)
            paths = [folder / f"{folder.name}_{band}.tif" for band in spec.bands]
            raw[spec.name], place = _patches.read_bands(paths, side=SIDE // spec.factor, kind="iu" if spec.sensor == "s2" else "f")
            fine = _finest(place, spec.factor)
            first = first or fine
            _same_ground(str(folder), fine, first)
        return raw, first

    def _cell(self, row: int) -> Cell:
        raw, place = self.read(row)
        arrays, saturated, faults = {}, {}, []
        for name, numbers in raw.items():
            if name == "s1":
                arrays[name], saturated[name], faults = _patches.s1_stored(numbers, name=self.release.names["s1"][row])
            else:
                arrays[name], saturated[name] = _patches.s2_stored(numbers, shift=self.shift)
        described = self._described(row)
        return Cell(arrays, saturated, {**self._index(row, place), **described}, self._labels(row), faults)

    def _labels(self, row: int) -> dict[str, Any]:
        labels = {"land_cover": self.release.hot[row] if self.release.hot is not None else self._listed_labels(row)}
        if self.maps:
            labels["reference_map"] = self._map(row)
        return labels

    def _described(self, row: int) -> dict[str, Any]:
        """Times, split and the columns of the release's table."""
        release, names = self.release, self.release.names
        times = {sensor: _time(names[sensor][row]) if sensor in names else UNKNOWN_TIME for sensor in ("s2", "s1")}
        if release.version == "1.0" and "s2" in names:  # S2 names of 1.0 lack the zero padding of times
            times["s2"] = self._json(row, "s2", "acquisition_date", _patches.nanoseconds)
        given = {} if release.split is None else {"split": release.split[row]}
        return {"time_s2": times["s2"], "time_s1": times["s1"], **given, **{name: values[row] for name, values in release.columns.items()}}

    def _index(self, row: int, place: Place) -> dict[str, Any]:
        x, y = place.transform.c, place.transform.f
        name = next(iter(self.release.names.values()))[row]
        column, line = (int(part) for part in name.rsplit("_", 2)[1:])
        # The whole tile decides by its centre: its upper left corner follows from the patch's place in it.
        centre = x - column * STRIDE_M + TILE_M / 2, y + line * STRIDE_M - TILE_M / 2
        lon, lat = lonlat(place.crs, [x + SIDE * 5.0, centre[0]], [y - SIDE * 5.0, centre[1]])
        return {"lon": lon[0], "lat": lat[0], "split_lon": lon[1], "split_lat": lat[1], "epsg": place.crs.to_epsg() or 0, "x": x, "y": y,
                "source": name, "tile": self._tile(row)}

    def _tile(self, row: int) -> str:
        if "s1" in self.release.names:
            return self.release.names["s1"][row].split("_")[5]
        if self.release.version == "2.0":
            return self.release.names["s2"][row].split("_")[5][1:]
        return self._json(row, "s2", "tile_source", lambda text: re.search(r"_T(\d\d[A-Z]{3})_", text)[1])

    def _listed_labels(self, row: int) -> np.ndarray:
        return self._json(row, next(iter(self.release.names)), "labels", lambda names: many_hot(names, classes=self.classes))

    def _json(self, row: int, sensor: str, key: str, parse: Any) -> Any:
        folder = self.release.folder(sensor, row)
        path = folder / f"{folder.name}_labels_metadata.json"
        try:
            value = read_json(path)[key]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path}: {key} cannot be read ({type(error).__name__}: {error})") from error
        try:
            return parse(value)
        except KeyError as error:
            raise RunError(f"{path}: unknown class {error}; {nearest(str(error.args[0]), (*NAMES_43, *NAMES_19))}") from error
        except (TypeError, ValueError) as error:
            raise RunError(f"{path}: {key} is {value!r}") from error

    def _map(self, row: int) -> np.ndarray:
        folder = self.release.folder("maps", row)
        path = folder / f"{folder.name}_reference_map.tif"
        raw, _ = _patches.read_raster(path, side=SIDE, count=1, kind="iu")
        codes = np.where(raw[0] == CLC_NODATA, MAP_NODATA, raw[0])
        if unknown := set(np.unique(codes).tolist()) - CODES.keys() - {MAP_NODATA}:
            raise RunError(f"{path} has value {min(unknown)}; legal: level-3 codes of CORINE 2018, such as 211, and 0 for no data")
        return map_to_19(codes) if self.maps == "19" else codes.astype(np.uint16)


def look(cut: Cut, *, choice: str, stated: Decision) -> Decision | None:
    """Opens a few patches: units are checked, and the S2 offset of the release is decided (None without S2)."""
    samples: dict[str, Mapping[str, np.ndarray]] = {}
    for row in _patches.sampled(len(cut.release)):
        try:
            raw, _ = cut.read(row)
        except RunError as error:
            raise UsageError(str(error)) from error
        if "s1" in raw:
            _patches.check_db(raw["s1"], name=cut.release.names["s1"][row])
        s2 = [_patches.valid_numbers(raw[spec.name], spec.bands) for spec in cut.specs if spec.sensor == "s2"]
        if s2:
            samples[cut.release.names["s2"][row]] = {band: values for group in s2 for band, values in group.items()}
    return _patches.released_offset(choice, stated, samples) if samples else None


def _finest(place: Place, factor: int) -> Place:
    """The 10 m grid with the corner of a coarser one."""
    t = place.transform
    return Place(place.crs, Affine(t.a / factor, t.b, t.c, t.d, t.e / factor, t.f))


def _same_ground(name: str, place: Place, first: Place) -> None:
    if place.crs != first.crs or not place.transform.almost_equals(first.transform, precision=1e-3):
        raise RunError(f"{name}: a grid of {tuple(place.transform)[:6]} in {place.crs} does not cover the ground of {tuple(first.transform)[:6]} "
                       f"in {first.crs}; files of one patch share their upper left corner and CRS")


def _time(name: str) -> int:
    found = _TIME.search(name)
    return _patches.nanoseconds(found[0]) if found else UNKNOWN_TIME
