"""Reading GeoTIFFs through rasterio: what a file is, a coarse sample of it, and windows as stored int16."""

import math
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Interleaving
from rasterio.warp import transform as warp_points
from rasterio.windows import Window

from dsengine.corpus.build.convert import scaled_to_int16
from dsengine.corpus.schema import UNKNOWN_TIME
from dsengine.errors import RunError, UsageError

SAMPLE_SIDE = 512  # pixels: a sample has at most this many rows and columns
_TIME_TAGS = ("datetime", "PRODUCT_START_TIME", "DATATAKE_1_DATATAKE_SENSING_START")  # not TIFFTAG_DATETIME: that is the file's own


DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".img": "HFA", ".vrt": "VRT"}
MAX_BLOCK_BYTES = 1 << 30  # of one tile or strip, which GDAL unpacks whole; a Sentinel-2 tile in one piece has 241 MB a band


class RasterInfo(NamedTuple):
    """What the header of a raster says."""

    path: Path
    count: int
    dtype: str
    shape: tuple[int, int]
    crs: CRS
    transform: Affine
    nodata: float | None
    descriptions: tuple[str | None, ...]
    scale: float  # declared, of the first band; 1 when none is
    offset: float  # declared, of the first band; 0 when none is
    tags: dict[str, str]


class Radiometry(NamedTuple):
    """stored = round((number + shift) * gain + bias); `nodata` and what is not finite become -32768."""

    gain: float
    bias: float
    shift: float = 0.0
    nodata: float | None = None


def open_raster(path: str | os.PathLike[str]) -> rasterio.DatasetReader:
    """Open a raster by the driver that its name says: GDAL would also open a .tif that is a list of other files or of URLs.

    Raises rasterio's RasterioIOError when it cannot be opened, UsageError when its name says none of the legal formats.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in DRIVERS:
        raise UsageError(f"{path}: legal: files ending in {', '.join(DRIVERS)}")
    return rasterio.open(path, driver=DRIVERS[suffix])


def describe(path: Path) -> RasterInfo:
    """Header of a raster on a grid of squares in metres. UsageError where it is not, as from `header`."""
    info = header(path)
    if info.crs is None or not in_metres(info.crs):
        raise UsageError(f"{path}: CRS is {info.crs}; legal: a projected CRS in metres")
    t = info.transform
    if t.b or t.d or t.a <= 0 or not np.isclose(t.a, -t.e, rtol=1e-6):
        raise UsageError(f"{path}: transform {tuple(t)[:6]} is not north-up with square pixels")
    return info


def header(path: Path) -> RasterInfo:
    """What the header says. UsageError when it cannot be opened, is placed by control points only, or is stored in huge pieces."""
    try:
        with open_raster(path) as file:
            if (size := _block_bytes(file)) > MAX_BLOCK_BYTES:
                raise UsageError(f"{path} is stored in pieces of {size:,} bytes; legal: up to {MAX_BLOCK_BYTES:,}: write it with tiles")
            info = RasterInfo(path, file.count, file.dtypes[0], file.shape, file.crs, file.transform, file.nodata, file.descriptions,
                              file.scales[0], file.offsets[0], file.tags())
            has_points = bool(file.gcps[0])
    except rasterio.errors.RasterioIOError as error:
        raise UsageError(f"{path} cannot be opened as a raster: {error}") from error
    if info.crs is None and has_points:
        raise UsageError(f"{path}: placed by ground control points only; legal: a raster on a projected grid (geocode it first, and calibrate radar "
                         "digital numbers to dB)")
    return info


def _block_bytes(file: rasterio.DatasetReader) -> int:
    """What GDAL holds in memory to read one pixel."""
    bands = file.count if file.interleaving == Interleaving.pixel else 1
    return bands * max(math.prod(block) * np.dtype(dtype).itemsize for block, dtype in zip(file.block_shapes, file.dtypes, strict=True))


def in_metres(crs: CRS) -> bool:
    """Whether coordinates are metres on a plane: not degrees, and not the feet of many national grids."""
    return crs.is_projected and crs.linear_units_factor[1] == 1.0


def sample(path: Path, index: int) -> np.ndarray:
    """One band, thinned to at most 512 x 512 by nearest neighbour, flat."""
    with open_raster(path) as file:
        shape = tuple(min(side, SAMPLE_SIDE) for side in file.shape)
        return file.read(index, out_shape=shape).reshape(-1)


def distinct_values(path: Path) -> set[int]:
    """Every value of the first band, read block by block."""
    with open_raster(path) as file:
        return {int(value) for _, window in file.block_windows(1) for value in np.unique(file.read(1, window=window))}


def read_window(file: rasterio.DatasetReader, indexes: Sequence[int], *, y: int, x: int, size: int) -> np.ndarray:
    """(C, size, size) raw numbers. RunError naming the file when it cannot be read."""
    try:
        return file.read(list(indexes), window=Window(x, y, size, size))
    except rasterio.errors.RasterioIOError as error:
        raise RunError(f"{file.name}: window y={y} x={x} size={size} cannot be read: {error}") from error


def valid_mask(raw: np.ndarray, nodata: float | None) -> np.ndarray:
    """True where `raw` is finite and not `nodata`."""
    mask = np.isfinite(raw) if raw.dtype.kind == "f" else np.ones(raw.shape, bool)
    return mask if nodata is None or np.isnan(nodata) else mask & (raw != nodata)


def to_stored(raw_CHW: np.ndarray, radiometry: Radiometry, out_CHW: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """int16 of raw numbers, in `out` where that is given (C-contiguous), and how many values a band (C,) were cut to +-32767."""
    stored = np.empty(raw_CHW.shape, np.int16) if out_CHW is None else out_CHW
    flat = (len(raw_CHW), -1)
    return stored, scaled_to_int16(raw_CHW.reshape(flat), stored.reshape(flat), shift=radiometry.shift, gain=radiometry.gain, bias=radiometry.bias,
                                   nodata=radiometry.nodata)


def position(info: RasterInfo, *, x: float, y: float) -> tuple[float, float]:
    """Coordinates in the raster's CRS of a point in pixels from the upper left corner; the raster is north-up."""
    t = info.transform
    return t.c + x * t.a, t.f + y * t.e


def lonlat(crs: CRS, x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Degrees WGS 84 of points in `crs`."""
    lon, lat = warp_points(crs, "EPSG:4326", list(x), list(y))
    return np.array(lon), np.array(lat)


def acquired(info: RasterInfo) -> int:
    """Acquisition time in ns UTC from a tag or from yyyymmddThhmmss in the stem; int64 min when neither is there."""
    stamps = [info.tags[key] for key in _TIME_TAGS if key in info.tags] + re.findall(r"(?<!\d)\d{8}T\d{6}(?!\d)", info.path.stem)
    for stamp in stamps:
        digits = re.sub(r"\D", "", stamp)[:14]
        try:
            moment = datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            continue
        return int(moment.timestamp()) * 10**9
    return UNKNOWN_TIME
