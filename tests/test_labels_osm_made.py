"""OpenStreetMap features made one by one: closed ways, areas, relations with holes, ways whose nodes are missing."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from dsengine.corpus.build.labellers._base import Drawn
from dsengine.corpus.build.labelling import Request, make_labeller
from dsengine.corpus.build.plan import Grid

osmium, pyproj = pytest.importorskip("osmium"), pytest.importorskip("pyproj")
GRID = Grid(32632, 500000.0, 5200000.0, 16, 10.0)
RING = [(2, 2), (12, 2), (12, 12), (2, 12), (2, 2)]  # pixels right of and below the corner
HOLE = [(5, 5), (9, 5), (9, 9), (5, 9), (5, 5)]
LINE = [(-5, 8), (20, 8)]


class Extract:
    """Writes an .osm.pbf of nodes, ways and relations, in the order that the format wants."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.ways: list = []
        self.relations: list = []

    def way(self, corners: list[tuple[float, float]], *, missing: bool = False, **tags: str) -> int:
        """Id of a new way through pixel corners; with `missing` its nodes are not in the file."""
        to_degrees = pyproj.Transformer.from_crs(32632, 4326, always_xy=True)
        places = list(dict.fromkeys(corners))
        ids = {place: len(self.nodes) + 1000 * missing + k + 1 for k, place in enumerate(places)}
        if not missing:
            self.nodes += [(ids[p], to_degrees.transform(GRID.x + 10 * p[0], GRID.y - 10 * p[1])) for p in places]
        self.ways.append((len(self.ways) + 1, [ids[place] for place in corners], tags))
        return len(self.ways)

    def relation(self, outer: int, inner: int, **tags: str) -> None:
        self.relations.append(([("w", outer, "outer"), ("w", inner, "inner")], {"type": "multipolygon", **tags}))

    def write(self, path: Path) -> Path:
        with osmium.SimpleWriter(str(path)) as file:
            for id, place in self.nodes:
                file.add_node(osmium.osm.mutable.Node(id=id, location=place, version=1))
            for id, nodes, tags in self.ways:
                file.add_way(osmium.osm.mutable.Way(id=id, nodes=nodes, tags=tags, version=1))
            for id, (members, tags) in enumerate(self.relations, start=1):
                file.add_relation(osmium.osm.mutable.Relation(id=id, members=members, tags=tags, version=1))
        return path


def draw(path: Path, *entries: dict) -> Drawn:
    (path.parent / "g.yaml").write_text(yaml.safe_dump(list(entries)))
    return make_labeller(Request("osm", "osm", path, {"groups": f"{path.parent}/g.yaml"})).draw(GRID._replace(size=16))


def window(*bounds: int) -> np.ndarray:
    """(16, 16) bool, True inside left, top, right, bottom."""
    found = np.zeros((16, 16), bool)
    left, top, right, bottom = bounds
    found[top:bottom, left:right] = True
    return found


ROADS = {"name": "road", "lines": {"highway": True}, "line_buffer_m": 5.5}
SQUARES = {"name": "square", "polygons": {"highway": True}}
OUTLINE = window(1, 1, 13, 13) & ~window(3, 3, 11, 11)


@pytest.mark.parametrize(("area", "road", "square"), [(None, OUTLINE, window(2, 2, 12, 12)), ("yes", window(0, 0, 0, 0), window(2, 2, 12, 12)),
                                                      ("no", OUTLINE, window(0, 0, 0, 0))])
def test_a_closed_way_is_a_line_an_area_or_both_as_its_tags_say(tmp_path: Path, area: str | None, road: np.ndarray, square: np.ndarray) -> None:
    made = Extract()
    made.way(RING, highway="pedestrian", **({"area": area} if area else {}))
    path = made.write(tmp_path / "a.osm.pbf")
    assert ((draw(path, ROADS).values == 1) & window(2, 2, 12, 12) == road & window(2, 2, 12, 12)).all()
    np.testing.assert_array_equal(draw(path, SQUARES).values == 1, square)


def test_a_relation_has_its_hole_and_a_ring_of_its_own_tags_fills_it(tmp_path: Path) -> None:
    made = Extract()
    made.relation(made.way(RING), made.way(HOLE, natural="water"), landuse="forest")
    path = made.write(tmp_path / "a.osm.pbf")
    got = draw(path, {"name": "forest", "polygons": {"landuse": ["forest"]}}, {"name": "water", "polygons": {"natural": ["water"]}}).values
    np.testing.assert_array_equal(got == 1, window(2, 2, 12, 12) & ~window(5, 5, 9, 9))
    np.testing.assert_array_equal(got == 2, window(5, 5, 9, 9))


def test_a_line_beside_the_patch_reaches_in_by_its_buffer(tmp_path: Path) -> None:
    made = Extract()
    made.way([(-30, -30), (60, 60)], note="widens the extract")
    made.way([(-5, -6), (30, -6)], highway="primary")
    got = draw(made.write(tmp_path / "a.osm.pbf"), {"name": "road", "lines": {"highway": True}, "line_buffer_m": 90},
               {"name": "note", "lines": {"note": True}, "line_buffer_m": 0.1}).values
    assert (got[:3] == 1).mean() > 0.9 and (got[3:] != 1).all()


def test_a_way_whose_nodes_are_missing_is_left_out_and_reported(tmp_path: Path) -> None:
    made = Extract()
    made.way(LINE, highway="primary")
    made.way(LINE, missing=True, highway="primary")
    drawn = draw(made.write(tmp_path / "a.osm.pbf"), ROADS)
    assert drawn.faults == (f"{tmp_path}/a.osm.pbf: 1 features left out whose nodes are not in the file",)


def test_a_value_that_is_not_listed_does_not_count(tmp_path: Path) -> None:
    made = Extract()
    made.way(RING, building="no", landuse="forest")
    path = made.write(tmp_path / "a.osm.pbf")
    assert (draw(path, {"name": "b", "polygons": {"building": ["yes", "house"]}}, {"name": "f", "polygons": {"landuse": True}}).values != 1).all()
    for values, count in ((["no"], 100), (True, 0)):
        got = draw(path, {"name": "f", "polygons": {"landuse": True}}, {"name": "b", "polygons": {"building": values}}).values
        assert (got == 2).sum() == count and (got == 1).sum() == 100 - count
