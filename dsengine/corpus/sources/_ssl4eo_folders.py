"""SSL4EO-S12 1.0: <root>/{s1,s2a,s2c}/<location>/<product>/<band>.tif and metadata.json, up to four products a location and sensor.

Files are in degrees (EPSG:4326) on a grid of their own for each sensor and ground resolution, up to a few pixels apart at one location;
they are stored as they are. Product names begin with the sensing time, so that pairing opens nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build import offset
from dsengine.corpus.build.offset import Decision
from dsengine.corpus.build.raster import lonlat
from dsengine.corpus.build.shard import Block
from dsengine.corpus.schema import UNKNOWN_TIME, ArraySpec
from dsengine.corpus.sources import _patches
from dsengine.corpus.sources._patches import Cell, Place, listed
from dsengine.errors import RunError, UsageError

SIDE = 264
FOLDERS = {"l2a": ("s2a", "s2_l2a"), "l1c": ("s2c", "s2_l1c"), "s1": ("s1", "s1_grd")}
MAX_APART_DEG = 0.01  # about 1 km: centres of the grids of one location
_PRODUCT = {"s2": r"(\d{8}T\d{6})_\d{8}T\d{6}_T\d\d[A-Z]{3}", "s1": r"S1[AB]_IW_GRDH_1S[SD][VH]_(\d{8}T\d{6})_\d{8}T\d{6}_[0-9A-F_]+"}


class Pair(NamedTuple):
    """One row: an S2 product and the S1 product nearest to it in time, of one location. Empty names where a sensor is not used."""

    location: str
    season: int
    s2: str
    s1: str
    home: str  # product of the location's first season: its centre decides the split of all


def find_folders(root: Path, level: str, sensors: Sequence[str]) -> dict[str, Path] | None:
    """Sensor -> folder of its locations; None when `root` is not of this release."""
    found = {}
    for sensor in sensors:
        names = FOLDERS[level if sensor == "s2" else "s1"]
        path = next((root / name for name in names if (root / name).is_dir()), None)
        if path is None:
            if found:
                raise UsageError(f"--root {root} has {next(iter(found.values())).name} but no folder {' or '.join(names)}")
            return None
        found[sensor] = path
    return found


def pairs(folders: dict[str, Path], *, seasons: int | None) -> list[Pair]:
    """Rows by location and time of S2 (S1 where there is no S2), at most `seasons` a location. Lists folders, opens nothing.

    UsageError when a location lacks a sensor.
    """
    locations = {sensor: listed(folder) for sensor, folder in folders.items()}
    first = next(iter(folders))
    for sensor, names in locations.items():
        if missing := sorted(set(locations[first]) ^ set(names)):
            owner = first if missing[0] in set(locations[first]) else sensor
            raise UsageError(f"{len(missing)} locations are in one sensor's folder only, such as {folders[owner] / missing[0]}; legal: all sensors, "
                             "or --sensors s2")
    rows = []
    for location in locations[first]:
        products = {sensor: _products(folder / location, sensor) for sensor, folder in folders.items()}
        for season, (time, name) in enumerate(products[first][:seasons]):
            partner = nearest_in_time(time, products["s1"]) if first == "s2" and "s1" in products else None
            rows.append(Pair(location, season, *((name, partner or "") if first == "s2" else ("", name)), home=products[first][0][1]))
    if not rows:
        raise UsageError(f"{folders[first]} holds no location")
    return rows


def nearest_in_time(time: int, products: Sequence[tuple[int, str]]) -> str:
    """Name of the product whose time is nearest; the earlier of two that are equally near."""
    return min(products, key=lambda product: (abs(product[0] - time), product))[1]


@dataclass(frozen=True)
class Cut:
    """Consecutive rows as a Block."""

    folders: dict[str, Path]
    rows: tuple[Pair, ...]
    specs: Sequence[ArraySpec]
    choice: str  # --s2-offset

    def __call__(self, rows: range) -> Block:
        return _patches.collate([self._cell(self.rows[row]) for row in rows])

    def read(self, pair: Pair) -> dict[str, tuple[np.ndarray, Place]]:
        """Raw numbers and grid of each array. RunError when the grids of one location lie far apart."""
        found = {}
        for spec in self.specs:
            folder = self._product(pair, spec.sensor)
            paths = [folder / f"{_file_name(band)}.tif" for band in spec.bands]
            found[spec.name] = _patches.read_bands(paths, side=SIDE // spec.factor, kind="iu" if spec.sensor == "s2" else "f")
        centres = {name: _centre(raw, place) for name, (raw, place) in found.items()}
        first = next(iter(centres.values()))
        for name, centre in centres.items():
            if max(abs(centre[0] - first[0]), abs(centre[1] - first[1])) > MAX_APART_DEG:
                raise RunError(f"{self._product(pair, 's1' if name == 's1' else 's2')}: centre {centre}, but {first} in another file of the location")
        return found

    def _product(self, pair: Pair, sensor: str) -> Path:
        return self.folders[sensor] / pair.location / (pair.s2 if sensor == "s2" else pair.s1)

    def _cell(self, pair: Pair) -> Cell:
        arrays, saturated, faults = {}, {}, []
        found, metadata = self.read(pair), self.metadata(pair)
        shift = self.decide(pair, found, metadata).offset if pair.s2 else 0
        for name, (raw, _) in found.items():
            if name == "s1":
                arrays[name], saturated[name], faults = _patches.s1_stored(raw, name=str(self._product(pair, "s1")))
            else:
                arrays[name], saturated[name] = _patches.s2_stored(raw, shift=shift)
        lon, lat = _centre(*next(iter(found.values())))
        percent = metadata.get("CLOUDY_PIXEL_PERCENTAGE")
        split_lon, split_lat = self._home(pair)
        index = {"lon": lon, "lat": lat, "split_lon": split_lon, "split_lat": split_lat, "location": pair.location, "season": pair.season,
                 "scene_cloud": percent / 100 if isinstance(percent, int | float) else float("nan"),
                 "time_s2": _time(pair.s2, "s2"), "time_s1": _time(pair.s1, "s1"), "source": f"{pair.location}/{pair.s2 or pair.s1}"}
        return Cell(arrays, saturated, index, {}, faults)

    def _home(self, pair: Pair) -> tuple[float, float]:
        spec = self.specs[0]
        path = self.folders[spec.sensor] / pair.location / pair.home / f"{_file_name(spec.bands[0])}.tif"
        return _centre(*_patches.read_raster(path, side=SIDE // spec.factor, count=1, kind="iuf"))

    def decide(self, pair: Pair, found: dict[str, tuple[np.ndarray, Place]], metadata: dict[str, Any]) -> Decision:
        """S2 offset of one product by its PROCESSING_BASELINE, unless the pixels prove it wrong; by the pixels where there is none."""
        if self.choice != "auto":
            return Decision(int(self.choice), f"--s2-offset {self.choice}")
        tags = {key: str(value) for key, value in metadata.items() if isinstance(value, str | int | float)}
        sample = {band: values for spec in self.specs if spec.sensor == "s2"
                  for band, values in _patches.valid_numbers(found[spec.name][0], spec.bands).items()}
        stated = offset.from_metadata([tags.get("PRODUCT_ID", "")], tags, scale=1.0, offset=0.0)
        decision = offset.decide(stated, _patches.pixels_say(sample))
        if decision.offset is None:
            raise RunError(f"--s2-offset auto cannot tell for {self._product(pair, 's2')} ({decision.reason}); legal: 0 or -1000")
        return decision

    def metadata(self, pair: Pair) -> dict[str, Any]:
        """metadata.json of the S2 product, empty without S2. RunError when it cannot be read."""
        if not pair.s2:
            return {}
        path = self._product(pair, "s2") / "metadata.json"
        try:
            return _patches.read_json(path)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def look(cut: Cut) -> dict[str, Decision]:
    """Opens the files of a few rows, checks that S1 is dB and that the offset can be told; returns the offsets found, with reasons."""
    decisions = {}
    for row in _patches.sampled(len(cut.rows)):
        pair = cut.rows[row]
        try:
            found = cut.read(pair)
            if "s1" in found:
                _patches.check_db(found["s1"][0], name=f"{pair.location}/{pair.s1}")
            if pair.s2:
                decisions[f"{pair.location}/{pair.s2}"] = cut.decide(pair, found, cut.metadata(pair))
        except RunError as error:
            raise UsageError(str(error)) from error
    return decisions


def _file_name(band: str) -> str:
    """B01 is B1.tif here."""
    return band.replace("B0", "B")


def _products(folder: Path, sensor: str) -> list[tuple[int, str]]:
    """(time, name) of a location's products, earliest first."""
    found = [(_time(name, sensor), name) for name in listed(folder)]
    if not found or min(found)[0] == UNKNOWN_TIME:
        raise UsageError(f"{folder} holds {min(found)[1] if found else 'no product'}; legal: folders named by {sensor.upper()} products")
    return sorted(found)


def _time(name: str, sensor: str) -> int:
    match = re.fullmatch(_PRODUCT[sensor], name)
    return _patches.nanoseconds(match[1]) if match else UNKNOWN_TIME


def _centre(raw: np.ndarray, place: Place) -> tuple[float, float]:
    """Longitude and latitude of the middle of an array's grid."""
    t, side = place.transform, raw.shape[-1]
    lon, lat = lonlat(place.crs, [t.c + t.a * side / 2], [t.f + t.e * side / 2])
    return float(lon[0]), float(lat[0])
