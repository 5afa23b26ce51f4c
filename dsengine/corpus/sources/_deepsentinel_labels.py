"""Labels that DeepSentinel samples bring along: the CORINE raster, and OpenStreetMap features as hex WKB in Web Mercator."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.corpus.build.labellers._burn import boxes, burn, make_valid, to_grid, widen
from dsengine.corpus.build.labellers._groups import SHAPES, Group, default_groups, read_groups
from dsengine.corpus.build.npz import read_npz
from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.labels.corine import INDEX_CODES, LEVELS, Legend, legend
from dsengine.corpus.labels.osm import BACKGROUND, IGNORE
from dsengine.corpus.schema import LabelSpec
from dsengine.corpus.sources._deepsentinel_meta import read_json
from dsengine.errors import RunError, UsageError, nearest

MAX_FEATURES = 256 << 20  # bytes of the features of one patch
MERCATOR = "EPSG:3857"
MERCATOR_SRIDS = (0, 3857, 900913)  # 0: plain WKB; 900913: what osm2pgsql wrote before the number 3857 was given
_HSTORE = re.compile(r'"((?:[^"\\]|\\.)*)"=>"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class LandCover:
    """Values 0..48 of the published arrays through a legend of CORINE."""

    legend: Legend

    @property
    def spec(self) -> LabelSpec:
        """Label `corine`."""
        return LabelSpec(name="corine", kind="classmap", classes=self.legend.classes, ignore=self.legend.ignore, dtype=self.legend.dtype)

    def read(self, stem: Path, grid: Grid, tile: Grid | None) -> np.ndarray:
        """(H, W) class map of one sample. RunError when the raster has an unknown value or lies on another grid than the patch."""
        path = Path(f"{stem}_LCarr.npz")
        self._check_grid(stem, grid, tile)
        raw = read_npz(path, "arr", shape=(grid.size, grid.size), dtypes=("uint8",))
        if raw.max() >= len(INDEX_CODES):
            raise RunError(f"{path} has value {raw.max()}; legal: 0..{len(INDEX_CODES) - 1}, the position of a CORINE code")
        table = np.array([self.legend.values.get(code, self.legend.ignore) for code in INDEX_CODES], self.legend.dtype)
        return table[raw]

    def _check_grid(self, stem: Path, grid: Grid, tile: Grid | None) -> None:
        meta = Path(f"{stem}_LCmeta.json")
        transform = read_json(meta).get("geoTransform") if meta.exists() else None
        if isinstance(transform, list) and len(transform) == 6:
            corner, where = (transform[0], transform[3]), meta
        elif tile is not None and tile.epsg == grid.epsg:
            corner, where = (tile.x, tile.y), stem
        else:
            raise RunError(f"{stem}_LCarr.npz: no {meta.name}, tile or entry in tiles.json says on which grid of EPSG:{grid.epsg} it lies; "
                           "--clc none leaves it out")
        if max(abs(corner[0] - grid.x), abs(corner[1] - grid.y)) > 1e-3 * grid.resolution_m:
            raise RunError(f"{where}: the land cover has its corner at {corner}, the patch at ({grid.x:g}, {grid.y:g}); --clc none leaves it out")


@dataclass(frozen=True)
class Features:
    """Map features drawn by groups of tags, later groups over earlier ones; a pixel belongs to a shape when its centre lies in it."""

    groups: tuple[Group, ...]

    @property
    def spec(self) -> LabelSpec:
        """Label `osm`; 255 outside the tile whose features were published."""
        classes = {0: BACKGROUND, **{value: group.name for value, group in enumerate(self.groups, start=1)}}
        return LabelSpec(name="osm", kind="classmap", classes=classes, ignore=IGNORE)

    def read(self, path: Path, grid: Grid, tile: Grid | None) -> tuple[np.ndarray, list[str]]:
        """(H, W) class map of one sample, and what was wrong with its features."""
        shapely = need("shapely", "labels")
        geometries, tags = _parse(path)
        geometries, broken = make_valid(geometries)
        out = np.full((grid.size, grid.size), IGNORE, np.uint8)
        _draw_tile(out, grid, tile)
        outside = out == IGNORE
        margin_m = max(max(group.buffer_m) for group in self.groups)
        dimensions = shapely.get_dimensions(geometries)
        for value, group in enumerate(self.groups, start=1):
            for dimension in range(len(SHAPES)):
                rows = [row for row in np.flatnonzero(dimensions == dimension) if group.takes(tags[row], dimension)]
                for box in boxes(grid, MERCATOR, margin_m=margin_m) if rows else ():
                    # Widened on the patch's own grid: a metre of Web Mercator is half a metre at 60 degrees north.
                    shapes = widen(to_grid(geometries[rows], box, MERCATOR, grid), group.buffer_m[dimension])
                    burn(out, shapes, np.full(len(shapes), value), grid)
        out[outside] = IGNORE
        return out, [f"{path.name}: {int(broken.sum())} invalid shapes repaired"] if broken.any() else []


def land_cover(level: str) -> LandCover:
    """Label of a CORINE level. UsageError for one that is not legal."""
    found = legend(level)
    if found is None:
        raise UsageError(f"--clc {level}: {nearest(level, [*LEVELS, 'none'])}")
    return LandCover(found)


def features(groups: str) -> Features:
    """Label of the default tag groups, or of those in a YAML file."""
    need("shapely", "labels")
    return Features(default_groups() if groups == "default" else read_groups(Path(groups), "osm"))


def _draw_tile(out: np.ndarray, grid: Grid, tile: Grid | None) -> None:
    """Pixels of the tile become 0; where no tile is recorded the features are taken to cover the patch."""
    if tile is None or tile == grid:
        out[:] = 0
        return
    shapely, side = need("shapely", "labels"), tile.size * tile.resolution_m
    area = np.array([shapely.box(tile.x, tile.y - side, tile.x + side, tile.y)])
    for box in boxes(grid, f"EPSG:{tile.epsg}"):
        burn(out, to_grid(area, box, f"EPSG:{tile.epsg}", grid), np.zeros(1, np.int64), grid)


def _parse(path: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """(shapely geometries in Web Mercator, tags of each). The file is called GeoJSON, but its geometries are hex text.

    RunError naming file and feature when one is no WKB, or states another CRS.
    """
    shapely = need("shapely", "labels")
    listed = read_json(path, max_bytes=MAX_FEATURES).get("features")
    if not isinstance(listed, list) or not all(isinstance(feature, dict) for feature in listed):
        raise RunError(f"{path} has no list of features")
    geometries = np.empty(len(listed), object)
    for number, feature in enumerate(listed):
        text = feature.get("geometry")
        try:
            geometries[number] = shapely.from_wkb(text if isinstance(text, str) else repr(text)[:60])
        except (shapely.GEOSException, ValueError, TypeError) as error:
            raise RunError(f"{path} feature {number}: geometry {str(text)[:40]!r} is no hex WKB ({error})") from error
    if other := [srid for srid in np.unique(shapely.get_srid(geometries)).tolist() if srid not in MERCATOR_SRIDS]:
        raise RunError(f"{path}: geometries in SRID {other[0]}; legal: {MERCATOR}")
    if not np.isfinite(shapely.get_coordinates(geometries)).all():
        raise RunError(f"{path}: a geometry has a coordinate that is not a number")
    return geometries, [_tags(feature.get("properties")) for feature in listed]


def _tags(properties: Any) -> dict[str, str]:
    """Columns of osm2pgsql, and what its column `tags` holds beside them: a JSON object, or text "key"=>"value"."""
    if not isinstance(properties, Mapping):
        return {}
    more = properties.get("tags")
    pairs: Sequence[tuple[Any, Any]] = list(more.items()) if isinstance(more, Mapping) else _HSTORE.findall(more) if isinstance(more, str) else []
    return {str(key): str(value) for key, value in (*pairs, *properties.items()) if value is not None and value != "" and key != "tags"}
