"""What the JSON files and tables of DeepSentinel say: where a patch lies, which bands it has, which scenes it was cut from."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rasterio.warp
from rasterio.crs import CRS

from dsengine.corpus.build.optional import need
from dsengine.corpus.build.pairing import canonical_band
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.schema import UNKNOWN_TIME
from dsengine.corpus.sources._patches import nanoseconds
from dsengine.errors import RunError, UsageError

MAX_META, MAX_TILES = 1 << 20, 1 << 30  # bytes of one sample's JSON, and of tiles.json, which has one entry of about 600 bytes a sample
MAX_POINTS = 10_000_000
RESOLUTION_M = 10.0
_EPSG = re.compile(r"EPSG:(326|327)(\d{1,2})")
_STAMP = re.compile(r"(?<!\d)\d{8}T\d{6}(?!\d)")


class Scenes(NamedTuple):
    """Names of the scenes of a patch, empty where unknown, and their times (ns UTC)."""

    s2: str
    s1: str
    time_s2: int
    time_s1: int


def read_json(path: Path, *, max_bytes: int = MAX_META) -> dict[str, Any]:
    """A JSON object. Raises RunError naming the file when it is none or larger than `max_bytes`."""
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise RunError(f"{path} has {size} bytes; legal: at most {max_bytes}")
        parsed = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise RunError(f"{path} holds a JSON {type(parsed).__name__}; legal: an object")
    return parsed


def epsg_of(code: Any, path: Path) -> int:
    """EPSG number of a UTM zone. `EPSG:3265` is zone 5: the codes were once put together without the zero of zones 1 to 9.

    RunError naming the file for anything else: some of the short numbers are other projections, which would be taken without a sound.
    """
    match = _EPSG.fullmatch(code) if isinstance(code, str) else None
    if not match or not 1 <= int(match[2]) <= 60:
        raise RunError(f"{path}: CRS {code!r}; legal: EPSG:326 or EPSG:327 and a UTM zone")
    return int(f"{match[1]}{int(match[2]):02d}")


def gee_grid(meta: Mapping[str, Any], size: int, path: Path) -> Grid:
    """Grid of an Earth Engine patch by its own upper left corner; the tile may be null."""
    if meta.get("patch_size") != size:
        raise RunError(f"{path}: patch_size {meta.get('patch_size')}; the patches have {size} pixels")
    return Grid(epsg_of(meta.get("crs_code"), path), *_corner(meta.get("x_off"), meta.get("y_off"), path), size, RESOLUTION_M)


def tile_grid(tile: Any, size: int, path: Path) -> Grid:
    """Grid of a Descartes Labs tile (a GeoJSON feature), found in `path`."""
    properties = tile.get("properties") if isinstance(tile, dict) else None
    transform = properties.get("geotrans") if isinstance(properties, dict) else None
    if not isinstance(transform, list) or len(transform) != 6 or list(transform[1:3]) + list(transform[4:]) != [RESOLUTION_M, 0, 0, -RESOLUTION_M]:
        raise RunError(f"{path}: geotrans of the tile is {transform}; legal: [x, 10, 0, y, 0, -10]")
    return Grid(epsg_of(properties.get("cs_code"), path), *_corner(transform[0], transform[3], path), size, RESOLUTION_M)


def check_point(grid: Grid, point: tuple[float, float], path: Path) -> None:
    """RunError when the point in the file's name does not lie in the patch: then its zone or corner is wrong."""
    x, y = rasterio.warp.transform("EPSG:4326", CRS.from_epsg(grid.epsg), [point[0]], [point[1]])
    side = grid.size * grid.resolution_m
    right, down = x[0] - grid.x, grid.y - y[0]
    if not (-grid.resolution_m <= right <= side + grid.resolution_m and -grid.resolution_m <= down <= side + grid.resolution_m):
        raise RunError(f"{path}: the point lon {point[0]:g} lat {point[1]:g} of its name lies {right:.0f} m right of and {down:.0f} m below the "
                       f"corner ({grid.x:g}, {grid.y:g}) in EPSG:{grid.epsg}; legal: within the {side:g} m of the patch")


def channels(named: Any, wanted: Sequence[str], path: Path) -> list[int]:
    """Channel of each wanted band in an array whose bands are `named`."""
    names = [canonical_band(name) for name in named] if isinstance(named, list) and all(isinstance(name, str) for name in named) else []
    if len(set(names)) < len(names) or not set(wanted) <= set(names):
        raise RunError(f"{path}: bands {named}; legal: each of {', '.join(wanted)} once")
    return [names.index(band) for band in wanted]


def read_tiles(path: Path, indices: Sequence[int], size: int) -> dict[int, Grid]:
    """Grids of the samples that tiles.json has a tile of; none when there is no such file."""
    if not path.exists():
        return {}
    tiles = read_json(path, max_bytes=MAX_TILES)
    return {idx: tile_grid(tile, size, path) for idx in indices if (tile := tiles.get(str(idx))) is not None}


def scenes(s2: Any, s1: Any, midnight_s2: int) -> Scenes:
    """Scenes by the ids of Earth Engine or of Descartes Labs; without a time in its name, S2 is at midnight of the date in the file's name."""
    s2, s1 = (text if isinstance(text, str) else "" for text in (s2, s1))
    stamps = [match[0] if (match := _STAMP.search(text)) else "" for text in (s2, s1)]
    times = [nanoseconds(stamp) for stamp in stamps]
    return Scenes(s2, s1, midnight_s2 if times[0] == UNKNOWN_TIME else times[0], times[1])


def read_points(path: Path) -> dict[int, tuple[str, str]]:
    """idx -> ids of the S2 and S1 scene, from the table pts/<dataset>.parquet: those of Earth Engine, which have times, else the others."""
    parquet, pyarrow = need("pyarrow.parquet", "series"), need("pyarrow", "series")
    try:
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows > MAX_POINTS:
            raise UsageError(f"--pts {path} has {file.metadata.num_rows} rows; legal: at most {MAX_POINTS}")
        there = [name for name in ("idx", "GEE_S2", "DL_S2", "GEE_S1", "DL_S1") if name in file.schema_arrow.names]
        if "idx" not in there:
            raise UsageError(f"--pts {path} has columns {', '.join(file.schema_arrow.names[:20])}; legal: idx, GEE_S2, GEE_S1, DL_S2, DL_S1")
        table = file.read(columns=there).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"--pts {path} cannot be read as Parquet: {error}") from error
    return {int(idx): (_first(table, ("GEE_S2", "DL_S2"), row), _first(table, ("GEE_S1", "DL_S1"), row)) for row, idx in enumerate(table["idx"])}


def _first(table: Mapping[str, Sequence[Any]], names: Sequence[str], row: int) -> str:
    """The first text that one of these columns has in this row, or none."""
    return next((table[name][row] for name in names if name in table and isinstance(table[name][row], str)), "")


def _corner(x: Any, y: Any, path: Path) -> tuple[float, float]:
    for value in (x, y):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RunError(f"{path}: the upper left corner is ({x}, {y}); legal: metres")
    return float(x), float(y)
