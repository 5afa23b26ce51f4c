"""Lists of points, such as mines, as labels of whole patches: is one there, how many, of which classes."""

import csv
import math
import re
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio.warp
from rasterio.crs import CRS

from dsengine.corpus.build.labellers._base import Drawn, Labeller, Options
from dsengine.corpus.build.labellers._burn import Box, boxes
from dsengine.corpus.build.labellers._layers import Layer, check_crs, distinct, near, one_column, open_layer
from dsengine.corpus.build.labellers._shapes import class_key
from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import RunError, UsageError, nearest

OPTIONS = {
    "as": "class (default): 0 or 1, is there a point; count: how many, up to `cap`; multilabel: which classes of `column` are there",
    "column": "column that holds the class of a point, for as=multilabel",
    "cap": "largest count, which stands for it and all above (default: 9)",
    "layer": "layer of the file, where it has several",
    "crs": "CRS of the points (default: of the file; EPSG:4326 for CSV)",
    "x": "CSV column of longitude or easting (default: lon, longitude or x)",
    "y": "CSV column of latitude or northing (default: lat, latitude or y)",
}
_X, _Y = ("lon", "longitude", "x"), ("lat", "latitude", "y")
MAX_BYTES = 2**28  # of a CSV file, which is read whole


class Table(NamedTuple):
    """Points of a CSV file."""

    path: Path
    crs: str
    x: str  # column names
    y: str
    column: str | None


@dataclass(frozen=True, kw_only=True)
class PointLabeller(Labeller):
    """A point belongs to the patch whose area holds it; left and upper edges are inside, right and lower ones are the neighbour's."""

    spec: LabelSpec
    source: Layer | Table
    column: str | None
    how: str  # an `as` option
    cap: int

    def draw(self, grid: Grid) -> Drawn:
        found = [key for box in boxes(grid, self.source.crs) for key in self._inside(box, grid)]
        if self.how == "multilabel":
            present = set(found)
            return Drawn(np.array([name in present for name in self.spec.classes.values()], self.spec.dtype))
        return Drawn(np.asarray(min(len(found), self.cap), self.spec.dtype))

    def _inside(self, box: Box, grid: Grid) -> list[str]:
        """Classes of the points on the grid ("" without a column)."""
        x, y, keys = _near(self.source, box, self.column)
        if len(x) == 0:
            return []
        x, y = map(np.asarray, rasterio.warp.transform(CRS.from_user_input(self.source.crs), CRS.from_epsg(grid.epsg), x, y))
        side = grid.size * grid.resolution_m
        inside = (grid.x <= x) & (x < grid.x + side) & (grid.y - side < y) & (y <= grid.y)
        return [key for key, hit in zip(keys, inside, strict=True) if hit]


def labeller(name: str, path: Path, options: Mapping[str, str]) -> Labeller:
    """Errors name columns and what is legal."""
    given = Options(name, options)
    how = given.choice("as", ("class", "count", "multilabel"))
    column = given.text("column")
    if (column is not None) != (how == "multilabel"):
        raise UsageError(f"--label {name}: as={how} {'needs' if column is None else 'takes no'} column=NAME")
    if "cap" in options and how != "count":
        raise UsageError(f"--label {name}: cap= is for as=count")
    cap = given.number("cap", 9 if how == "count" else 1, low=1, whole=True)
    if cap > 255:
        raise UsageError(f"--label {name}: cap={cap}: legal: 1 to 255")
    source = _table(path, given) if path.suffix.lower() == ".csv" else _layer(path, given)
    return PointLabeller(spec=_spec(name, how, cap, source, column), source=source, column=column, how=how, cap=cap)


def _spec(name: str, how: str, cap: int, source: Layer | Table, column: str | None) -> LabelSpec:
    if how == "class":
        return LabelSpec(name=name, kind="class", classes={0: "no point", 1: "point"})
    if how == "count":
        counts = {value: f"{value} points" for value in range(cap)}
        return LabelSpec(name=name, kind="class", classes={**counts, cap: f"{cap} points or more"})
    values = distinct(source, column) if isinstance(source, Layer) else sorted(set(_rows(source)[1]) - {""})
    if not values:
        raise UsageError(f"--label {name}: column {column} of {source.path} is empty")
    return LabelSpec(name=name, kind="multilabel", classes={k: class_key(value) for k, value in enumerate(values)})


def _layer(path: Path, given: Options) -> Layer:
    if misplaced := [key for key in ("x", "y") if key in given.given]:
        raise UsageError(f"--label {given.label}: {misplaced[0]}= is for CSV; {path} has geometries")
    layer = open_layer(path, label=given.label, layer=given.text("layer"), crs=given.text("crs"))
    if not re.search(r"\b(Multi)?Point\b", layer.geometry):
        raise UsageError(f"--label {given.label}: {path} layer {layer.name} holds {layer.geometry}; legal: points, or kind vector")
    if (column := given.text("column")) is not None:
        one_column(layer, column, label=given.label)
    return layer


def _table(path: Path, given: Options) -> Table:
    if given.text("layer"):
        raise UsageError(f"--label {given.label}: layer= is not for CSV")
    if not path.is_file():
        raise UsageError(f"--label {given.label}: {path} is no local file")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"--label {given.label}: {path} has more than {MAX_BYTES} bytes; convert it to GeoPackage, "
                         "which is read near each patch only")
    header = next(_lines(path), [])
    crs = check_crs(given.text("crs") or "EPSG:4326", label=given.label, path=path)
    x, y = (_axis(header, given.text(key), usual, key=key, path=path, label=given.label) for key, usual in (("x", _X), ("y", _Y)))
    column = given.text("column")
    if column is not None and column not in header:
        raise UsageError(f"--label {given.label}: {path} has no column {column}: {nearest(column, header)}")
    table = Table(path, crs, x, y, column)
    try:
        _rows(table)
    except RunError as error:
        raise UsageError(f"--label {given.label}: {error}") from error
    return table


def _axis(header: list[str], named: str | None, usual: tuple[str, ...], *, key: str, path: Path, label: str) -> str:
    found = [column for column in header if column == named or (named is None and column.lower() in usual)]
    if len(found) != 1:
        raise UsageError(f"--label {label}: {path}: name the column with {key}=, legal: {', '.join(header) or '(the file is empty)'}")
    return found[0]


def _lines(path: Path) -> Iterator[list[str]]:
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        yield from csv.reader(file)


@lru_cache(maxsize=4)  # a plan is unpickled for each shard, and the file must not be read again for each
def _rows(table: Table) -> tuple[np.ndarray, list[str]]:
    """Coordinates (n, 2) and classes."""
    lines = _lines(table.path)
    header = next(lines)
    x, y = header.index(table.x), header.index(table.y)
    column = None if table.column is None else header.index(table.column)
    places, keys = array("d"), []
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        try:
            place = float(line[x]), float(line[y])
            if not all(map(math.isfinite, place)):
                raise ValueError("not a place")
            keys.append("" if column is None else sys.intern(line[column].strip()))
            places.extend(place)
        except (ValueError, IndexError):
            raise RunError(f"{table.path} line {number}: {','.join(line)[:80]}: columns {table.x} and {table.y} must be numbers") from None
    return np.frombuffer(places, np.float64).reshape(-1, 2), keys


def _near(source: Layer | Table, box: Box, column: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """x, y and classes of the points in `box`."""
    if isinstance(source, Table):
        places, keys = _rows(source)
        rows = np.flatnonzero((places >= box[:2]).all(axis=1) & (places <= box[2:]).all(axis=1))
        return places[rows, 0], places[rows, 1], [keys[row] for row in rows]
    shapely = need("shapely", "labels")
    features = near(source, box, () if column is None else (column,))
    places, owners = shapely.get_coordinates(features.geometries, return_index=True)
    keys = [""] * len(owners) if column is None else [class_key(value) for value in features.columns[column][owners]]
    return places[:, 0], places[:, 1], keys
