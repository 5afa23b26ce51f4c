"""Any raster map of classes, drawn as a class map: one file, or a pattern of tiles."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dsengine.corpus.build.labellers._base import Labeller, Options, fitting_dtype, unused_value
from dsengine.corpus.build.labellers._rasters import RasterLabeller, Tile, colours, every_value, open_tiles
from dsengine.corpus.build.labellers._tables import find_table
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import UsageError

OPTIONS = {
    "classes": "table of values and names, .csv or .yaml, or a table of the package (default: the one called NAME, else every value is a class)",
    "band": "band that holds the classes (default: 1)",
    "nodata": "value without data (default: declared by the file)",
    "ignore": "label value of pixels without data or outside the map (default: that of the table, else one that no class has)",
    "crs": "CRS of the file, where it names none or a wrong one",
    "others": "error (default) or ignore: values that are not in the table",
}


def labeller(name: str, path: Path, options: Mapping[str, str]) -> Labeller:
    """Values are kept as they are."""
    given = Options(name, options)
    tiles = open_tiles(path, label=name, crs=given.text("crs"), band=given.number("band", 1, low=1, whole=True),
                       nodata=given.number("nodata", None, low=-2**31))
    table = find_table(given.text("classes"), name)
    classes, ignore = table or (_found(tiles, name), None)
    ignore = given.number("ignore", unused_value(classes) if ignore is None else ignore, low=-32768, whole=True)
    spec = LabelSpec(name=name, kind="classmap", classes=classes, ignore=ignore, dtype=fitting_dtype([*classes, ignore], label=name))
    return RasterLabeller(spec=spec, tiles=tiles, lookup={value: value for value in (*classes, ignore)},
                          others_ignored=given.choice("others", ("error", "ignore")) == "ignore")


def _found(tiles: Sequence[Tile], name: str) -> dict[int, str]:
    painted = {value: colour for tile in tiles for value, colour in colours(tile).items()}
    values = every_value(tiles)
    values = painted if values is None else values  # too large to read through
    if not values:
        raise UsageError(f"--label {name}: which values {tiles[0].path} holds is not known; give classes=FILE with lines of VALUE,NAME")
    return {value: f"class {value} {painted.get(value, '')}".strip() for value in sorted(values)}
