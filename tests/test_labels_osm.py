"""OpenStreetMap labels of Liechtenstein against GDAL's own reader of .osm.pbf, pixel by pixel; groups, order, buffers, refusals."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from dsengine.corpus.build.labellers._base import Labeller
from dsengine.corpus.build.labelling import Request, make_labeller
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.labels import class_table, osm
from dsengine.errors import UsageError

osmium, pyogrio, pyproj, shapely = (pytest.importorskip(name) for name in ("osmium", "pyogrio", "pyproj", "shapely"))
VADUZ = Grid(32632, 538500.0, 5222000.0, 128, 10.0)
COUNTRY = Grid(32632, 533000.0, 5237500.0, 1300, 20.0)


@pytest.fixture(scope="module")
def pbf(sample_data: Path) -> Path:
    return sample_data / "labels/osm/liechtenstein-latest.osm.pbf"


def label(path: Path, **options: str) -> Labeller:
    return make_labeller(Request("osm", "osm", path, options))


def groups(folder: Path, *entries: dict) -> str:
    (folder / "groups.yaml").write_text(yaml.safe_dump(list(entries)))
    return str(folder / "groups.yaml")


def gdal(path: Path, layer: str, key: str, values: tuple[str, ...] = ()) -> np.ndarray:
    """Geometries (EPSG:32632, by pyproj) of GDAL's OSM driver that have tag `key`, one of `values` if there are any."""
    _, _, wkb, (found,) = pyogrio.raw.read(path, layer=layer, columns=[key])
    kept = [value is not None and (not values or value in values) for value in found]
    to_utm = pyproj.Transformer.from_crs(4326, 32632, always_xy=True)
    return shapely.transform(shapely.from_wkb(wkb)[kept], lambda xy: np.stack(to_utm.transform(*xy.T), axis=1))


def centres(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    steps = (np.arange(grid.size) + 0.5) * grid.resolution_m
    return np.meshgrid(grid.x + steps, grid.y - steps)


def inside(shapes: np.ndarray, grid: Grid) -> np.ndarray:
    union = shapely.union_all(shapes)
    shapely.prepare(union)
    return shapely.contains_xy(union, *centres(grid))


def test_buildings_are_the_pixels_whose_centres_lie_in_gdal_s_polygons(pbf: Path, tmp_path: Path) -> None:
    drawer = label(pbf, groups=groups(tmp_path, {"name": "building", "polygons": {"building": True}}))
    expected = inside(gdal(pbf, "multipolygons", "building"), VADUZ)
    got = drawer(VADUZ)
    assert expected.sum() > 300 and ((got == 1) != expected).sum() <= 3
    assert drawer.spec.classes == {0: "other", 1: "building"} and drawer.spec.ignore == 255


def test_the_area_of_each_group_over_the_country_equals_gdal_s(pbf: Path, tmp_path: Path) -> None:
    """Relations with holes and several outer rings are among them: their area would be wrong if rings were filled one by one."""
    for key, values in (("landuse", ("forest",)), ("landuse", ("residential",)), ("natural", ("wood", "water", "scrub"))):
        shapes = shapely.make_valid(gdal(pbf, "multipolygons", key, values))
        got = label(pbf, groups=groups(tmp_path, {"name": "g", "polygons": {key: list(values)}}))(COUNTRY) == 1
        area = shapely.intersection(shapely.union_all(shapes), _extract(pbf)).area
        assert abs(got.sum() * COUNTRY.resolution_m**2 / area - 1) < 0.005, (key, values)


def _extract(path: Path) -> "shapely.Polygon":
    """What the file says it covers, in EPSG:32632."""
    with osmium.io.Reader(str(path)) as reader:
        box = reader.header().box()
    corners = shapely.segmentize(shapely.box(box.bottom_left.lon, box.bottom_left.lat, box.top_right.lon, box.top_right.lat), 0.01)
    to_utm = pyproj.Transformer.from_crs(4326, 32632, always_xy=True)
    return shapely.transform(corners, lambda xy: np.stack(to_utm.transform(*xy.T), axis=1))


def test_the_extract_s_box_is_covered_and_the_rest_is_ignored(pbf: Path) -> None:
    got = label(pbf)(COUNTRY)
    expected = shapely.contains_xy(_extract(pbf), *centres(COUNTRY))
    assert 0.2 < expected.mean() < 0.9 and ((got != 255) != expected).sum() <= 3


@pytest.mark.parametrize("buffer_m", [12.0, 30.0])
def test_lines_are_as_wide_as_their_buffers(pbf: Path, tmp_path: Path, buffer_m: float) -> None:
    values = ("primary", "secondary", "tertiary", "residential")
    got = label(pbf, groups=groups(tmp_path, {"name": "road", "lines": {"highway": list(values)}, "line_buffer_m": buffer_m}))(VADUZ)
    expected = inside(shapely.buffer(gdal(pbf, "lines", "highway", values), buffer_m), VADUZ)
    assert expected.sum() > 500 and ((got == 1) != expected).sum() <= 5


def test_points_are_discs(pbf: Path, tmp_path: Path) -> None:
    """Counted with a handler of pyosmium, which has nothing to do with the reading under test."""
    class Handler(osmium.SimpleHandler):
        places: list = []

        def node(self, node: "osmium.osm.Node") -> None:
            if node.tags.get("highway") == "bus_stop":
                self.places.append((node.location.lon, node.location.lat))

    handler = Handler()
    handler.apply_file(str(pbf))
    x, y = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform(*np.array(handler.places).T)
    got = label(pbf, groups=groups(tmp_path, {"name": "stop", "points": {"highway": ["bus_stop"]}, "point_buffer_m": 45}))(COUNTRY)
    expected = inside(shapely.buffer(shapely.points(x, y), 45, quad_segs=32), COUNTRY)
    assert len(x) > 50 and ((got == 1) != (expected & (got != 255))).mean() < 1e-4


def test_later_groups_are_drawn_over_earlier_ones(pbf: Path, tmp_path: Path) -> None:
    one = {"name": "building", "polygons": {"building": True}}
    two = {"name": "town", "polygons": {"landuse": ["residential"]}}
    alone = [label(pbf, groups=groups(tmp_path, entry))(VADUZ) == 1 for entry in (one, two)]
    both = label(pbf, groups=groups(tmp_path, one, two))(VADUZ)
    np.testing.assert_array_equal(both, np.where(alone[1], 2, np.where(alone[0], 1, 0)))
    swapped = label(pbf, groups=groups(tmp_path, two, one))(VADUZ)
    np.testing.assert_array_equal(swapped, np.where(alone[0], 2, np.where(alone[1], 1, 0)))
    assert (alone[0] & alone[1]).sum() > 100


def test_a_geopackage_made_of_the_extract_gives_the_same_label(pbf: Path, tmp_path: Path) -> None:
    """Through GDAL's conversion: tags in columns of their own and in `other_tags`."""
    path = tmp_path / "osm.gpkg"
    for layer in ("points", "lines", "multipolygons"):
        meta, _, wkb, fields = pyogrio.raw.read(pbf, layer=layer)
        pyogrio.raw.write(path, wkb, fields, list(meta["fields"]), geometry_type=meta["geometry_type"], crs=meta["crs"], layer=layer,
                          append=path.exists())
    own = groups(tmp_path, {"name": "power", "points": {"power": True}, "point_buffer_m": 30, "polygons": {"power": True}},
                 {"name": "rail", "lines": {"railway": ["rail"]}, "line_buffer_m": 20})
    for chosen, grid, classes in (({}, VADUZ, 7), ({"groups": own}, COUNTRY._replace(size=650), 4)):
        got, expected = label(path, **chosen)(grid), label(pbf, **chosen)(grid)
        inside = (got != 255) & (expected != 255)  # bounds of all features here, the file's own box there
        assert len(np.unique(expected)) >= classes and (got != expected)[inside].mean() < 1e-3
    assert (label(path)(VADUZ._replace(x=700000.0)) == 255).all()


def test_the_groups_that_come_with_the_package_have_a_class_table(pbf: Path) -> None:
    spec = label(pbf).spec
    assert class_table("osm") == (spec.classes, spec.ignore) and spec.classes[len(osm.GROUPS)] == "building"
    got = label(pbf, background="nothing mapped")
    assert got.spec.classes[0] == "nothing mapped" and len(np.unique(got(VADUZ))) >= 6


@pytest.mark.parametrize(("text", "message"), [
    ("[]", "a YAML list of 1 to 254 groups"), ("name: road", "a YAML list of 1 to 254 groups"), ("- {}", "group 1: legal: name and some of"),
    ("- name: road", r"group 1 \(road\): names no tag"), ("- {name: road, line: {highway: true}}", r"group 1 \(road\): line: did you mean lines"),
    ("- {name: road, lines: {highway: true}}", r"line_buffer_m=None: lines need a width"),
    ("- {name: road, lines: {highway: true}, line_buffer_m: 5000}", "metres above 0, up to 1000"),
    ("- {name: b, polygons: {building: yard}}", r"polygons: building: 'yard': legal: a list of texts"),
    ("- {name: b, polygons: {building: [yes]}}", r"building: \[True\]: legal: a list of texts"),
    ("- !!python/object/apply:os.system ['true']", "is not plain YAML"),
    ("- &a {name: b, polygons: {building: true}}\n- *a", "aliases are not legal")])
def test_groups_that_make_no_sense_are_named(pbf: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"g.yaml.*{message}"):
        label(pbf, groups=f"{tmp_path}/g.yaml")


def test_files_that_are_no_extract_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.osm").write_text("<osm/>")
    (tmp_path / "a.osm.pbf").write_bytes(b"<osm/>" * 20)
    for name, message in (("a.osm", "legal: .osm.pbf, or a vector file"), ("a.osm.pbf", "is not an .osm.pbf file"), ("b.osm.pbf", "no local file")):
        with pytest.raises(UsageError, match=message):
            label(tmp_path / name)


def test_an_extract_that_is_cut_short_is_named(pbf: Path, tmp_path: Path) -> None:
    (tmp_path / "a.osm.pbf").write_bytes(pbf.read_bytes()[:300_000])
    with pytest.raises(RuntimeError, match="a.osm.pbf cannot be read"):
        label(tmp_path / "a.osm.pbf")(VADUZ)
