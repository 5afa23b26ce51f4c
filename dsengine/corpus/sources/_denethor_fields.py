"""Crop fields of a tile: polygons brought to the grid of the images, their pixels, and the parts that whole fields go to."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.eopatch_pickle import Box
from dsengine.corpus.sources._planet import CROPS
from dsengine.errors import UsageError

MIN_AREA_M2 = 1000.0  # fields of this area and less are left out; DENETHOR's readme says km2, its readers mean m2
MAX_BYTES = 1 << 30
SITE = "denethor"


class Fields(NamedTuple):
    """Fields that are kept, in the order of the file."""

    ids: np.ndarray  # (F,) int64 fid
    crops: np.ndarray  # (F,) uint8
    shapes: list[dict[str, Any]]  # GeoJSON geometries in the CRS of the images
    left_out: int


def read(path: Path, epsg: int) -> Fields:
    """Fields of a labels.geojson, reprojected. UsageError when it is not one."""
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_geom

    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path}: {path.stat().st_size} bytes; legal: at most {MAX_BYTES}")
    try:
        content = json.loads(path.read_bytes())
        name = content.get("crs", {}).get("properties", {}).get("name", "OGC:CRS84")  # without one, GeoJSON is in degrees
        features = [(int(f["properties"]["fid"]), int(f["properties"]["crop_id"]), f["geometry"]) for f in content["features"]]
        shapes = transform_geom(CRS.from_user_input(name), CRS.from_epsg(epsg), [geometry for *_, geometry in features if geometry])
        keep = [i for i, shape in enumerate(shapes) if MIN_AREA_M2 < area(shape) < np.inf]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, RasterioError) as error:
        raise UsageError(f"{path} is not a GeoJSON of fields with fid and crop_id: {type(error).__name__} {error}") from error
    known = [(fid, crop) for fid, crop, geometry in features if geometry]
    if strange := sorted({crop for _, crop in known} - set(CROPS)):
        raise UsageError(f"{path}: crop_id {', '.join(map(str, strange))}; legal: {', '.join(f'{k} {v}' for k, v in CROPS.items())}")
    ids = np.array([known[i][0] for i in keep], np.int64)
    if len(np.unique(ids)) != len(ids):
        raise UsageError(f"{path}: a fid is there twice; legal: one feature a field")
    if not keep:
        raise UsageError(f"{path}: no field larger than {MIN_AREA_M2:g} m2")
    return Fields(ids, np.array([known[i][1] for i in keep], np.uint8), [shapes[i] for i in keep], len(features) - len(keep))


def area(geometry: dict[str, Any]) -> float:
    """Square units of a Polygon or MultiPolygon; holes count off. 0 for anything else."""
    if geometry["type"] == "MultiPolygon":
        return sum(area({"type": "Polygon", "coordinates": rings}) for rings in geometry["coordinates"])
    if geometry["type"] != "Polygon":
        return 0.0
    outer, *holes = (_ring(np.asarray(ring, np.float64)[:, :2]) for ring in geometry["coordinates"])
    return outer - sum(holes)


def raster(fields: Fields, bounds: Box, shape: tuple[int, int], *, all_touched: bool) -> np.ndarray:
    """(H, W) int32 position of the field of each pixel, -1 for none; where fields overlap, the later one."""
    from rasterio.features import rasterize
    from rasterio.transform import from_bounds

    transform = from_bounds(bounds.min_x, bounds.min_y, bounds.max_x, bounds.max_y, shape[1], shape[0])
    numbered = ((geometry, position + 1) for position, geometry in enumerate(fields.shapes))  # a fid may be 0, which is the background
    return rasterize(numbered, out_shape=shape, transform=transform, all_touched=all_touched, dtype="int32") - 1


def parts(fields: Fields, *, tile: str, seed: int) -> np.ndarray:
    """(F,) part of each field, drawn crop by crop. Train tile: 0 pretraining 70 %, 1 train 21 %, 2 val 9 %. Test tile: 1 train 70 %, 2 val 30 %."""
    part = np.zeros(len(fields.ids), np.uint8)
    for crop in np.unique(fields.crops):
        members = np.flatnonzero(fields.crops == crop)
        # Sorted by fid first, so that the order of the file does not matter.
        members = members[np.argsort(fields.ids[members], kind="stable")]
        members = members[np.argsort(draws(len(members), seed=seed, site=f"fields {tile} {crop}"), kind="stable")]
        pretraining = len(members) * 7 // 10 if tile == "train" else 0
        train = (len(members) - pretraining) * 7 // 10
        part[members[pretraining:pretraining + train]] = 1
        part[members[pretraining + train:]] = 2
    return part


def draws(count: int, *, seed: int, site: str) -> np.ndarray:
    """(count,) uint64 that depend on seed and site alone."""
    key = hashlib.blake2b(f"{SITE} {seed} {site}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)  # raw words, which no numpy version changes


def choose(pool: np.ndarray, count: int, *, seed: int, site: str, replace: bool = False) -> np.ndarray:
    """`count` values of `pool`, ascending: without replacement, or with it where the pool is too small and `replace` says so."""
    if count <= len(pool):
        keys = draws(len(pool), seed=seed, site=site)
        return np.sort(pool[np.argpartition(keys, count - 1)[:count]])
    if not replace or not len(pool):
        raise UsageError(f"{count} pixels asked for, {len(pool)} are there ({site}); legal: 1 to {len(pool)}")
    positions = (draws(count, seed=seed, site=site) >> np.uint64(11)).astype(np.float64) * 2.0**-53 * len(pool)
    return np.sort(pool[positions.astype(np.int64)])


def _ring(points: np.ndarray) -> float:
    """Area within a ring, whichever way it runs."""
    x, y = points.T - points.T[:, :1]  # near the origin the products keep their digits
    return abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2.0
