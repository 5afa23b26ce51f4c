"""OpenStreetMap by groups of tags, from an .osm.pbf extract or a vector file made of one, drawn as a class map."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsengine.corpus.build.labellers._base import Drawn, Labeller, Options
from dsengine.corpus.build.labellers._burn import Box, boxes, burn, make_valid, to_grid, widen
from dsengine.corpus.build.labellers._groups import SHAPES, Group, default_groups, keys, read_groups
from dsengine.corpus.build.labellers._layers import FORMATS, Layer, layer_names, near, open_layer
from dsengine.corpus.build.labellers._pbf import check_pbf, read_extract
from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.labels.osm import BACKGROUND, IGNORE
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import UsageError

OPTIONS = {
    "groups": "YAML list of tag groups (default: those of labels/osm.py)",
    "background": f"name of the class of pixels in no group (default: {BACKGROUND})",
    "all_touched": "yes: a pixel counts when a shape touches it; no: when its centre lies in the shape (default)",
}
WGS84 = "EPSG:4326"
_HSTORE = re.compile(r'"((?:[^"\\]|\\.)*)"=>"((?:[^"\\]|\\.)*)"')
_Shapes = tuple[int, int, np.ndarray, Box, str, tuple[str, ...]]  # group, dimension, geometries near a box, that box, its CRS, faults


@dataclass(frozen=True, kw_only=True)
class OsmLabeller(Labeller):
    """Draws group after group, later over earlier; within a group polygons, lines and points are alike."""

    spec: LabelSpec
    path: Path
    groups: tuple[Group, ...]
    layers: Sequence[Layer]  # of a vector file; empty for .osm.pbf
    all_touched: bool

    def draw(self, grid: Grid) -> Drawn:
        out = np.full((grid.size, grid.size), IGNORE, self.spec.dtype)
        margin_m = max(max(group.buffer_m) for group in self.groups)
        found = list(self._from_layers(grid, margin_m, out) if self.layers else self._from_pbf(grid, margin_m, out))
        outside = out == IGNORE
        for position, dimension, geometries, box, crs, _ in sorted(found, key=lambda entry: entry[0]):
            shapes = widen(to_grid(geometries, box, crs, grid), self.groups[position].buffer_m[dimension])
            burn(out, shapes, np.full(len(shapes), position + 1), grid, all_touched=self.all_touched)
        out[outside] = IGNORE
        return Drawn(out, tuple(dict.fromkeys(fault for entry in found for fault in entry[-1])))

    def _from_pbf(self, grid: Grid, margin_m: float, out: np.ndarray) -> Iterator[_Shapes]:
        """The shapes; pixels of `out` inside the extract become 0."""
        shapely = need("shapely", "labels")
        extract = read_extract(self.path, self.groups)
        faults = (f"{self.path}: {extract.incomplete} features left out whose nodes are not in the file",) if extract.incomplete else ()
        for box in boxes(grid, WGS84, margin_m=margin_m):
            _cover(out, extract.box, box, WGS84, grid)
            for (position, dimension), tree in extract.trees.items():
                rows = np.sort(tree.query(shapely.box(*box)))
                geometries, _ = make_valid(extract.geometries[position, dimension][rows])
                yield position, dimension, geometries, box, WGS84, faults

    def _from_layers(self, grid: Grid, margin_m: float, out: np.ndarray) -> Iterator[_Shapes]:
        """The shapes; pixels of `out` inside the bounds of any layer become 0."""
        shapely, wanted = need("shapely", "labels"), keys(self.groups)
        for layer in self.layers:
            columns = tuple(column for column in layer.columns if column in wanted or column == "other_tags")
            for box in boxes(grid, layer.crs, margin_m=margin_m):
                _cover(out, layer.bounds, box, layer.crs, grid)
                features = near(layer, box, columns)
                tags = [_tags({name: values[row] for name, values in features.columns.items()}) for row in range(len(features.ids))]
                geometries, broken = make_valid(features.geometries)
                faults = tuple(f"{layer.path} layer {layer.name}: invalid shape {fid} repaired" for fid in features.ids[broken].tolist())
                for dimension, rows, shapes in _by_dimension(geometries, tags):
                    for position, group in enumerate(self.groups):
                        taken = [group.takes(tags[row], dimension) for row in rows]
                        yield position, dimension, shapes[taken], box, layer.crs, faults


def _by_dimension(geometries: np.ndarray, tags: Sequence[Mapping[str, str]]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(dimension, rows, shapes). A closed line is an area too: conversions leave it among the lines where its tags did not tell them."""
    shapely = need("shapely", "labels")
    dimensions = shapely.get_dimensions(geometries)
    closed = (shapely.get_type_id(geometries) == shapely.GeometryType.LINESTRING) & shapely.is_closed(geometries)
    rings = closed & (shapely.get_num_coordinates(geometries) > 3)
    only_area = np.array([one.get("area") == "yes" for one in tags], bool)
    for dimension in range(len(SHAPES)):
        rows = np.flatnonzero((dimensions == dimension) & ~(rings & only_area))
        yield dimension, rows, geometries[rows]
    rows = np.flatnonzero(rings)
    xy, owners = shapely.get_coordinates(geometries[rows], return_index=True)
    yield 2, rows, make_valid(shapely.polygons(shapely.linearrings(xy, indices=owners)))[0] if len(rows) else geometries[rows]


def labeller(name: str, path: Path, options: Mapping[str, str]) -> Labeller:
    """An .osm.pbf file is read at the first patch of each process; a vector file is asked near each patch."""
    given = Options(name, options)
    groups = read_groups(Path(given.text("groups")), name) if given.text("groups") else default_groups()
    need("shapely", "labels")
    layers: list[Layer] = []
    if path.suffix.lower() in FORMATS:
        layers = [open_layer(path, label=name, layer=layer) for layer in layer_names(path, label=name)]
        layers = [layer for layer in layers if {*layer.columns} & {*keys(groups), "other_tags"}]
        if not layers:
            raise UsageError(f"--label {name}: no layer of {path} has a column other_tags or one of the tag keys {', '.join(sorted(keys(groups)))}")
    elif path.name.lower().endswith(".pbf"):
        need("osmium", "labels")
        check_pbf(path, name)
    else:
        raise UsageError(f"--label {name}: {path}: legal: .osm.pbf, or a vector file ending in {', '.join(FORMATS)}")
    classes = {0: given.text("background") or BACKGROUND, **{value: group.name for value, group in enumerate(groups, start=1)}}
    spec = LabelSpec(name=name, kind="classmap", classes=classes, ignore=IGNORE)
    return OsmLabeller(spec=spec, path=path, groups=groups, layers=layers, all_touched=given.flag("all_touched"))


def _cover(out: np.ndarray, covered: Box, box: Box, crs: str, grid: Grid) -> None:
    """Pixels of `out` inside `covered` become 0; both boxes are in `crs`."""
    left, bottom, right, top = covered
    if left < right and bottom < top:
        burn(out, to_grid(np.array([need("shapely", "labels").box(*covered)]), box, crs, grid), np.zeros(1, np.int64), grid)


def _tags(row: Mapping[str, object]) -> dict[str, str]:
    """Tags of a feature: its columns, and the text `"key"=>"value",...` of column other_tags."""
    tags = {key: str(value) for key, value in row.items() if key != "other_tags" and value is not None and value != ""}
    for key, value in _HSTORE.findall(str(row.get("other_tags") or "")):
        tags[re.sub(r"\\(.)", r"\1", key)] = re.sub(r"\\(.)", r"\1", value)
    return tags
