"""UTM zones and the pixel grid that patches of all sources share within a zone.

Zones follow the MGRS, on which Sentinel-2 tiles are cut: 6 degrees wide, but zone 32 takes the south-west coast of Norway
(56-64 N: 31 is 0-3 E, 32 is 3-12 E) and Svalbard has 31, 33, 35 and 37 only (72-84 N). Sentinel-2's grids of 10, 20 and 60 m have their
corners at multiples of 60 m of easting, and of northing counted from the equator: south of it, where 10,000,000 m are added, no multiples.
"""

import math

import numpy as np
from rasterio.crs import CRS

from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.raster import lonlat, warp_points
from dsengine.errors import UsageError

SOUTH, NORTH = -80.0, 84.0  # degrees latitude; beyond lie the polar grids
SNAP_M = 60  # corners of patches are corners of 10, 20 and 60 m pixels
FALSE_NORTHING_M = 10_000_000
# (south, north, {zone: (west, east)}): where zones are not 6 degrees wide. A zone with an empty interval does not occur there.
_EXCEPTIONS = ((56.0, 64.0, {31: (0.0, 3.0), 32: (3.0, 12.0)}),
               (72.0, 84.0, {31: (0.0, 9.0), 32: (0.0, 0.0), 33: (9.0, 21.0), 34: (0.0, 0.0), 35: (21.0, 33.0), 36: (0.0, 0.0), 37: (33.0, 42.0)}))
_BANDS = (SOUTH, 0.0, 56.0, 64.0, 72.0, NORTH)


def utm_epsg(lon: float, lat: float) -> int:
    """EPSG code of the UTM zone of a point in degrees WGS 84: 32601..32660 north, 32701..32760 south. UsageError beyond 80 S or 84 N."""
    if not SOUTH <= lat <= NORTH:
        raise UsageError(f"latitude {lat:g}: UTM ends at {SOUTH:g} and {NORTH:g}")
    lon = (lon + 180.0) % 360.0 - 180.0
    zone = min(int((lon + 180.0) // 6.0), 59) + 1
    for south, north, limits in _EXCEPTIONS:
        if south <= lat < north or lat == north == NORTH:
            zone = next((other for other, (west, east) in limits.items() if west <= lon < east), zone)
    return (32600 if lat >= 0 else 32700) + zone


def zone_boxes(epsg: int) -> list[tuple[float, float, float, float]]:
    """(west, south, east, north) in degrees: the boxes that make up the area of a UTM zone on its side of the equator."""
    zone, south_side = epsg % 100, epsg // 100 == 327
    boxes = []
    for south, north in zip(_BANDS, _BANDS[1:]):
        if (north <= 0) != south_side:
            continue
        limits = next((table for low, high, table in _EXCEPTIONS if low <= south < high), {})
        west, east = limits.get(zone, (6.0 * zone - 186.0, 6.0 * zone - 180.0))
        if west < east:
            boxes.append((west, south, east, north))
    return boxes


def to_utm(epsg: int, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres of points in degrees; continuous across the date line, whichever side a longitude is written on."""
    x, y = warp_points("EPSG:4326", CRS.from_epsg(epsg), np.asarray(lon).tolist(), np.asarray(lat).tolist())
    return np.array(x), np.array(y)


def patch_at(lon: float, lat: float, *, size: int, resolution_m: float) -> Grid:
    """The patch in the point's own zone whose centre lies within 30 m of the point along x and y, with its corner on the 60 m grid."""
    epsg = utm_epsg(lon, lat)
    x, y = to_utm(epsg, np.array([lon]), np.array([lat]))
    half = size * resolution_m / 2
    origin = FALSE_NORTHING_M if epsg // 100 == 327 else 0
    left = math.floor((x[0] - half) / SNAP_M + 0.5) * SNAP_M
    top = math.floor((y[0] + half - origin) / SNAP_M + 0.5) * SNAP_M + origin
    return Grid(epsg, float(left), float(top), size, resolution_m)


def centre(grid: Grid) -> tuple[float, float]:
    """Degrees longitude and latitude of the middle of a patch."""
    half = grid.size * grid.resolution_m / 2
    lon, lat = lonlat(CRS.from_epsg(grid.epsg), [grid.x + half], [grid.y - half])
    return float(lon[0]), float(lat[0])


def bounds(grid: Grid) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) metres."""
    side = grid.size * grid.resolution_m
    return grid.x, grid.y - side, grid.x + side, grid.y
