"""Where patches are to lie: a region read from a vector file, points spread over it, or patches that cover it.

A point is a function of (seed, row, attempt) alone, so asking for more points extends the list. It is drawn by rejection: a polygon is
chosen by the size of its box, a point is drawn in the box, and both are drawn again until the point lies in the polygon; so the density is
the same everywhere, and few draws are lost where polygons are small and far apart.
"""

import os
from dataclasses import dataclass

import numpy as np

from dsengine import noise
from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.raster import warp_points
from dsengine.corpus.build.utm import FALSE_NORTHING_M, NORTH, SOUTH, to_utm, zone_boxes
from dsengine.errors import UsageError, nearest

ISO_COLUMNS = ("ISO_A2", "ISO_A2_EH", "ISO_A3", "ISO_A3_EH", "ADM0_A3")
PARITY_LATITUDES = (-70.0, 80.0)  # of the paper's draw
SITE = "geography.place"  # whose noise the points are
NATURAL_EARTH = ("land or countries of Natural Earth (public domain, naturalearthdata.com), such as ne_50m_land or "
                 "ne_50m_admin_0_countries, as .geojson, .shp or .gpkg")
_MAX_DRAWS, _MAX_CELLS, _SEGMENT_DEG = 10_000, 5_000_000, 0.05


@dataclass(frozen=True)
class Region:
    """Disjoint valid polygons in degrees WGS 84, within +-180 and the latitudes of UTM."""

    polygons: np.ndarray  # of shapely.Polygon, prepared
    name: str  # what errors call it

    @property
    def whole(self) -> object:
        """All polygons as one geometry."""
        return need("shapely", "stac").union_all(self.polygons)


def read_region(path: str | os.PathLike[str], *, codes: tuple[str, ...] = ()) -> Region:
    """Polygons of the first polygon layer of a vector file, in any CRS; with `codes` those of the countries with these ISO codes.

    Invalid polygons are repaired. Raises UsageError for a file without polygons, without the column for codes, or for an unknown code.
    """
    pyogrio, shapely = need("pyogrio", "stac"), need("shapely", "stac")
    try:
        layers = [name for name, kind in pyogrio.list_layers(os.fspath(path)) if kind and "Polygon" in kind]
        meta, _, wkb, columns = pyogrio.raw.read(os.fspath(path), layer=layers[0] if layers else None)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as error:
        raise UsageError(f"{path} cannot be opened as a vector file: {error}; legal: {NATURAL_EARTH}") from error
    if codes:
        wkb = wkb[_with_codes(codes, dict(zip(meta["fields"], columns, strict=True)), path)]
    shapes = shapely.from_wkb(wkb)
    shapes = _to_degrees(shapes[~shapely.is_missing(shapes)], meta["crs"], path)
    return region(shapes, name=f"{path}" + (f" ({', '.join(codes)})" if codes else ""))


def region(shapes: np.ndarray, *, name: str) -> Region:
    """The union of polygons in degrees, repaired, longitudes beyond +-180 wrapped, cut at the latitudes of UTM. UsageError when it is empty."""
    shapely = need("shapely", "stac")
    repaired = shapely.make_valid(shapes)
    world = shapely.box(-180.0, SOUTH, 180.0, NORTH)
    turns = [shapely.intersection(shapely.transform(repaired, lambda xy, turn=turn: xy + [turn, 0.0]), world) for turn in (-360.0, 0.0, 360.0)]
    parts = shapely.get_parts(shapely.union_all(np.concatenate(turns)))
    polygons = parts[(shapely.get_type_id(parts) == 3) & (shapely.area(parts) > 0)]
    if not len(polygons):
        raise UsageError(f"{name}: holds no polygon between latitudes {SOUTH:g} and {NORTH:g}")
    shapely.prepare(polygons)
    return Region(polygons, name)


def points(area: Region, rows: np.ndarray, *, seed: int, attempt: int = 0, parity: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes, (n,) float64 each, of the points `rows` (n,), the same however many are asked for.

    Uniform in area (longitude and the sine of latitude); with `parity` uniform in degrees between 70 S and 80 N, as DeepSentinel drew them.
    `attempt` gives another point for the same row. Raises UsageError when the polygons fill next to nothing of their boxes.
    """
    shapely = need("shapely", "stac")
    boxes = shapely.bounds(area.polygons)
    low, high = boxes[:, 1], boxes[:, 3]
    if parity:
        low, high = np.clip(low, *PARITY_LATITUDES), np.clip(high, *PARITY_LATITUDES)
    else:
        low, high = np.sin(np.radians(low)), np.sin(np.radians(high))
    sizes = np.cumsum((boxes[:, 2] - boxes[:, 0]) * (high - low))
    if sizes[-1] <= 0:
        raise UsageError(f"{area.name}: lies beyond the latitudes {PARITY_LATITUDES} of --parity")
    lon, lat = np.empty(len(rows)), np.empty(len(rows))
    open_rows = np.arange(len(rows))
    for draw in range(_MAX_DRAWS):
        bits = noise.words(seed=seed, site=SITE, step=attempt, ids=np.asarray(rows)[open_rows], blocks=np.array([draw]))
        u = noise.to_unit(bits[:, 0])
        which = np.searchsorted(sizes, u[:, 0] * sizes[-1], side="right")
        x = boxes[which, 0] + u[:, 1] * (boxes[which, 2] - boxes[which, 0])
        y = low[which] + u[:, 2] * (high - low)[which]
        y = y if parity else np.degrees(np.arcsin(y))
        inside = shapely.contains_xy(area.polygons[which], x, y)
        lon[open_rows[inside]], lat[open_rows[inside]] = x[inside], y[inside]
        open_rows = open_rows[~inside]
        if not len(open_rows):
            return lon, lat
    raise UsageError(f"{area.name}: its polygons fill less than 1/{_MAX_DRAWS} of their boxes; no point could be drawn")


def cover(area: Region, *, size: int, resolution_m: float, within: bool = False) -> list[Grid]:
    """The patches of a fixed lattice, side by side in each UTM zone, that touch the region, or with `within` lie in it as a whole.

    Lattices of neighbouring zones meet at an angle: patches along the edge of a zone overlap. Order: zone, then north to south, west to east.
    Raises UsageError for more than 5 million patches or none.
    """
    whole, found = area.whole, []
    for epsg in _zones(area):
        found += _cover_zone(whole, epsg, size=size, resolution_m=resolution_m, within=within)
        if len(found) > _MAX_CELLS:
            raise UsageError(f"{area.name}: more than {_MAX_CELLS} patches; give a smaller region or a larger --size")
    if not found:
        raise UsageError(f"{area.name}: no patch of {size} pixels lies within it; give a smaller --size, or --cover touches")
    return found


def _zones(area: Region) -> list[int]:
    west, south, east, north = need("shapely", "stac").total_bounds(area.polygons)
    return [epsg for side in (32600, 32700) for epsg in range(side + 1, side + 61)
            if any(w <= east and e >= west and s <= north and n >= south for w, s, e, n in zone_boxes(epsg))]


def _cover_zone(whole: object, epsg: int, *, size: int, resolution_m: float, within: bool) -> list[Grid]:
    shapely = need("shapely", "stac")
    zone = shapely.union_all([shapely.box(*box) for box in zone_boxes(epsg)])
    here = shapely.intersection(whole, zone)
    if shapely.is_empty(here):
        return []
    mine = _project(here, epsg)
    # A patch may reach over the edge of its zone: what lies within the region is judged a degree further, also across 180 degrees.
    target = _project(shapely.intersection(_around(whole), shapely.buffer(zone, 1.0, join_style="mitre")), epsg) if within else mine
    side, origin = size * resolution_m, FALSE_NORTHING_M if epsg // 100 == 327 else 0
    left, bottom, right, top = shapely.bounds(mine)
    columns = np.arange(np.floor(left / side), np.floor(right / side) + 1) * side
    rows = np.arange(np.floor((top - origin) / side), np.floor((bottom - origin) / side) - 1, -1) * side + origin
    for geometry in (mine, target):
        shapely.prepare(geometry)
    grids = []
    for low in rows:  # one row of patches at a time bounds memory
        boxes = shapely.box(columns, low, columns + side, low + side)
        keep = shapely.intersects(mine, boxes) & (shapely.covers(target, boxes) if within else True)
        grids += [Grid(epsg, float(x), float(low + side), size, resolution_m) for x in columns[keep]]
    return grids


def _around(whole: object) -> object:
    """The geometry with what a neighbour of the antimeridian sees on its other side."""
    shapely = need("shapely", "stac")
    west, _, east, _ = shapely.bounds(whole)
    copies = [whole]
    if east > 179:
        copies.append(shapely.transform(whole, lambda xy: xy - (360.0, 0.0)))
    if west < -179:
        copies.append(shapely.transform(whole, lambda xy: xy + (360.0, 0.0)))
    return shapely.union_all(copies)


def _project(geometry: object, epsg: int) -> object:
    """A geometry in degrees in metres of a zone; edges get a vertex every 0.05 degree, since straight lines do not stay straight."""
    shapely = need("shapely", "stac")
    fine = shapely.segmentize(geometry, _SEGMENT_DEG)
    return shapely.make_valid(shapely.transform(fine, lambda xy: np.stack(to_utm(epsg, xy[:, 0], xy[:, 1]), axis=1)))


def _with_codes(codes: tuple[str, ...], table: dict[str, np.ndarray], path: object) -> np.ndarray:
    columns = [values for name, values in table.items() if name.upper() in ISO_COLUMNS]
    if not columns:
        raise UsageError(f"{path} has no column {', '.join(ISO_COLUMNS)} for --region {','.join(codes)}; its columns: {', '.join(table) or 'none'}; "
                         f"legal: {NATURAL_EARTH.replace('land or ', '')}")
    known = {str(value).upper() for values in columns for value in values} - {"-99", "NONE", ""}
    for code in codes:
        if code.upper() not in known:
            raise UsageError(f"--region {code}: {path} {nearest(code.upper(), known)}")
    wanted = [code.upper() for code in codes]
    return np.any([[str(value).upper() in wanted for value in values] for values in columns], axis=0)


def _to_degrees(shapes: np.ndarray, crs: str | None, path: object) -> np.ndarray:
    if crs is None:
        raise UsageError(f"{path} names no CRS; legal: any CRS that the file names")
    if crs.upper() in ("EPSG:4326", "OGC:CRS84", "EPSG:4979"):
        return shapes
    transform = need("shapely", "stac").transform
    return transform(shapes, lambda xy: np.stack(warp_points(crs, "EPSG:4326", xy[:, 0].tolist(), xy[:, 1].tolist()), axis=1))
