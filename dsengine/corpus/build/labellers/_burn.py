"""Shapes of a layer onto the pixels of a patch: cut out near it, reprojected, widened, rasterised.

A shape is cut to the patch's surroundings while it is still in its own CRS: what lies far away may have no place in the patch's CRS.
Then its edges get extra points, so that a line that is straight in its own CRS stays on its course in the other.
"""

from collections.abc import Iterator

import numpy as np
import rasterio.warp
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import from_origin

from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid
from dsengine.errors import RunError

PIECES = 32  # an edge is at most this part of the box of its patch long when it is reprojected
Box = tuple[float, float, float, float]  # left, bottom, right, top


def boxes(grid: Grid, crs: str, *, margin_m: float = 0.0) -> Iterator[Box]:
    """The patch's bounds in `crs`, `margin_m` and a little wider; two boxes across the date line, none where `crs` has no such place."""
    side, wider = grid.size * grid.resolution_m, margin_m + 2 * grid.resolution_m
    bounds = grid.x - wider, grid.y - side - wider, grid.x + side + wider, grid.y + wider
    target = CRS.from_user_input(crs)
    try:
        left, bottom, right, top = rasterio.warp.transform_bounds(CRS.from_epsg(grid.epsg), target, *bounds, densify_pts=21)
    except rasterio.errors.CRSError:
        return
    if not np.isfinite([left, bottom, right, top]).all():
        return
    if target.is_geographic and left > right:
        yield left, bottom, 180.0, top
        yield -180.0, bottom, right, top
    else:
        yield left, bottom, right, top


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
    shapely = need("shapely", "labels")
    kept = ~shapely.is_empty(geometries)
    if kept.any():
        shapes = zip(geometries[kept], values[kept].tolist(), strict=True)
        rasterize(shapes, out=out, transform=from_origin(grid.x, grid.y, grid.resolution_m, grid.resolution_m), all_touched=all_touched)
