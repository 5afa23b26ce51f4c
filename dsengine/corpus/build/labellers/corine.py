"""CORINE Land Cover, polygons of its geodatabase or GeoPackage, or a raster of its codes, in any of the legends of `labels.corine`."""

import re
from collections.abc import Mapping
from pathlib import Path

from dsengine.corpus.build.labellers._base import Labeller, Options
from dsengine.corpus.build.labellers._layers import FORMATS, Layer, may_cover, one_column, open_layer
from dsengine.corpus.build.labellers._shapes import ShapeLabeller
from dsengine.corpus.labels.corine import INDEX_CODES, LEVELS, NODATA_CODES, Legend, legend
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import UsageError

OPTIONS = {
    "level": "0 (default): the five classes; 1, 2, 3: 5, 15, 44 classes by code; groups: first digit of every code; index: 0..47",
    "column": "column that holds the three-digit code (default: found by name, such as Code_18)",
    "layer": "layer of the file, where it has several",
    "crs": "CRS of the file, where it names none or a wrong one",
    "all_touched": "yes: a pixel counts when a polygon touches it; no: when its centre lies in the polygon (default)",
    "values": "of a raster: auto (default), code (111..523) or index (1..48)",
}
_CODE_COLUMN = re.compile(r"(code|clc)(_?(code|\d\d(\d\d)?))?", re.IGNORECASE)


def labeller(name: str, path: Path, options: Mapping[str, str]) -> Labeller:
    """Pixels outside every polygon, and codes that the legend has no class for, are ignored."""
    given = Options(name, options)
    chosen = legend(given.choice("level", LEVELS))
    spec = LabelSpec(name=name, kind="classmap", classes=chosen.classes, ignore=chosen.ignore, dtype=chosen.dtype)
    if path.suffix.lower() not in FORMATS:
        return _raster(spec, path, given, chosen)
    if "values" in options:
        raise UsageError(f"--label {name}: values= is for rasters, {path} holds polygons")
    layer = open_layer(path, label=name, layer=given.text("layer"), crs=given.text("crs"))
    if not may_cover(layer):
        raise UsageError(f"--label {name}: {path} layer {layer.name} holds {layer.geometry}; legal: polygons")
    return ShapeLabeller(spec=spec, layer=layer, column=_code_column(layer, given), values=chosen.values, known=frozenset(INDEX_CODES),
                         fill=chosen.ignore, all_touched=given.flag("all_touched"))


def _code_column(layer: Layer, given: Options) -> str:
    if (named := given.text("column")) is not None:
        return one_column(layer, named, label=given.label)
    found = [column for column in layer.columns if _CODE_COLUMN.fullmatch(column)]
    if len(found) != 1:
        raise UsageError(f"--label {given.label}: {layer.path} layer {layer.name} has {'several code columns' if found else 'no code column'}; "
                         f"name one with column=, legal: {', '.join(found or layer.columns)}")
    return found[0]


def _raster(spec: LabelSpec, path: Path, given: Options, chosen: Legend) -> Labeller:
    from dsengine.corpus.build.labellers._rasters import RasterLabeller, open_tiles, sample_values

    if misplaced := [key for key in ("column", "layer", "all_touched") if key in given.given]:
        raise UsageError(f"--label {given.label}: {misplaced[0]}= is for polygons, {path} is read as a raster")
    tiles = open_tiles(path, label=given.label, crs=given.text("crs"))
    how = given.choice("values", ("auto", "code", "index"))
    if how == "auto":
        # The smallest code of land cover is 111, the largest index 48.
        how = "code" if max(sample_values(tiles), default=0) > len(INDEX_CODES) - 1 else "index"
    raw = {index if how == "index" else int(code): code for index, code in enumerate(INDEX_CODES)}
    lookup = {number: chosen.ignore if code in NODATA_CODES else chosen.values.get(code, chosen.ignore) for number, code in raw.items()}
    return RasterLabeller(spec=spec, tiles=tiles, lookup=lookup)
