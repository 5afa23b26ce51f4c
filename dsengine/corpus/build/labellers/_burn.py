"""Shapes of a layer onto the pixels of a patch: cut out near it, reprojected, widened, rasterised.

A shape is cut to the patch's surroundings while it is still in its own CRS: what lies far away may have no place in the patch's CRS.
Then its edges get extra points, so that a line that is straight in its own CRS stays on its course in the other.
"""

from typing import Any

import numpy as np
import rasterio.warp
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import from_origin

from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid
from dsengine.errors import RunError

EDGE_POINTS = 9  # of a patch, along x and y, that tell where it lies in another CRS
PIECES = 32  # an edge is at most this part of the box of its patch long when it is reprojected
Box = tuple[float, float, float, float]  # left, bottom, right, top


def boxes(grid: Grid, crs: str, *, margin_m: float = 0.0) -> list[Box]:
    """The patch's bounds in `crs`, `margin_m` and a little wider; two boxes across the date line, none where `crs` has no such place."""
    side, wider = grid.size * grid.resolution_m, margin_m + 2 * grid.resolution_m
    steps = np.linspace(-wider, side + wider, EDGE_POINTS)
    # Inner points too: a pole inside the patch is nowhere near its edges.
    x, y = (values.ravel() for values in np.meshgrid(grid.x + steps, grid.y - steps))
    source, target = CRS.from_epsg(grid.epsg), CRS.from_user_input(crs)
    if source != target:
        # Not rasterio's transform_bounds: from one projection to another it takes 40 ms, this 0.2 ms.
        x, y = map(np.asarray, rasterio.warp.transform(source, target, x, y)[:2])
    if not np.isfinite([x, y]).all():
        return []
    # The outermost points lie on the edges, which bend outwards between them by much less than a tenth of their distance.
    spare = 0.1 * np.ptp(y) / (EDGE_POINTS - 1)
    bottom, top = y.min() - spare, y.max() + spare
    if target.is_geographic:
        return [(left, bottom, right, top) for left, right in _longitudes(x)]
    spare = 0.1 * np.ptp(x) / (EDGE_POINTS - 1)
    return [(x.min() - spare, bottom, x.max() + spare, top)]


def _longitudes(x: np.ndarray) -> list[tuple[float, float]]:
    """One or two ranges from -180 to 180 that hold points whose longitudes are `x`."""
    x = np.sort((x + 180) % 360 - 180)
    gaps = np.diff(x, append=x[0] + 360)
    widest = int(np.argmax(gaps))
    if gaps[widest] < 180:  # all around a pole
        return [(-180.0, 180.0)]
    left, right = x[(widest + 1) % len(x)], x[widest]
    spare = 0.1 * ((right - left) % 360) / (EDGE_POINTS - 1)
    left, right = left - spare, right + spare
    if left > right or left < -180 or right > 180:
        return [((left + 180) % 360 - 180, 180.0), (-180.0, (right + 180) % 360 - 180)]
    return [(left, right)]


def make_valid(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The geometries with the invalid ones repaired, and which those were (n,) bool."""
    shapely = need("shapely", "labels")
    broken = ~shapely.is_valid(geometries)
    if broken.any():
        geometries = geometries.copy()
        geometries[broken] = shapely.make_valid(geometries[broken], method="structure", keep_collapsed=False)
    return geometries, broken


def to_grid(geometries: np.ndarray, box: Box, crs: str, grid: Grid) -> np.ndarray:
    """Valid geometries cut to `box` (in `crs`), in the patch's CRS; what lies outside is empty. (n,) to (n,)."""
    shapely = need("shapely", "labels")
    cut = shapely.clip_by_rect(geometries, *box)
    source, target = CRS.from_user_input(crs), CRS.from_epsg(grid.epsg)
    if source == target:
        return cut
    fine = shapely.segmentize(cut, max(box[2] - box[0], box[3] - box[1]) / PIECES)
    moved = shapely.transform(fine, lambda xy: np.stack(rasterio.warp.transform(source, target, xy[:, 0], xy[:, 1])[:2], axis=1))
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise RunError(f"a shape in {crs} near x={grid.x:g} y={grid.y:g} has no place in EPSG:{grid.epsg}")
    return moved


def widen(geometries: np.ndarray, metres: float) -> np.ndarray:
    """The geometries with a buffer of `metres` (of the patch's CRS) around them."""
    return need("shapely", "labels").buffer(geometries, metres) if metres else geometries


def burn(out: np.ndarray, geometries: np.ndarray, values: np.ndarray, grid: Grid, *, all_touched: bool = False) -> None:
    """Draw shapes in order, in the patch's CRS, onto out (H, W); later ones over earlier ones.

    A pixel belongs to a polygon when its centre lies in it; with `all_touched`, when any of it does.
    """
    shapes = _as_json(geometries, values)
    if shapes:
        rasterize(shapes, out=out, transform=from_origin(grid.x, grid.y, grid.resolution_m, grid.resolution_m), all_touched=all_touched)


def _as_json(geometries: np.ndarray, values: np.ndarray) -> list[tuple[dict[str, Any], int]]:
    """The polygons among the geometries as rasterio takes them. Several times faster than shapely's own `__geo_interface__`."""
    shapely = need("shapely", "labels")
    parts, owners = geometries, np.arange(len(geometries))
    for _ in range(2):  # a collection may hold multipolygons
        parts, index = shapely.get_parts(parts, return_index=True)
        owners = owners[index]
    polygons = (shapely.get_dimensions(parts) == 2) & ~shapely.is_empty(parts)
    rings, of_polygon = shapely.get_rings(parts[polygons], return_index=True)
    xy, of_ring = shapely.get_coordinates(rings, return_index=True)
    points = xy.tolist()
    ends = np.searchsorted(of_ring, np.arange(len(rings)), side="right").tolist()
    lists = [points[start:end] for start, end in zip([0, *ends], ends)]
    ends = np.searchsorted(of_polygon, np.arange(polygons.sum()), side="right").tolist()
    return [({"type": "Polygon", "coordinates": lists[start:end]}, value)
            for start, end, value in zip([0, *ends], ends, values[owners[polygons]].tolist())]
