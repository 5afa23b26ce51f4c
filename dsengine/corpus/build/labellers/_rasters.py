"""Class maps from rasters in any CRS: each pixel of a patch takes the value of the raster's pixel that its centre lies in."""

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import array_bounds, from_origin
from rasterio.vrt import WarpedVRT

from dsengine.corpus.build.labellers._base import Drawn, Labeller
from dsengine.corpus.build.labellers._burn import boxes
from dsengine.corpus.build.labellers._layers import check_crs
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import RunError, UsageError

# suffix -> GDAL driver. Other drivers, such as VRT and WMS, may open further files or addresses by name.
DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".img": "HFA", ".jp2": "JP2OpenJPEG", ".png": "PNG", ".asc": "AAIGrid"}
MAX_BLOCK = 2**27  # pixels of one block, which is decompressed whole
MAX_SCAN = 2**28  # pixels that are read through to find the classes


class Tile(NamedTuple):
    """One raster file of a map."""

    path: Path
    crs: str
    bounds: tuple[float, float, float, float]  # left, bottom, right, top in its CRS
    shape: tuple[int, int]
    band: int
    nodata: float | None


@dataclass(frozen=True, kw_only=True)
class RasterLabeller(Labeller):
    """Reads the tiles near a patch; where tiles overlap, the first by name that has data counts."""

    spec: LabelSpec
    tiles: Sequence[Tile]
    lookup: Mapping[int, int]  # value of the raster -> label value; values that are not in it are not legal
    others_ignored: bool = False  # such values are ignored instead of an error

    def draw(self, grid: Grid) -> Drawn:
        out = np.full((grid.size, grid.size), self.spec.ignore, self.spec.dtype)
        empty = np.ones(out.shape, bool)
        near = {crs: boxes(grid, crs) for crs in {tile.crs for tile in self.tiles}}
        for tile in self.tiles:
            if empty.any() and any(_meets(tile.bounds, box) for box in near[tile.crs]):
                values, valid = _warp(tile, grid)
                taken = empty & valid
                out[taken] = self._translate(values[taken], tile.path)
                empty &= ~taken
        return Drawn(out)

    def _translate(self, values: np.ndarray, path: Path) -> np.ndarray:
        found, where = np.unique(values, return_inverse=True)
        unknown = [value for value in found.tolist() if value not in self.lookup]
        if unknown and not self.others_ignored:
            raise RunError(f"{path} holds value {', '.join(f'{value:g}' for value in unknown)}; "
                           f"legal: {', '.join(map(str, self.lookup))}; others=ignore leaves such pixels out")
        return np.array([self.lookup.get(value, self.spec.ignore) for value in found.tolist()], self.spec.dtype)[where]


def open_tiles(path: Path, *, label: str, crs: str | None = None, band: int = 1, nodata: float | None = None) -> tuple[Tile, ...]:
    """The local raster `path`, or all that match it as a pattern, by name. `crs` and `nodata` overrule the files."""
    found = [path] if path.is_file() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
    if not found:
        raise UsageError(f"--label {label}: no local file matches {path}")
    if strange := [file for file in found if file.suffix.lower() not in DRIVERS]:
        raise UsageError(f"--label {label}: {strange[0]}: legal: local rasters ending in {', '.join(DRIVERS)}")
    return tuple(_tile(file, label=label, crs=crs, band=band, nodata=nodata) for file in found)


def sample_values(tiles: Sequence[Tile]) -> set[int]:
    """Values of each tile thinned to at most 512 x 512."""
    found: set[int] = set()
    for tile in tiles:
        with _open(tile.path) as file:
            values = file.read(tile.band, out_shape=tuple(min(side, 512) for side in tile.shape))
        found |= _whole(values, tile)
    return found


def every_value(tiles: Sequence[Tile]) -> set[int] | None:
    """Every value of every tile, read block by block; None when there are more than 2**28 pixels."""
    if sum(tile.shape[0] * tile.shape[1] for tile in tiles) > MAX_SCAN:
        return None
    found: set[int] = set()
    for tile in tiles:
        with _open(tile.path) as file:
            for _, window in file.block_windows(tile.band):
                found |= _whole(file.read(tile.band, window=window), tile)
    return found


def colours(tile: Tile) -> dict[int, str]:
    """Value -> #rrggbb of the colour table, without black, which pads it; empty where there is none."""
    with _open(tile.path) as file:
        try:
            table = file.colormap(tile.band)
        except ValueError:
            return {}
    return {value: "#{:02x}{:02x}{:02x}".format(*colour[:3]) for value, colour in table.items() if any(colour[:3])}


def _whole(values: np.ndarray, tile: Tile) -> set[int]:
    found = np.unique(values[_valid(values, tile.nodata)])
    if (found != np.rint(found)).any():
        raise UsageError(f"{tile.path} holds {found[found != np.rint(found)][0]:g}; a class map holds whole numbers")
    return {int(value) for value in found}


def _valid(values: np.ndarray, nodata: float | None) -> np.ndarray:
    mask = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    return mask if nodata is None or np.isnan(nodata) else mask & (values != nodata)


def _tile(path: Path, *, label: str, crs: str | None, band: int, nodata: float | None) -> Tile:
    try:
        with _open(path) as file:
            if band > file.count:
                raise UsageError(f"--label {label}: {path} has no band {band}: legal: 1 to {file.count}")
            if not (crs or file.crs) or file.transform.is_identity:
                raise UsageError(f"--label {label}: {path} has no {'place' if file.transform.is_identity else 'CRS; give it with crs=EPSG:NUMBER'}")
            if math.prod(file.block_shapes[band - 1]) > MAX_BLOCK:
                raise UsageError(f"--label {label}: {path} has blocks of {file.block_shapes[band - 1]} pixels, more than {MAX_BLOCK}; "
                                 "write it with tiles")
            named = check_crs(crs or file.crs.to_wkt(), label=label, path=path)
            return Tile(path, named, array_bounds(*file.shape, file.transform), file.shape, band, file.nodata if nodata is None else nodata)
    except rasterio.errors.RasterioIOError as error:
        raise UsageError(f"--label {label}: {path} cannot be opened: {error}; legal: files ending in "
                         f"{', '.join(DRIVERS)}") from error


def _open(path: Path) -> rasterio.DatasetReader:
    return rasterio.open(path, driver=DRIVERS[path.suffix.lower()])


def _warp(tile: Tile, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Values (H, W) on the patch's grid, and where they are data."""
    transform = from_origin(grid.x, grid.y, grid.resolution_m, grid.resolution_m)
    try:
        with _open(tile.path) as file:
            # The default tolerance lets coordinates be an eighth of a pixel off; 0 is refused by rasterio 1.4.
            with WarpedVRT(file, src_crs=tile.crs, crs=f"EPSG:{grid.epsg}", transform=transform, width=grid.size, height=grid.size,
                           resampling=Resampling.nearest, src_nodata=tile.nodata, add_alpha=True, tolerance=1e-6) as warped:
                values, alpha = warped.read(tile.band), warped.read(warped.count)
    except rasterio.errors.RasterioError as error:
        raise RunError(f"{tile.path} cannot be read near x={grid.x:g} y={grid.y:g} of EPSG:{grid.epsg}: {error}") from error
    return values, (alpha != 0) & _valid(values, tile.nodata)


def _meets(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
