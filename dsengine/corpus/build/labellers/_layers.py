"""Layers of vector files, read through GDAL: which drivers may open a file, what a layer holds, and its features near a place.

Formats with a spatial index are asked for a box at a time, so that a continent is never in memory; the others are read once a process.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.optional import need
from dsengine.errors import RunError, UsageError, nearest

# suffix -> (GDAL driver, first bytes of such a file). Other drivers, such as VRT, may open further files or addresses by name.
FORMATS = {".gpkg": ("GPKG", b"SQLite format 3\0"), ".geojson": ("GeoJSON", b"{"), ".json": ("GeoJSON", b"{"), ".gdb": ("OpenFileGDB", b""),
           ".shp": ("ESRI Shapefile", b"\0\0\x27\x0a"), ".fgb": ("FlatGeobuf", b"fgb")}
MAX_IN_MEMORY = 2**30  # bytes of a file without a spatial index


class Layer(NamedTuple):
    """One layer of a vector file."""

    path: Path
    name: str
    crs: str  # anything that rasterio.crs.CRS.from_user_input takes
    columns: tuple[str, ...]
    geometry: str  # type as GDAL names it
    indexed: bool  # a box is found without reading everything
    bounds: tuple[float, float, float, float]  # of all features, in the layer's CRS


class Features(NamedTuple):
    """Features of a layer by ascending feature id, all (n,)."""

    geometries: np.ndarray  # shapely, in the layer's CRS, never None
    columns: dict[str, np.ndarray]
    ids: np.ndarray


def open_layer(path: Path, *, label: str, layer: str | None = None, crs: str | None = None) -> Layer:
    """What `path` holds; UsageError naming what is legal. `layer` may be left out where one layer has geometries; `crs` overrules the file."""
    pyogrio = need("pyogrio", "labels")
    name = _choose(layer_names(path, label=label), layer, path=path, label=label)
    driver = _driver(path, label)
    try:
        info = pyogrio.read_info(str(path), layer=name, force_total_bounds=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise UsageError(f"--label {label}: {path} layer {name} cannot be opened: {error}") from error
    if info["driver"] != driver:
        raise UsageError(f"--label {label}: {path} is in truth a file of driver {info['driver']}; legal for this name: {driver}")
    if not (crs or info["crs"]):
        raise UsageError(f"--label {label}: {path} layer {name} has no CRS; give it with crs=EPSG:NUMBER")
    indexed = bool(info["capabilities"]["fast_spatial_filter"])
    if not indexed and path.stat().st_size > MAX_IN_MEMORY:
        raise UsageError(f"--label {label}: {path} has no spatial index and {path.stat().st_size} bytes, more than {MAX_IN_MEMORY}; "
                         "convert it to GeoPackage or FlatGeobuf, for example with ogr2ogr")
    if info["total_bounds"] is None or not np.isfinite(info["total_bounds"]).all():
        raise UsageError(f"--label {label}: {path} layer {name} has no features")
    return Layer(path, name, check_crs(crs or info["crs"], label=label, path=path), tuple(info["fields"]), str(info["geometry_type"]), indexed,
                 tuple(info["total_bounds"]))


def layer_names(path: Path, *, label: str) -> list[str]:
    """Layers of `path` that have geometries; UsageError when it is not a local vector file of a legal format."""
    pyogrio = need("pyogrio", "labels")
    _driver(path, label)
    try:
        return [str(name) for name, geometry in pyogrio.list_layers(str(path)) if geometry is not None]
    except pyogrio.errors.DataSourceError as error:
        raise UsageError(f"--label {label}: {path} cannot be opened: {error}") from error


def check_crs(text: str, *, label: str, path: Path) -> str:
    """`text` if it is a CRS, else UsageError."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        CRS.from_user_input(text)
    except CRSError as error:
        raise UsageError(f"--label {label}: {path}: crs={text} is not a CRS: {error}; legal: EPSG:NUMBER") from error
    return text


def one_column(layer: Layer, name: str, *, label: str) -> str:
    """`name` if the layer has it, else UsageError."""
    if name not in layer.columns:
        raise UsageError(f"--label {label}: {layer.path} layer {layer.name} has no column {name}: {nearest(name, layer.columns)}")
    return name


def may_cover(layer: Layer) -> bool:
    """Can the layer hold polygons, as its type says?"""
    return any(kind in layer.geometry for kind in ("Polygon", "Surface", "Unknown", "GeometryCollection"))


def distinct(layer: Layer, column: str) -> list[Any]:
    """Distinct values of a column, without null, sorted: all str or all int. UsageError for other types."""
    if {'"', "\\"} & {*layer.name, *column}:
        raise UsageError(f"{layer.path} layer {layer.name}: column {column}: names with quotes or backslashes are not legal")
    sql = f'SELECT DISTINCT "{column}" FROM "{layer.name}"'  # within GDAL: a continent has millions of rows
    values = np.unique([value for value in _read(layer, None, sql=sql).columns[column] if _is_value(value)])
    if values.dtype.kind == "f" and (values == values.astype(np.int64)).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "iuU":
        raise UsageError(f"{layer.path} layer {layer.name}: column {column} holds {values.dtype}; legal: text or whole numbers")
    return values.tolist()


def near(layer: Layer, box: tuple[float, float, float, float], columns: tuple[str, ...]) -> Features:
    """Features whose bounding boxes meet `box` (left, bottom, right, top in the layer's CRS)."""
    if layer.indexed:
        return _read(layer, columns, bbox=box)
    everything, tree = _in_memory(layer, columns)
    rows = np.sort(tree.query(need("shapely", "labels").box(*box)))
    return Features(everything.geometries[rows], {name: values[rows] for name, values in everything.columns.items()}, everything.ids[rows])


@lru_cache(maxsize=4)  # a plan is unpickled for each shard, and the file must not be read again for each
def _in_memory(layer: Layer, columns: tuple[str, ...]) -> tuple[Features, Any]:
    features = _read(layer, columns)
    return features, need("shapely", "labels").STRtree(features.geometries)


def _read(layer: Layer, columns: Sequence[str] | None, *, bbox: tuple[float, float, float, float] | None = None, sql: str | None = None) -> Features:
    """Features in `bbox`, or the rows of `sql` without geometries."""
    pyogrio, shapely = need("pyogrio", "labels"), need("shapely", "labels")
    what = {"layer": layer.name, "columns": list(columns)} if sql is None else {"sql": sql}
    try:
        meta, ids, wkb, fields = pyogrio.raw.read(str(layer.path), bbox=bbox, force_2d=True, return_fids=sql is None,
                                                  read_geometry=sql is None, **what)
        geometries = shapely.from_wkb(wkb) if sql is None else None
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError, shapely.errors.ShapelyError) as error:
        raise RunError(f"{layer.path} layer {layer.name}: features cannot be read: {error}") from error
    columns = dict(zip(meta["fields"], fields, strict=True))
    if sql is not None:
        return Features(np.empty(0), columns, np.empty(0))
    # An index answers in an order of its own, but later features are drawn over earlier ones.
    rows = np.argsort(ids, kind="stable")
    rows = rows[~(shapely.is_missing(geometries[rows]) | shapely.is_empty(geometries[rows]))]
    return Features(geometries[rows], {name: values[rows] for name, values in columns.items()}, ids[rows])


def _driver(path: Path, label: str) -> str:
    legal = ", ".join(FORMATS)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--label {label}: {path}: legal: a local vector file ending in {legal}")
    driver, magic = FORMATS[path.suffix.lower()]
    start = path / "a00000001.gdbtable" if driver == "OpenFileGDB" else path
    if not start.is_file():
        raise UsageError(f"--label {label}: {path} is no {'geodatabase folder' if start != path else 'local file'}")
    with open(start, "rb") as file:
        head = file.read(64)
    if driver == "GeoJSON":
        head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(magic):
        raise UsageError(f"--label {label}: {path} is not what its name says ({driver}); legal: {legal}")
    return driver


def _choose(found: list[str], layer: str | None, *, path: Path, label: str) -> str:
    if layer is not None and layer not in found:
        raise UsageError(f"--label {label}: {path} has no layer {layer} with geometries: {nearest(layer, found)}")
    if layer is None and len(found) != 1:
        raise UsageError(f"--label {label}: {path} has {len(found)} layers with geometries; choose with layer=NAME, "
                         f"legal: {', '.join(sorted(found))}")
    return layer if layer is not None else found[0]


def _is_value(value: Any) -> bool:
    return value is not None and value == value
