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
        found = list(self._from_layers(grid, margin_m) if self.layers else self._from_pbf(grid, margin_m, out))
        if self.layers:
            out[:] = 0
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
        for box in boxes(grid, WGS84, margin_m=margin_m):
            covered = to_grid(np.array([shapely.box(*extract.box)]), box, WGS84, grid)
            burn(out, covered, np.zeros(1, np.int64), grid)
            for (position, dimension), tree in extract.trees.items():
                rows = np.sort(tree.query(shapely.box(*box)))
                geometries, _ = make_valid(extract.geometries[position, dimension][rows])
                yield position, dimension, geometries, box, WGS84, ()

    def _from_layers(self, grid: Grid, margin_m: float) -> Iterator[_Shapes]:
        shapely, wanted = need("shapely", "labels"), keys(self.groups)
        for layer in self.layers:
            columns = tuple(column for column in layer.columns if column in wanted or column == "other_tags")
            for box in boxes(grid, layer.crs, margin_m=margin_m):
                features = near(layer, box, columns)
                geometries, broken = make_valid(features.geometries)
                faults = tuple(f"{layer.path} layer {layer.name}: invalid shape {fid} repaired" for fid in features.ids[broken].tolist())
                dimensions = shapely.get_dimensions(geometries)
                tags = [_tags({name: values[row] for name, values in features.columns.items()}) for row in range(len(geometries))]
                for position, group in enumerate(self.groups):
                    for dimension in range(len(SHAPES)):
                        rows = [row for row in np.flatnonzero(dimensions == dimension) if group.takes(tags[row], dimension)]
                        yield position, dimension, geometries[rows], box, layer.crs, faults


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


def _tags(row: Mapping[str, object]) -> dict[str, str]:
    """Tags of a feature: its columns, and the text `"key"=>"value",...` of column other_tags."""
    tags = {key: str(value) for key, value in row.items() if key != "other_tags" and value is not None and value != ""}
    for key, value in _HSTORE.findall(str(row.get("other_tags") or "")):
        tags[re.sub(r"\\(.)", r"\1", key)] = re.sub(r"\\(.)", r"\1", value)
    return tags
