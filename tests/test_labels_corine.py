"""CORINE labels of Lanjaron (Spain): polygons against point-in-polygon tests at pixel centres, GDAL, and the raster product of the same map."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.transform import from_origin

from dsengine.corpus.build.labelling import Request, make_labeller
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.labels import class_table, corine
from dsengine.errors import UsageError

pyogrio, pyproj, shapely = (pytest.importorskip(name) for name in ("pyogrio", "pyproj", "shapely"))
PLACES = {25830: (455000.0, 4095000.0), 32630: (454003.0, 4097001.0), 32629: (988300.0, 4105000.0), 3035: (3116500.0, 1654500.0)}
GRIDS = [Grid(epsg, x, y, 128, 20.0) for epsg, (x, y) in PLACES.items()]


@pytest.fixture(scope="module")
def corine_files(sample_data: Path) -> Path:
    return sample_data / "labels" / "corine"


@pytest.fixture(scope="module")
def polygons(corine_files: Path) -> tuple[np.ndarray, np.ndarray]:
    """Geometries in EPSG:25830, and codes."""
    _, _, wkb, (codes,) = pyogrio.raw.read(corine_files / "clc.gpkg", layer="clc", columns=["CODE_18"])
    return shapely.from_wkb(wkb), codes.astype(int)


def draw(path: Path, grid: Grid, **options: str) -> np.ndarray:
    """The label of one patch."""
    return make_labeller(Request("clc", "corine", path, options))(grid)


def polygon_label(folder: Path, grid: Grid, **options: str) -> np.ndarray:
    return draw(folder / "clc.gpkg", grid, layer="clc", **{"level": "3", **options})


def centres(grid: Grid, epsg: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y (H, W) in `epsg` of the pixel centres, by pyproj."""
    steps = (np.arange(grid.size) + 0.5) * grid.resolution_m
    x, y = np.meshgrid(grid.x + steps, grid.y - steps)
    return pyproj.Transformer.from_crs(grid.epsg, epsg, always_xy=True).transform(x, y)


def codes_at(polygons: tuple[np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The code of the polygon that holds each point; 0 for none."""
    found = np.zeros(x.shape, int)
    for geometry, code in zip(*polygons, strict=True):
        shapely.prepare(geometry)
        found[shapely.contains_xy(geometry, x, y)] = code
    return found


def edge_distance(polygons: tuple[np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Metres from each point to the nearest edge of any polygon, right up to 500."""
    near = shapely.clip_by_rect(shapely.boundary(polygons[0]), x.min() - 500, y.min() - 500, x.max() + 500, y.max() + 500)
    edges = shapely.union_all(near[~shapely.is_empty(near)])
    shapely.prepare(edges)
    return shapely.distance(edges, shapely.points(x, y))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(grid.epsg))
def test_a_pixel_has_the_code_of_the_polygon_that_its_centre_lies_in(corine_files: Path, polygons: tuple, grid: Grid) -> None:
    x, y = centres(grid, 25830)
    expected, label = codes_at(polygons, x, y), polygon_label(corine_files, grid)
    assert label.dtype == np.uint16 and len(np.unique(expected)) >= 5
    wrong = label != expected
    assert wrong.mean() < 1e-3
    if wrong.any():  # 2 cm: GDAL works in floats of pixels
        assert (edge_distance(polygons, x[wrong], y[wrong]) < 0.02).all()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(grid.epsg))
@pytest.mark.parametrize("touched", ["no", "yes"])
def test_polygons_equal_gdal_on_geometries_reprojected_by_pyproj(corine_files: Path, polygons: tuple, grid: Grid, touched: str) -> None:
    to_grid = pyproj.Transformer.from_crs(25830, grid.epsg, always_xy=True)
    moved = shapely.transform(shapely.segmentize(polygons[0], 50), lambda xy: np.stack(to_grid.transform(*xy.T), axis=1))
    expected = rasterize(zip(moved, polygons[1].tolist(), strict=True), out_shape=(grid.size, grid.size), fill=0, dtype="uint16",
                         transform=from_origin(grid.x, grid.y, grid.resolution_m, grid.resolution_m), all_touched=touched == "yes")
    label = polygon_label(corine_files, grid, all_touched=touched)
    assert (label != expected).mean() < 5e-4  # edges through a pixel centre


def test_polygons_and_the_raster_product_of_the_same_map_agree_but_for_edges(corine_files: Path, polygons: tuple) -> None:
    """They were made separately: polygons in EPSG:25830, 25 m pixels in EPSG:3042."""
    for epsg in (25830, 32629):
        grid = GRIDS[list(PLACES).index(epsg)]
        x, y = centres(grid, 25830)
        far = edge_distance(polygons, x, y) > 25 / np.sqrt(2) + 3  # half a raster pixel's diagonal, and the map's own rounding
        drawn, raster = polygon_label(corine_files, grid), draw(corine_files / "clc.tif", grid, level="3")
        assert far.mean() > 0.5 and (drawn[far] == raster[far]).mean() > 0.999
        assert (drawn == raster).mean() > 0.95


def test_the_raster_product_equals_the_file_at_every_pixel_centre(corine_files: Path) -> None:
    with rasterio.open(corine_files / "clc.tif") as file:
        raw, transform = file.read(1), file.transform
    for grid in GRIDS:
        x, y = centres(grid, 25830)  # the axes of EPSG:3042 in the usual order
        column, row = (np.floor(v).astype(int) for v in ~transform * (x, y))
        inside = (column >= 0) & (row >= 0) & (column < raw.shape[1]) & (row < raw.shape[0])
        expected = np.where(inside, raw[np.clip(row, 0, raw.shape[0] - 1), np.clip(column, 0, raw.shape[1] - 1)], 0)
        expected[expected == 2**32 - 1] = 0
        assert (draw(corine_files / "clc.tif", grid, level="3") != expected).mean() < 5e-4


def test_levels_are_leading_digits_and_outside_the_map_is_ignored(corine_files: Path) -> None:
    grid = Grid(25830, 453250.3 - 1000, 4095000.0, 128, 20.0)  # the first 50 columns lie outside
    code = polygon_label(corine_files, grid).astype(int)
    assert (code[:, :50] == 0).all() and (code[:, 50:] != 0).all()
    for level, divisor in (("0", 100), ("1", 100), ("2", 10)):
        np.testing.assert_array_equal(polygon_label(corine_files, grid, level=level), code // divisor)
    groups = polygon_label(corine_files, grid, level="groups")
    np.testing.assert_array_equal(groups, np.where(code == 0, 255, code // 100))
    index = polygon_label(corine_files, grid, level="index")
    codes = [0, *corine.LEVEL_3]
    np.testing.assert_array_equal(np.array(codes)[index], code)


def test_the_legends_have_the_published_numbers() -> None:
    groups = corine.legend("groups")
    assert sorted(map(str, groups.classes)) == ["0", "1", "2", "3", "4", "5", "9"] and groups.ignore == 255
    assert [len(corine.legend(level).classes) for level in ("0", "1", "2", "3", "index")] == [5, 5, 15, 44, 47]
    first_digit = [int(code[0]) for code in corine.INDEX_CODES[1:45]]
    assert [first_digit.count(d) for d in range(1, 6)] == [11, 11, 12, 5, 5] and first_digit == sorted(first_digit)
    assert corine.INDEX_CODES[45:] == ("999", "002", "005", "001") and corine.INDEX_CODES[0] == "000" and len(corine.INDEX_CODES) == 49
    assert class_table("corine") == (corine.LEVEL_3, 0)
    for level in corine.LEVELS:
        made = corine.legend(level)
        assert set(made.values.values()) == set(made.classes) and made.ignore not in made.classes
        assert np.iinfo(made.dtype).max >= max(*made.classes, made.ignore)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", None), ("int8", -128)])
def test_a_raster_of_indexes_is_told_from_one_of_codes(tmp_path: Path, dtype: str, nodata: int | None) -> None:
    values = np.array([[1, 12, 44, 45], [46, 47, 48, 0]], dtype).repeat(2, axis=1)
    with rasterio.open(tmp_path / "clc.tif", "w", driver="GTiff", height=2, width=8, count=1, dtype=dtype, crs="EPSG:3035", nodata=nodata,
                       transform=from_origin(4e6, 3e6, 100, 100)) as file:
        file.write(values, 1)
    grid = Grid(3035, 4e6, 3e6, 8, 100.0)
    expected = {"3": [[111, 211, 523, 0], [0, 0, 0, 0]], "groups": [[1, 2, 5, 9], [0, 0, 255, 255]], "index": [[1, 12, 44, 45], [46, 47, 0, 0]]}
    for level, rows in expected.items():
        np.testing.assert_array_equal(draw(tmp_path / "clc.tif", grid, level=level)[:2, ::2], rows)
        np.testing.assert_array_equal(draw(tmp_path / "clc.tif", grid, level=level)[2:], corine.legend(level).ignore)


def write_polygons(path: Path, **columns: list) -> Path:
    """Unit squares side by side, 1 km wide, with these columns."""
    count = len(next(iter(columns.values())))
    squares = [shapely.box(4e6 + k * 1000, 3e6 - 1000, 4e6 + (k + 1) * 1000, 3e6) for k in range(count)]
    fields = {name: np.array(values, dtype=object if isinstance(values[0], str) else None) for name, values in columns.items()}
    pyogrio.raw.write(path, np.array(shapely.to_wkb(squares), object), list(fields.values()), list(fields), geometry_type="Polygon", crs="EPSG:3035")
    return path


@pytest.mark.parametrize("column", ["Code_18", "CODE_12", "clc_code", "code_2018", "CLC"])
@pytest.mark.parametrize("values", [["111", "523", "999"], [111, 523, 999], [111.0, 523.0, 999.0]], ids=["text", "int", "real"])
def test_the_code_column_is_found_by_name_as_text_or_number(tmp_path: Path, column: str, values: list) -> None:
    path = write_polygons(tmp_path / "a.gpkg", ID=["a", "b", "c"], **{column: values})
    np.testing.assert_array_equal(draw(path, Grid(3035, 4e6, 3e6, 4, 1000.0))[0], [1, 5, 0, 0])


def test_what_cannot_be_decided_is_refused_by_name(tmp_path: Path, corine_files: Path) -> None:
    both = write_polygons(tmp_path / "both.gpkg", CODE_12=["111"], CODE_18=["112"])
    none = write_polygons(tmp_path / "none.gpkg", kind=["111"])
    grid = Grid(3035, 4e6, 3e6, 4, 100.0)
    for path, options, message in (
            (both, {}, "both.gpkg layer both has several code columns.*column=, legal: CODE_12, CODE_18"),
            (none, {}, "no code column.*legal: kind"),
            (both, {"column": "code"}, "both.gpkg layer both has no column code: legal: CODE_12, CODE_18"),
            (both, {"level": "4"}, "level=4: .*legal: 0, 1, 2, 3, groups, index"),
            (both, {"values": "code"}, "values= is for rasters"),
            (corine_files / "clc.gpkg", {}, "has 2 layers with geometries; choose with layer=NAME, legal: clc, lanjaron"),
            (corine_files / "clc.gpkg", {"layer": "cl"}, "no layer cl with geometries: did you mean clc"),
            (corine_files / "clc.tif", {"layer": "clc"}, "layer= is for polygons"),
            (tmp_path / "no.gpkg", {}, "no.gpkg is no local file")):
        with pytest.raises(UsageError, match=message):
            draw(path, grid, **options)
    assert draw(both, grid, column="CODE_12", level="3")[0, 0] == 111


def test_a_code_that_does_not_exist_stops_with_feature_and_legal_codes(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "a.gpkg", code_18=["111", "600"])
    with pytest.raises(RuntimeError, match=r"a.gpkg layer a: column code_18 of feature 2 holds '600'; legal: 111, 112"):
        draw(path, Grid(3035, 4e6, 3e6, 4, 1000.0))
