"""What SEN12MS and DFC2020 share: folders `ROIs1158_spring/s2_1`, files `ROIs1158_spring_s2_1_p30.tif`, 256 px at 10 m, one file a sensor."""

import argparse
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

from dsengine.corpus.build.raster import lonlat
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import UNKNOWN_EPSG, Layout
from dsengine.corpus.sources._land_cover import Layer
from dsengine.corpus.sources._patches import L1C_BANDS, MAX_BLOCK, check_db, digest, s1_spec, s2_specs
from dsengine.corpus.sources._stored import store_s1, store_s2
from dsengine.errors import RunError, UsageError

SIDE, RESOLUTION_M = 256, 10.0
SPECS = (*s2_specs(L1C_BANDS, native=False, level="l1c"), s1_spec())  # all bands come on the 10 m grid
FILE = re.compile(r"(ROIs\d{4}_[a-z]+)_(s1|s2|lc|dfc)_([A-Za-z0-9]+)_p(0|[1-9]\d*)\.tif")
FOLDER = re.compile(r"(s1|s2|lc|dfc)_([A-Za-z0-9]+)")
# Bands of each file, and the kinds of numbers. Sentinel-1 in whole numbers would be dB cut off at the point.
LEGAL = {"s2": ((13,), "ui", "13 bands of integers"), "s1": ((2,), "f", "2 bands of floating-point dB"),
         "lc": ((1, 4), "ui", "1 or 4 bands of integers"), "dfc": ((1,), "ui", "1 band of integers")}


class Patch(NamedTuple):
    """One patch; `path` gives its files."""

    folder: str  # ROIs1158_spring
    place: str  # as in the name of the folder of its sensor: s2_<place>
    scene: str  # as in the name of the file; DFC2020 has files of scene 0 in s2_validation
    number: int

    def path(self, part: str) -> str:
        """Path below the root of the file of `part` (s1, s2, lc, dfc)."""
        return f"{self.folder}/{part}_{self.place}/{self.folder}_{part}_{self.scene}_p{self.number}.tif"

    @property
    def site(self) -> tuple[str, str]:
        """The scene that the patch was cut from; patches of one scene overlap."""
        return self.folder, self.place


class Raster(NamedTuple):
    """The numbers of one file and where it lies."""

    values: np.ndarray
    crs: CRS | None
    transform: Affine


def find_patches(root: Path, folders: Iterable[str]) -> list[Patch]:
    """Every patch with an S2 file below root/<folder>/s2_*, folders in the given order. UsageError for a .tif with a name of another form."""
    found = []
    for folder in folders:
        for place in sorted((name for part, name in _subfolders(root / folder) if part == "s2"), key=_natural):
            found += sorted(_patches(root, folder, place), key=lambda patch: patch.number)
    return found


def missing_parts(root: Path, patches: Sequence[Patch], parts: Sequence[str]) -> Iterator[tuple[Patch, str]]:
    """(patch, part) for every file that is not there, by one listing of each folder."""
    names = {}
    for patch in patches:
        for part in parts:
            relative, name = os.path.split(patch.path(part))
            if relative not in names:
                names[relative] = {entry.name for entry in os.scandir(root / relative)} if (root / relative).is_dir() else set()
            if name not in names[relative]:
                yield patch, part


def read(root: Path, patch: Patch, part: str) -> Raster:
    """All bands of one file. RunError naming the file when it cannot be read or is not what the set's files are."""
    path = root / patch.path(part)
    counts, kinds, legal = LEGAL[part]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            # The driver is named because others, such as VRT, would follow what the file says to other places.
            with rasterio.open(path, driver="GTiff") as file:
                found = f"{file.width} x {file.height} pixels, {file.count} bands of {file.dtypes[0]}"
                if file.shape != (SIDE, SIDE) or file.count not in counts or np.dtype(file.dtypes[0]).kind not in kinds:
                    raise RunError(f"{path} has {found}; legal: {SIDE} x {SIDE} pixels, {legal}")
                if max(max(block) for block in file.block_shapes) > MAX_BLOCK:  # GDAL allocates whole blocks
                    raise RunError(f"{path} has internal tiles of {max(max(b) for b in file.block_shapes)} pixels; legal: up to {MAX_BLOCK}")
                return Raster(file.read(), file.crs, file.transform)
    except rasterio.errors.RasterioIOError as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def centre(raster: Raster) -> tuple[float, float]:
    """Longitude and latitude of the middle of a patch; NaN where the file does not say."""
    if raster.crs is None:
        return float("nan"), float("nan")
    t = raster.transform
    lon, lat = lonlat(raster.crs, [t.c + t.a * SIDE / 2], [t.f + t.e * SIDE / 2])
    return float(lon[0]), float(lat[0])


@dataclass(frozen=True)
class Cut:
    """Reads consecutive patches with their labels; files are opened in the process that reads them."""

    root: Path
    patches: Sequence[Patch]
    sites: Mapping[tuple[str, str], tuple[float, float]]  # (lon, lat) that decides the split of a scene
    layers: Sequence[Layer]
    splits: Sequence[int] | None  # of each patch, where they are given

    def __call__(self, rows: range) -> Block:
        """See `build.plan.Plan`."""
        patches = self.patches[rows.start:rows.stop]
        arrays = {spec.name: np.empty((len(patches), len(spec.bands), SIDE, SIDE), np.int16) for spec in SPECS}
        labels = {layer.spec.name: np.empty((len(patches), SIDE, SIDE), np.uint8) for layer in self.layers}
        saturated = {spec.name: np.zeros(len(spec.bands), np.int64) for spec in SPECS}
        columns: dict[str, list[Any]] = {}
        faults = []
        for row, patch in enumerate(patches):
            rasters = {part: read(self.root, patch, part) for part in ("s2", "s1", *dict.fromkeys(layer.part for layer in self.layers))}
            _same_grid(self.root, patch, rasters)
            for name, stored in (("s2", store_s2(rasters["s2"].values)), ("s1", store_s1(rasters["s1"].values))):
                arrays[name][row] = stored.values
                saturated[name] += stored.saturated
            for layer in self.layers:
                labels[layer.spec.name][row] = layer.read(_band(self.root, patch, layer, rasters), str(self.root / patch.path(layer.part)))
            if bad := int((~np.isfinite(rasters["s1"].values)).sum()):
                faults.append(f"{patch.path('s1')}: {bad} values are not finite and count as nodata")
            for name, value in self._columns(patch, rasters["s2"]).items():
                columns.setdefault(name, []).append(value)
        if self.splits is not None:
            columns["split"] = list(self.splits[rows.start:rows.stop])
        return Block(arrays, columns, labels, {name: counts.tolist() for name, counts in saturated.items()}, faults)

    def _columns(self, patch: Patch, raster: Raster) -> dict[str, Any]:
        lon, lat = centre(raster)
        known = raster.crs is not None
        return {"lon": lon, "lat": lat, "epsg": (raster.crs.to_epsg() or UNKNOWN_EPSG) if known else UNKNOWN_EPSG,
                "x": raster.transform.c if known else np.nan, "y": raster.transform.f if known else np.nan, "source": patch.path("s2"),
                "split_lon": self.sites[patch.site][0], "split_lat": self.sites[patch.site][1], "scene": f"{patch.folder}_{patch.place}"}


def layout(layers: Sequence[Layer]) -> Layout:
    """13 bands of S2 L1C, 2 of S1, and the labels of `layers`."""
    return Layout(arrays=SPECS, patch_size=SIDE, resolution_m=RESOLUTION_M, labels=tuple(layer.spec for layer in layers))


def made_by(source: str, args: argparse.Namespace, options: dict[str, Any], patches: Sequence[Patch], *, left_out: dict[str, int],
            no_offset: str) -> dict[str, Any]:
    """Root attribute `made_by`; `no_offset` says why S2 numbers carry none."""
    return {"command": "corpus build", "source": source, "root": str(args.root), "options": {**options, "skip_incomplete": args.skip_incomplete},
            "patches": digest(patch.path("s2") for patch in patches), "left_out": left_out, "s2_offset": {"all": {"offset": 0, "reason": no_offset}}}


def check_first(root: Path, patches: Sequence[Patch], parts: Sequence[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Reads the first patch of each scene: place of each scene. UsageError when a file is not what it should be or S1 is not in dB."""
    places = {}
    for patch in patches:
        if patch.site in places:
            continue
        try:
            rasters = {part: read(root, patch, part) for part in parts}
            _same_grid(root, patch, rasters)
        except RunError as error:
            raise UsageError(str(error)) from error
        check_db(rasters["s1"].values, name=str(root / patch.path("s1")))
        places[patch.site] = centre(rasters["s2"])
    return places


def _subfolders(folder: Path) -> Iterator[tuple[str, str]]:
    for entry in os.scandir(folder):
        if entry.is_dir() and (match := FOLDER.fullmatch(entry.name)):
            yield match[1], match[2]


def _patches(root: Path, folder: str, place: str) -> Iterator[Patch]:
    for entry in os.scandir(root / folder / f"s2_{place}"):
        match = FILE.fullmatch(entry.name)
        if match and match[1] == folder and match[2] == "s2":
            yield Patch(folder, place, match[3], int(match[4]))
        elif entry.name.endswith((".tif", ".tiff")) and not entry.name.startswith("."):
            raise UsageError(f"{entry.path}: legal in this folder: {folder}_s2_<scene>_p<number>.tif")


def _natural(place: str) -> tuple[bool, int, str]:
    return (not place.isdigit(), int(place) if place.isdigit() else 0, place)


def _same_grid(root: Path, patch: Patch, rasters: Mapping[str, Raster]) -> None:
    first = rasters["s2"]
    for part, raster in rasters.items():
        # A thousandth of a pixel. Files that say nothing about where they lie are taken to lie together.
        if raster.crs != first.crs or not raster.transform.almost_equals(first.transform, precision=1e-2):
            raise RunError(f"{root / patch.path(part)} is not on the grid of its s2 file: {raster.crs} {tuple(raster.transform)[:6]}, "
                           f"legal: {first.crs} {tuple(first.transform)[:6]}")


def _band(root: Path, patch: Patch, layer: Layer, rasters: Mapping[str, Raster]) -> np.ndarray:
    values = rasters[layer.part].values
    if layer.band > len(values):
        raise RunError(f"{root / patch.path(layer.part)} has {len(values)} bands; {layer.spec.name} is band {layer.band}")
    return values[layer.band - 1]
