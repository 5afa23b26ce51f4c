"""Labels of DeepSentinel samples: every CORINE index, and map features against point-in-polygon tests of pixel centres by pyproj and shapely."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import shapely

from dsengine.corpus import Corpus, open_corpus
from dsengine.errors import RunError, UsageError

PLACES = ((7, 9.5, 48.25), (11, 9.75, 47.5))
GROUPS = """
- {name: wood, polygons: {natural: [wood]}}
- {name: road, lines: {highway: true}, line_buffer_m: 12}
- {name: house, polygons: {building: true}}
- {name: mast, points: {man_made: [mast]}, point_buffer_m: 30}
"""


def level_0(index: int) -> int:
    """First digit of the code at an index, from the published legend."""
    return next((digit for digit, last in ((1, 11), (2, 22), (3, 34), (4, 39), (5, 44)) if 1 <= index <= last), 0)


def all_indices() -> np.ndarray:
    """(256, 256) with every index 0..48 in squares of 8 pixels."""
    return np.kron((np.arange(1024) % 49).reshape(32, 32), np.ones((8, 8))).astype(np.uint8)


@pytest.fixture
def labelled(pair: "Tree") -> "Tree":
    for idx, lon, lat in PLACES:
        pair.land_cover(idx, lon, lat, all_indices())
    return pair


@pytest.mark.parametrize(("flags", "expected", "ignored", "num_classes"), [
    ((), [level_0(i) for i in range(49)], 0, 5),
    (("--clc", "index"), [i if i < 48 else 0 for i in range(49)], 0, 47),
    (("--clc", "groups"), [255, *(level_0(i) for i in range(1, 45)), 9, 0, 0, 255], 255, 7)])
def test_every_index_becomes_its_class(labelled: "Tree", tmp_path: Path, flags: tuple[str, ...], expected: list[int], ignored: int,
                                       num_classes: int) -> None:
    corpus = labelled.build(tmp_path / "c", *flags)
    np.testing.assert_array_equal(corpus.labels["corine"][...], np.array(expected)[[all_indices()] * 2])
    attrs = dict(corpus.labels["corine"].attrs)
    assert attrs["ignore"] == ignored and len(attrs["classes"]) == num_classes


def test_levels_by_code_and_no_label_at_all(labelled: "Tree", tmp_path: Path) -> None:
    attrs = labelled.build(tmp_path / "c", "--clc", "3").labels["corine"]
    assert (attrs[0, 0, 8], attrs[0, 0, 8 * 23]) == (111, 311) and attrs.attrs["classes"]["311"] == "broad-leaved forest"
    assert not labelled.build(tmp_path / "d", "--clc", "none").labels
    with pytest.raises(UsageError, match="--clc 4: legal: 0, 1, 2, 3, groups, index, none"):
        labelled.build(tmp_path / "e", "--clc", "4")


def test_an_index_without_a_code_is_named(labelled: "Tree", tmp_path: Path) -> None:
    labelled.edit(11, "LCarr", lambda x: x.__setitem__((0, 0), 49))
    with pytest.raises(UsageError, match=r"11_LC_2018-06-21_9.75_47.5_LCarr.npz has value 49; legal: 0..48"):
        labelled.build(tmp_path / "c")


def test_land_cover_on_another_grid_than_its_patch_is_refused(pair: "Tree", tmp_path: Path) -> None:
    idx, lon, lat = 20, 9.6, 48.5
    for other in PLACES:
        pair.land_cover(*other, all_indices())
    pair.gee(idx, lon, lat, crs_code="EPSG:32632")  # around the point, while land cover was always cut on a tile
    pair.land_cover(idx, lon, lat, all_indices())
    with pytest.raises(UsageError, match=r"20_LC_.*LCarr.npz: no .*LCmeta.json, tile or entry in tiles.json says on which grid"):
        pair.build(tmp_path / "c")
    pair.land_cover(idx, lon, lat, all_indices(), meta={"geoTransform": [500000.0, 10.0, 0.0, 5300000.0, 0.0, -10.0]})
    with pytest.raises(UsageError, match=r"LCmeta.json: the land cover has its corner at \(500000.0, 5300000.0\), the patch at"):
        pair.build(tmp_path / "c")
    assert len(pair.build(tmp_path / "c", "--clc", "none")) == 3


def test_samples_without_land_cover_are_named_or_left_out(labelled: "Tree", tmp_path: Path) -> None:
    next((labelled.folder / "11").glob("*_LCarr.npz")).unlink()
    with pytest.raises(UsageError, match=r"1 of 2 samples of .* lack a file; the first is DEMO_EU_labelled/11/11_[*]_LCarr.npz"):
        labelled.build(tmp_path / "c")
    corpus = labelled.build(tmp_path / "c", "--skip-incomplete")
    assert len(corpus) == 1 and corpus.attributes["made_by"]["left_out"] == {"a file is missing": 1}


class World:
    """A patch's pixel centres, in its UTM zone and in Web Mercator, by pyproj."""

    def __init__(self, corpus: Corpus, row: int) -> None:
        steps = (np.arange(256) + 0.5) * 10
        self.x, self.y = np.meshgrid(corpus.index.x[row] + steps, corpus.index.y[row] - steps)
        self.to_mercator = pyproj.Transformer.from_crs(int(corpus.index.epsg[row]), 3857, always_xy=True)
        self.mx, self.my = self.to_mercator.transform(self.x, self.y)

    def shape(self, pixels: list[tuple[float, float]], kind: type = shapely.Polygon) -> Any:
        """A shape through (column, row) positions, in Web Mercator."""
        points = [self.to_mercator.transform(self.x[0, 0] + 10 * column, self.y[0, 0] - 10 * row) for column, row in pixels]
        return kind(points[0] if kind is shapely.Point else points)


def feature(shape: Any, **tags: Any) -> dict[str, Any]:
    return {"properties": {"osm_id": 1, **tags}, "geometry": shapely.to_wkb(shape, hex=True)}


def drawn(pair: "Tree", tmp_path: Path, features: list[dict[str, Any]], *extra: str) -> np.ndarray:
    (tmp_path / "groups.yaml").write_text(GROUPS)
    pair.features(*PLACES[0], features)
    pair.features(*PLACES[1], [])
    corpus = pair.build(tmp_path / "osm", "--osm", str(tmp_path / "groups.yaml"), *extra)
    assert not corpus.labels["osm"][1].any()
    return corpus.labels["osm"][0]


@pytest.fixture
def world(pair: "Tree", tmp_path: Path) -> World:
    return World(pair.build(tmp_path / "plain"), 0)


def test_polygons_cover_the_pixels_whose_centres_they_hold_in_web_mercator(pair: "Tree", world: World, tmp_path: Path) -> None:
    wood, house = world.shape([(10, 10), (200, 30), (150, 240), (20, 180)]), world.shape([(99.5, 99.5), (129.5, 99.5), (129.5, 124.5), (99.5, 124.5)])
    found = drawn(pair, tmp_path, [feature(house, building="yes"), feature(wood, natural="wood", tags={"leaf_type": "mixed"})])
    expected = np.where(shapely.contains_xy(house, world.mx, world.my), 3, np.where(shapely.contains_xy(wood, world.mx, world.my), 1, 0))
    # Within a centimetre of an edge both answers are right.
    edge = shapely.distance(shapely.points(world.mx, world.my), shapely.union_all([wood.boundary, house.boundary])) < 0.02
    assert edge.mean() < 0.01 and (found[~edge] == expected[~edge]).all() and (found == 1).sum() > 10000 and (found == 3).sum() == 30 * 25


def test_lines_and_points_are_as_wide_as_their_buffers_on_the_ground(pair: "Tree", world: World, tmp_path: Path) -> None:
    line, point = world.shape([(20, 20), (220, 90)], shapely.LineString), world.shape([(60, 200)], shapely.Point)
    found = drawn(pair, tmp_path, [feature(line, highway="track"), feature(point, man_made="mast")])
    back = pyproj.Transformer.from_crs(3857, 32632, always_xy=True)
    ends = [back.transform(*xy) for xy in line.coords]
    centres = shapely.points(world.x, world.y)
    to_line = shapely.distance(centres, shapely.LineString(ends))
    to_point = shapely.distance(centres, shapely.Point(back.transform(point.x, point.y)))
    sure = (np.abs(to_line - 12) > 0.3) & (np.abs(to_point - 30) > 0.3)
    assert (found[sure] == np.where(to_point < 30, 4, np.where(to_line < 12, 2, 0))[sure]).all() and (found == 2).sum() > 400


def test_invalid_polygons_are_repaired_and_reported(pair: "Tree", world: World, tmp_path: Path) -> None:
    bow = world.shape([(50, 50), (150, 150), (150, 50), (50, 150)])
    assert not bow.is_valid
    found = drawn(pair, tmp_path, [feature(bow, natural="wood")])
    assert found[100, 60] == found[100, 140] == 1 and found[60, 100] == found[140, 100] == 0
    assert open_corpus(tmp_path / "osm").attributes["faults"] == ["7_OSMFC_2018-06-21_9.5_48.25.geojson: 1 invalid shapes repaired"]


def test_extended_wkb_and_hstore_tags_are_read_and_degrees_are_refused(pair: "Tree", world: World, tmp_path: Path) -> None:
    square = world.shape([(9.5, 9.5), (49.5, 9.5), (49.5, 49.5), (9.5, 49.5)])
    with_srid = shapely.to_wkb(shapely.set_srid(square, 3857), hex=True, include_srid=True)
    assert (drawn(pair, tmp_path, [{"properties": {"tags": '"natural"=>"wood", "name"=>"x"'}, "geometry": with_srid}]) == 1).sum() == 1600
    in_degrees = shapely.set_srid(shapely.box(9.4, 48.2, 9.6, 48.3), 4326)
    degrees = {"properties": {}, "geometry": shapely.to_wkb(in_degrees, hex=True, include_srid=True)}
    pair.features(*PLACES[0], [degrees])
    with pytest.raises(UsageError, match=r"7_OSMFC_.*geojson: geometries in SRID 4326; legal: EPSG:3857"):
        pair.build(tmp_path / "d", "--osm", "default")


def test_outside_the_tile_whose_features_were_asked_for_nothing_is_known(pair: "Tree", tmp_path: Path) -> None:
    meta = json.loads(next((pair.folder / "7").glob("*_meta.json")).read_text())
    pair.edit_meta(7, x_off=meta["x_off"] + 400)
    found = drawn(pair, tmp_path, [])
    assert (found[:, :216] == 0).all() and (found[:, 216:] == 255).all()


@pytest.mark.parametrize("geometry", ["00", "zz", "0103000000", "", None, 5, {"type": "Point", "coordinates": [0, 0]}, "01030000000100000000FFFF7F"])
def test_geometries_that_are_no_wkb_are_named_with_file_and_number(pair: "Tree", tmp_path: Path, geometry: Any) -> None:
    pair.features(*PLACES[0], [feature(shapely.Point(0, 0)), {"properties": {}, "geometry": geometry}])
    pair.features(*PLACES[1], [])
    with pytest.raises(UsageError, match=r"7_OSMFC_2018-06-21_9.5_48.25.geojson feature 1: geometry .* is no hex WKB"):
        pair.build(tmp_path / "c", "--osm", "default")


@pytest.mark.parametrize("content", ["", "[]", '{"features": 3}', '{"features": [3]}', "[" * 100_000])
def test_features_that_are_no_collection_are_named(pair: "Tree", tmp_path: Path, content: str) -> None:
    pair.features(*PLACES[0], []).write_text(content)
    pair.features(*PLACES[1], [])
    with pytest.raises((UsageError, RunError), match=r"7_OSMFC_2018-06-21_9.5_48.25.geojson"):
        pair.build(tmp_path / "c", "--osm", "default")
