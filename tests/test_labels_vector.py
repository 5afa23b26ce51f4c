"""Vector labels: straight lines of another CRS, the date line, far-away shapes, invalid shapes, classes, and files that are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dsengine.corpus.build.labellers._base import Labeller
from dsengine.corpus.build.labelling import Request, make_labeller
from dsengine.corpus.build.plan import Grid
from dsengine.errors import UsageError

pyogrio, pyproj, shapely = (pytest.importorskip(name) for name in ("pyogrio", "pyproj", "shapely"))
UTM = Grid(32632, 500000.0, 5200000.0, 16, 10.0)


def write(path: Path, shapes: list, crs: str | None = "EPSG:32632", driver: str | None = None, **columns: list) -> Path:
    """A vector file of these shapes and columns."""
    geometries = np.array(shapes, object)
    kinds = {shape.geom_type for shape in shapes}
    fields = {name: np.array(values, dtype=object if any(v is None or isinstance(v, str) for v in values) else None)
              for name, values in columns.items()}
    pyogrio.raw.write(path, np.array(shapely.to_wkb(geometries), object), list(fields.values()), list(fields), crs=crs, driver=driver,
                      geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown")
    return path


def label(path: Path, kind: str = "vector", **options: str) -> Labeller:
    return make_labeller(Request("map", kind, path, options))


def square(column: float, row: float, width: float = 1, height: float = 1) -> "shapely.Polygon":
    """A rectangle of UTM pixels, from the upper left corner."""
    return shapely.box(UTM.x + column * 10, UTM.y - (row + height) * 10, UTM.x + (column + width) * 10, UTM.y - row * 10)


def inside(polygon: "shapely.Polygon", epsg: int, grid: Grid) -> np.ndarray:
    """(H, W): does the pixel's centre, moved to `epsg` by pyproj, lie in the polygon?"""
    steps = (np.arange(grid.size) + 0.5) * grid.resolution_m
    x, y = pyproj.Transformer.from_crs(grid.epsg, epsg, always_xy=True).transform(*np.meshgrid(grid.x + steps, grid.y - steps))
    return shapely.contains_xy(polygon, x, y)


@pytest.mark.parametrize("epsg", [4326, 3857])
def test_an_edge_that_is_straight_in_another_crs_stays_on_its_course(tmp_path: Path, epsg: int) -> None:
    """The northern edge runs 8 degrees along a parallel: between its ends, UTM bends it by 8 km, 800 pixels."""
    to_file = pyproj.Transformer.from_crs(4326, epsg, always_xy=True)
    corners = to_file.transform([5, 13, 13, 5], [58, 58, 60.001, 60.001])
    polygon = shapely.Polygon(np.stack(corners, axis=1))
    path = write(tmp_path / "a.gpkg", [polygon], f"EPSG:{epsg}", kind=["x"])
    drawer = label(path)
    x, y = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform([9, 7, 12], [60.001] * 3)
    for east, north in zip(x, y, strict=True):
        for size, pixel in ((128, 10.0), (256, 60.0)):
            grid = Grid(32632, round(east) - size * pixel / 2, round(north) + size * pixel / 2, size, pixel)
            expected = inside(polygon, epsg, grid)
            assert 0.2 < expected.mean() < 0.8
            assert ((drawer(grid) == 1) != expected).sum() <= 2
    ends = shapely.transform(polygon, lambda xy: np.stack(pyproj.Transformer.from_crs(epsg, 32632, always_xy=True).transform(*xy.T), axis=1))
    assert abs(ends.bounds[3] - y[0]) > 5000 or epsg != 4326  # what drawing between the ends alone would do


def test_a_shape_across_the_date_line_is_whole_on_both_sides(tmp_path: Path) -> None:
    halves = [shapely.box(179, -17.5, 180, -16.5), shapely.box(-180, -17.5, -179.9, -16.5)]
    drawer = label(write(tmp_path / "fiji.gpkg", halves, "EPSG:4326", kind=["a", "b"]))
    for epsg, lon in ((32760, 180.0), (32701, -180.0)):
        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, -17)
        got = drawer(Grid(epsg, x - 1280, y + 1280, 128, 20.0))
        assert set(np.unique(got[:, :60])) == {1} and set(np.unique(got[:, 68:])) == {2}, epsg


def test_coasts_of_whole_continents_are_drawn_where_they_lie(sample_data: Path) -> None:
    """Polygons with vertices all over the globe, most of which have no place in the UTM zone."""
    path = sample_data / "labels/naturalearth/ne_50m_land.json"
    _, _, wkb, _ = pyogrio.raw.read(path)
    land = shapely.union_all(shapely.from_wkb(wkb))
    shapely.prepare(land)
    drawer = label(path, column="featurecla", background="sea")
    coast = shapely.get_coordinates(land)
    coast = coast[np.abs(coast[:, 1]) < 75]
    for lon, lat in np.random.default_rng(1).choice(coast, 6):
        epsg = (32600 if lat > 0 else 32700) + int((lon + 180) // 6) + 1
        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
        grid = Grid(epsg, x - 12800, y + 12800, 128, 200.0)
        expected = inside(land, 4326, grid)
        assert 0.02 < expected.mean() < 0.98
        assert ((drawer(grid) == 1) != expected).mean() < 2e-4, (lon, lat)


def test_an_invalid_polygon_is_repaired_reported_and_counts_both_lobes(tmp_path: Path, sample_data: Path) -> None:
    x, y = UTM.x, UTM.y
    bow = shapely.Polygon([(x, y), (x + 80, y - 80), (x + 80, y), (x, y - 80)])
    assert not bow.is_valid
    drawn = label(write(tmp_path / "a.gpkg", [square(10, 10), bow], kind=["ok", "bow"])).draw(UTM)
    assert drawn.values[4, 1] == 1 and drawn.values[4, 6] == 1 and drawn.values[1, 4] == 0  # left and right lobe, not above the crossing
    assert drawn.faults == (f"{tmp_path}/a.gpkg layer a: invalid shape 2 repaired",)
    wide = shapely.Polygon([(x - 9000, y + 9003), (x + 9160, y - 9157), (x + 9160, y + 9003), (x - 9000, y - 9157)])  # crosses itself at the centre
    large = label(write(tmp_path / "b.gpkg", [wide], kind=["bow"]))(UTM)
    np.testing.assert_array_equal(large == 1, inside(shapely.make_valid(wide), 32632, UTM))
    world = label(sample_data / "labels/naturalearth/ne_110m_land.json", column="featurecla")
    _, _, wkb, _ = pyogrio.raw.read(world.layer.path)
    broken = np.flatnonzero(~shapely.is_valid(shapely.from_wkb(wkb)))
    assert len(broken) == 1
    centre = shapely.make_valid(shapely.from_wkb(wkb)[broken[0]]).representative_point()
    epsg = (32600 if centre.y > 0 else 32700) + int((centre.x + 180) // 6) + 1
    place = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(centre.x, centre.y)
    drawn = world.draw(Grid(epsg, place[0] - 80, place[1] + 80, 16, 10.0))
    assert (drawn.values == 1).all() and len(drawn.faults) == 1


def test_text_classes_are_numbered_and_what_lies_in_no_shape_is_ignored_or_background(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [square(0, 0), square(1, 0), square(2, 0), square(3, 0)],
                 crop=["wheat", "barley", None, "wheat"], area=[1, 2, 3, 4])
    plain = label(path, column="crop")
    assert plain.spec.classes == {1: "barley", 2: "wheat"} and plain.spec.ignore == 0 and plain(UTM)[0, :5].tolist() == [2, 1, 0, 2, 0]
    with_background = label(path, column="crop", background="no field")
    assert with_background.spec.classes == {0: "no field", 1: "barley", 2: "wheat"} and with_background.spec.ignore is None


def test_numbers_stand_for_themselves(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [square(0, 0), square(1, 0), square(2, 0)], code=[0, 700, 255])
    drawer = label(path)
    assert drawer.spec.classes == {0: "class 0", 255: "class 255", 700: "class 700"} and drawer.spec.dtype == "uint16" and drawer.spec.ignore == 65535
    assert drawer(UTM)[0, :4].tolist() == [0, 700, 255, 65535]
    with pytest.raises(UsageError, match="background=rest: value 0 is already class 0 of column code"):
        label(path, background="rest")


@pytest.mark.parametrize("suffix", [".csv", ".yaml"])
def test_a_table_numbers_the_classes_and_others_are_an_error_or_ignored(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "a.gpkg", [square(0, 0), square(1, 0), square(2, 0)], crop=["wheat", "rye", "hops"])
    table = tmp_path / f"t{suffix}"
    table.write_text("value,name\n7,wheat\n3,rye\n" if suffix == ".csv" else "7: wheat\n3: rye\n")
    with pytest.raises(UsageError, match="layer a: column crop holds hops; legal: wheat, rye"):
        label(path, classes=str(table))
    drawer = label(path, classes=str(table), others="ignore")
    assert drawer.spec.classes == {7: "wheat", 3: "rye"} and drawer(UTM)[0, :4].tolist() == [7, 3, 0, 0]


def test_codes_that_are_no_label_values_are_numbered_or_matched_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [square(0, 0), square(1, 0)], code=[3301010500, 3301010101])
    drawer = label(path)
    assert drawer.spec.classes == {1: "class 3301010101", 2: "class 3301010500"} and drawer(UTM)[0, :3].tolist() == [2, 1, 0]
    (tmp_path / "t.csv").write_text("value,name\n40,3301010101\n50,3301010500\n")
    assert label(path, classes=f"{tmp_path}/t.csv")(UTM)[0, :3].tolist() == [50, 40, 0]


def test_later_features_are_drawn_over_earlier_ones_in_every_format(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [square(*rng.uniform(-2, 15, 2), *rng.uniform(1, 6, 2)) for _ in range(60)]
    kinds = rng.integers(1, 200, 60).astype(np.int32).tolist()
    expected = np.zeros((16, 16), int)
    for shape, kind in zip(shapes, kinds, strict=True):
        expected[inside(shape, 32632, UTM)] = kind
    for name, driver in (("a.gpkg", None), ("a.fgb", None), ("a.shp", None), ("a.geojson", None), ("a.gdb", "OpenFileGDB")):
        path = write(tmp_path / name, shapes, driver=driver, kind=kinds)
        got = label(path, crs="EPSG:32632", column="kind")(UTM)
        if name == "a.fgb":  # its index is what orders the features
            got, expected_here = got > 0, expected > 0
        else:
            expected_here = expected
        np.testing.assert_array_equal(got, expected_here, err_msg=name)


def test_lines_and_points_need_a_buffer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [shapely.LineString([(UTM.x, UTM.y - 85), (UTM.x + 160, UTM.y - 85)])], kind=["dike"])
    with pytest.raises(UsageError, match="layer a holds LineString, which covers no pixel; give buffer=METRES"):
        label(path)
    got = label(path, buffer="21")(UTM)
    assert (got == 1).all(axis=1).nonzero()[0].tolist() == [6, 7, 8, 9, 10] and got.any(axis=1).sum() == 5


def test_a_format_or_place_that_is_not_wanted_is_never_opened(tmp_path: Path) -> None:
    real = write(tmp_path / "a.gpkg", [square(0, 0)], kind=["x"])
    vrt = "<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>%s</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>" % real
    (tmp_path / "a.vrt").write_text(vrt)
    for name in ("b.gpkg", "b.json", "b.shp", "b.fgb"):
        (tmp_path / name).write_text(vrt)
    (tmp_path / "b.gdb").mkdir()
    shutil.copy(real, tmp_path / "c.geojson")
    for name, message in (("a.vrt", "a.vrt: legal: a local vector file ending in .gpkg"), ("b.gpkg", "not what its name says"),
                          ("b.json", "not what"), ("b.shp", "not what"), ("b.fgb", "not what"),
                          ("b.gdb", "no geodatabase folder"), ("c.geojson", "not what its name says")):
        with pytest.raises(UsageError, match=message):
            label(tmp_path / name)
    for path in ("/vsicurl/http://127.0.0.1:9/a.gpkg", "http:/127.0.0.1:9/a.gpkg", "/vsizip/a.zip/a.gpkg"):
        with pytest.raises(UsageError, match="no local file"):
            label(Path(path))
    (tmp_path / "esri.json").write_text('{"displayFieldName": "a", "geometryType": "esriGeometryPoint", "spatialReference": {"wkid": 4326}, '
                                        '"fields": [{"name": "a", "type": "esriFieldTypeString"}], "features": []}')
    with pytest.raises(UsageError, match="in truth a file of driver ESRIJSON; legal for this name: GeoJSON"):
        label(tmp_path / "esri.json")


def test_a_file_without_crs_or_class_is_named(tmp_path: Path) -> None:
    bare = write(tmp_path / "a.gpkg", [square(0, 0)], None, one=["x"], two=["y"])
    with pytest.raises(UsageError, match="a.gpkg layer a has no CRS; give it with crs=EPSG:NUMBER"):
        label(bare)
    with pytest.raises(UsageError, match="crs=EPSG:99999999 is not a CRS"):
        label(bare, crs="EPSG:99999999")
    with pytest.raises(UsageError, match="layer a has columns one, two; name the class with column=NAME"):
        label(bare, crs="EPSG:32632")
    with pytest.raises(UsageError, match="kind vector has no option colum: did you mean column"):
        label(bare, colum="one")
    assert label(bare, crs="EPSG:32632", column="one")(UTM)[0, 0] == 1


def test_a_file_that_is_damaged_behind_its_first_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 8)
    with pytest.raises(UsageError, match="a.gpkg cannot be opened"):
        label(path)
