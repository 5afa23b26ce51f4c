"""Point lists as labels of patches: which patch a point belongs to, counts, several classes, CSV and files of any CRS."""

from pathlib import Path

import numpy as np
import pytest

from dsengine.corpus.build.labellers._base import Labeller
from dsengine.corpus.build.labelling import Request, make_labeller
from dsengine.corpus.build.plan import Grid
from dsengine.errors import UsageError

pyogrio, pyproj, shapely = (pytest.importorskip(name) for name in ("pyogrio", "pyproj", "shapely"))
GRID = Grid(32633, 400000.0, 5700000.0, 100, 10.0)
TILES = [GRID._replace(x=GRID.x + 1000 * i, y=GRID.y - 1000 * j) for j in range(5) for i in range(5)]


def label(path: Path, **options: str) -> Labeller:
    return make_labeller(Request("mine", "points", path, options))


def places(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x and y in EPSG:32633, on and around the tiles."""
    rng = np.random.default_rng(seed)
    return rng.uniform(GRID.x - 500, GRID.x + 5500, count), rng.uniform(GRID.y - 5500, GRID.y + 500, count)


def degrees(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pyproj.Transformer.from_crs(32633, 4326, always_xy=True).transform(x, y)


def write_csv(path: Path, *columns: tuple[str, list]) -> Path:
    rows = zip(*(values for _, values in columns), strict=True)
    lines = [",".join(f"{v!r}" if isinstance(v, float) else str(v) for v in row) for row in rows]
    path.write_text("\n".join([",".join(name for name, _ in columns), *lines]))
    return path


def write_layer(path: Path, x: np.ndarray, y: np.ndarray, epsg: int, **columns: list) -> Path:
    fields = [np.array(values, object if isinstance(values[0], str) else None) for values in columns.values()]
    pyogrio.raw.write(path, np.array(shapely.to_wkb(shapely.points(x, y)), object), fields, list(columns), geometry_type="Point", crs=f"EPSG:{epsg}")
    return path


def inside(x: np.ndarray, y: np.ndarray, grid: Grid) -> np.ndarray:
    return (x >= grid.x) & (x < grid.x + 1000) & (y <= grid.y) & (y > grid.y - 1000)


@pytest.mark.parametrize("name", ["a.csv", "a.gpkg", "a.geojson", "a.shp", "a.fgb"])
def test_a_patch_with_a_point_is_1_and_others_are_0(tmp_path: Path, name: str) -> None:
    x, y = places(30)
    lon, lat = degrees(x, y)
    path = write_csv(tmp_path / name, ("Name", list(range(30))), ("Longitude", lon.tolist()), ("Latitude", lat.tolist())) if name == "a.csv" else (
        write_layer(tmp_path / name, lon, lat, 4326, name=list(range(30))))
    drawer = label(path)
    got = [int(drawer(grid)) for grid in TILES]
    assert got == [int(inside(x, y, grid).any()) for grid in TILES] and 0 < sum(got) < 25
    assert drawer.spec.kind == "class" and drawer.spec.classes == {0: "no point", 1: "point"}
    assert drawer(GRID).dtype == np.uint8 and drawer(GRID).shape == ()


def test_counts_are_exact_up_to_the_cap(tmp_path: Path) -> None:
    x, y = places(400)
    path = write_layer(tmp_path / "a.gpkg", x, y, 32633, kind=[1] * 400)
    counts = [int(inside(x, y, grid).sum()) for grid in TILES]
    drawer = label(path, **{"as": "count", "cap": "12"})
    assert [int(drawer(grid)) for grid in TILES] == [min(count, 12) for count in counts] and min(counts) < 12 < max(counts)
    assert len(drawer.spec.classes) == 13 and drawer.spec.classes[12] == "12 points or more"


@pytest.mark.parametrize("name", ["a.csv", "a.gpkg"])
def test_a_multilabel_says_which_classes_are_there(tmp_path: Path, name: str) -> None:
    x, y = places(60)
    kinds = np.random.default_rng(3).choice(["copper", "coal", "iron"], 60)
    if name == "a.csv":
        path = write_csv(tmp_path / name, ("east", x.tolist()), ("north", y.tolist()), ("kind", kinds.tolist()))
        drawer = label(path, **{"as": "multilabel", "column": "kind", "x": "east", "y": "north", "crs": "EPSG:32633"})
    else:
        drawer = label(write_layer(tmp_path / name, x, y, 32633, kind=kinds.tolist()), **{"as": "multilabel", "column": "kind"})
    assert drawer.spec.kind == "multilabel" and drawer.spec.classes == {0: "coal", 1: "copper", 2: "iron"}
    for grid in TILES:
        here = set(kinds[inside(x, y, grid)])
        assert drawer(grid).tolist() == [int(k in here) for k in ("coal", "copper", "iron")]


def test_a_point_on_an_edge_belongs_to_one_patch(tmp_path: Path) -> None:
    x, y = np.array([GRID.x + 1000, GRID.x + 2500, GRID.x + 3000]), np.array([GRID.y - 500, GRID.y - 1000, GRID.y - 2000])
    path = write_layer(tmp_path / "a.gpkg", x, y, 32633, kind=[1, 1, 1])
    drawer = label(path)
    assert [k for k, grid in enumerate(TILES) if drawer(grid)] == [1, 7, 13]


def test_points_on_both_sides_of_the_date_line_are_found(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ("lon", [179.999, -179.999]), ("lat", [-17.0, -17.0]))
    x, y = pyproj.Transformer.from_crs(4326, 32760, always_xy=True).transform(180.0, -17.0)
    assert int(label(path, **{"as": "count"})(Grid(32760, x - 500, y + 500, 100, 10.0))) == 2


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "a.csv", ("id", [1]), ("lon", [14.0]), ("lat", [51.0]))
    bad = write_csv(tmp_path / "bad.csv", ("lon", [14.0, "east"]), ("lat", [51.0, 51.0]))
    nan = write_csv(tmp_path / "nan.csv", ("lon", ["nan"]), ("lat", [51.0]))
    polygons = tmp_path / "p.gpkg"
    pyogrio.raw.write(polygons, np.array([shapely.to_wkb(shapely.box(0, 0, 1, 1))], object), [np.array([1])], ["k"],
                      geometry_type="Polygon", crs="EPSG:4326")
    for path, options, message in (
            (csv, {"as": "multilabel"}, "as=multilabel needs column=NAME"), (csv, {"column": "id"}, "as=class takes no column"),
            (csv, {"as": "counts"}, "as=counts: did you mean count"), (csv, {"cap": "3"}, "cap= is for as=count"),
            (csv, {"as": "count", "cap": "300"}, "cap=300: legal: 1 to 255"), (csv, {"x": "easting"}, "name the column with x=, legal: id, lon, lat"),
            (csv, {"layer": "a"}, "layer= is not for CSV"), (csv, {"as": "multilabel", "column": "Id"}, "no column Id"),
            (bad, {}, "bad.csv line 3: east,51.0: columns lon and lat must be numbers"), (nan, {}, "nan.csv line 2"),
            (polygons, {}, "layer p holds Polygon; legal: points"), (polygons, {"x": "a"}, "x= is for CSV"),
            (tmp_path / "no.csv", {}, "no local file")):
        with pytest.raises(UsageError, match=message):
            label(path, **options)
