"""Sampling places: density against closed forms, zones and grids against pyproj, cover and repair against shapely."""

import json
import math
from pathlib import Path

import numpy as np
import pyproj
import pytest
import scipy.stats
import shapely

from dsengine.corpus.build import dates, geography, utm
from dsengine.errors import UsageError

ROWS = np.arange(20_000)


def _world() -> geography.Region:
    return geography.region(np.array([shapely.box(-180, -80, 180, 84)]), name="world")


def test_points_are_uniform_in_area() -> None:
    lon, lat = geography.points(_world(), ROWS, seed=1)
    edges = np.degrees(np.arcsin(np.linspace(math.sin(math.radians(-80)), math.sin(math.radians(84)), 21)))
    counts = np.histogram2d(lat, lon, bins=[edges, np.linspace(-180, 180, 9)])[0]
    assert counts.sum() == len(ROWS)
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3


@pytest.mark.parametrize(("parity", "share"), [(False, None), (True, 30 / 150)])
def test_the_share_beyond_60_degrees_is_that_of_the_area_or_of_the_degrees(parity: bool, share: float | None) -> None:
    sin = [math.sin(math.radians(d)) for d in (60, 84, 80)]
    share = (sin[1] + sin[2] - 2 * sin[0]) / (sin[1] + sin[2]) if share is None else share
    _, lat = geography.points(_world(), ROWS, seed=2, parity=parity)
    beyond = int((np.abs(lat) > 60).sum())
    assert scipy.stats.binomtest(beyond, len(ROWS), share).pvalue > 1e-3
    if parity:
        assert -70 <= lat.min() and lat.max() <= 80


def test_polygons_get_points_by_area_however_their_boxes_are_filled() -> None:
    triangle = shapely.Polygon([(0, 0), (40, 0), (0, 1)])
    square = shapely.box(100, 0, 102, 1)
    lon, lat = geography.points(geography.region(np.array([triangle, square]), name="two"), ROWS, seed=3)
    inside = shapely.contains_xy(triangle, lon, lat)
    assert (inside | shapely.contains_xy(square, lon, lat)).all()
    assert scipy.stats.binomtest(int(inside.sum()), len(ROWS), 20 / 22).pvalue > 1e-3  # within 1 degree of the equator, area is degrees


def test_more_points_extend_the_list_and_rows_stand_alone() -> None:
    few, many = (geography.points(_world(), np.arange(n), seed=4) for n in (10, 100))
    alone = geography.points(_world(), np.array([7]), seed=4)
    assert np.array_equal(few, np.array(many)[:, :10]) and np.array_equal(alone, np.array(many)[:, 7:8])
    assert not np.array_equal(few, geography.points(_world(), np.arange(10), seed=5))
    assert not np.array_equal(few, geography.points(_world(), np.arange(10), seed=4, attempt=1))


def test_points_over_land_avoid_the_sea(sample_data: Path) -> None:
    path = sample_data / "labels" / "naturalearth" / "ne_110m_land.json"
    raw = [shapely.geometry.shape(f["geometry"]) for f in json.loads(path.read_text())["features"]]
    assert not all(shape.is_valid for shape in raw)
    area = geography.read_region(path)
    assert shapely.is_valid(area.polygons).all()
    lon, lat = geography.points(area, np.arange(3000), seed=0)
    assert (shapely.contains_xy(np.array(raw)[:, None], lon, lat).sum(axis=0) == 1).all()
    assert (lon < -30).any() and ((lon > -20) & (lat < 0)).any()


def test_invalid_polygons_are_repaired_and_not_lost() -> None:
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    with pytest.raises(shapely.GEOSException):  # what happens to it as it is
        shapely.intersection(bow_tie, shapely.box(-180, -80, 180, 84))
    area = geography.region(np.array([bow_tie, shapely.box(20, 0, 21, 1)]), name="two triangles and a square")
    assert area.whole.area == pytest.approx(51) and len(area.polygons) == 3
    lon, lat = geography.points(area, np.arange(4000), seed=0)
    assert (abs(lat - 5) < abs(lon - 5))[lon < 15].all() and (lon > 15).any()


def test_a_region_over_the_date_line_is_one_region_and_its_points_stay_in_range() -> None:
    area = geography.region(np.array([shapely.box(178, -20, 184, -10)]), name="fiji")
    lon, _ = geography.points(area, np.arange(6000), seed=0)
    assert ((lon >= 178) | (lon <= -176)).all() and (np.abs(lon) <= 180).all()
    assert scipy.stats.binomtest(int((lon < 0).sum()), 6000, 4 / 6).pvalue > 1e-3


@pytest.mark.parametrize(("lon", "lat", "epsg"), [
    (-177.5, 10, 32601), (-150.1, -20, 32705), (-126.5, 45, 32609), (9.0, 50.0, 32632), (5.0, 60.0, 32632), (2.9, 60.0, 32631), (5.0, 64.0, 32631),
    (5.0, 55.9, 32631), (8.0, 78.0, 32631), (9.0, 78.0, 32633), (20.9, 78.0, 32633), (32.0, 80.0, 32635), (41.9, 84.0, 32637), (42.1, 80.0, 32638),
    (180.0, 5.0, 32601), (-180.0, -5.0, 32701), (179.99, -5, 32760), (0.0, 0.0, 32631), (0.0, -1e-9, 32731)])
def test_zones_are_those_of_the_mgrs(lon: float, lat: float, epsg: int) -> None:
    assert utm.utm_epsg(lon, lat) == epsg
    assert pyproj.CRS.from_epsg(epsg).is_projected
    inside = [code for side in (32600, 32700) for code in range(side + 1, side + 61)
              for west, south, east, north in utm.zone_boxes(code) if west <= (lon if lon < 180 else -180) < east and south <= lat < north]
    assert inside == [epsg] or lat == 84.0


def test_latitudes_without_utm_are_refused() -> None:
    for lat in (85.0, -80.5):
        with pytest.raises(UsageError, match="UTM ends"):
            utm.utm_epsg(0.0, lat)


@pytest.mark.parametrize(("lon", "lat"), [(14.2, 40.1), (-58.4, -66.3), (179.999, -16.5), (-179.999, 51.2)])
def test_a_patch_lies_around_its_point_with_its_corner_on_the_grid_of_sentinel_2(lon: float, lat: float) -> None:
    grid = utm.patch_at(lon, lat, size=126, resolution_m=10.0)
    x, y = pyproj.Transformer.from_crs(4326, grid.epsg, always_xy=True).transform(lon, lat)
    assert abs(grid.x + 630 - x) <= 30 and abs(grid.y - 630 - y) <= 30
    assert grid.x % 60 == 0 and (grid.y - (10_000_000 if lat < 0 else 0)) % 60 == 0
    assert np.allclose(np.array(utm.centre(grid)) - [lon, lat], 0, atol=6e-4)


def test_grids_of_real_southern_and_northern_tiles_are_on_the_60_m_grid(sample_data: Path) -> None:
    """The tile corners that archives state; 3300040 of a southern tile is no multiple of 60."""
    for x, y, false_northing in ((399960, 4500000, 0), (600000, 3300040, 10_000_000)):
        assert x % utm.SNAP_M == 0 and (y - false_northing) % utm.SNAP_M == 0
    assert 3300040 % utm.SNAP_M != 0


@pytest.mark.parametrize("shape", [
    shapely.Point(12.0, 47.0).buffer(0.05), shapely.box(-66.02, -0.03, -65.97, 0.02), shapely.box(179.98, 10.0, 180.02, 10.04),
    shapely.MultiPolygon([shapely.box(2.98, 60.0, 3.03, 60.02), shapely.box(2.9, 59.9, 2.91, 59.91)])])
def test_a_cover_leaves_nothing_out_and_holds_nothing_that_does_not_touch(shape: object) -> None:
    area = geography.region(np.array([shape]), name="r")
    grids = geography.cover(area, size=60, resolution_m=10.0)
    patches = [_in_degrees(grid, shape) for grid in grids]
    assert shape.difference(shapely.union_all(patches)).area < 1e-9
    near = shape.buffer(1e-5)
    assert all(patch.intersects(near) for patch in patches)
    assert len(set(grids)) == len(grids)
    inner = geography.cover(area, size=60, resolution_m=10.0, within=True)
    assert 0 < len(inner) < len(grids) and set(inner) <= set(grids)
    assert all(_in_degrees(grid, shape).within(near) for grid in inner)
    assert set(inner) >= {grid for grid, patch in zip(grids, patches, strict=True) if patch.within(shape.buffer(-1e-5))}


def _in_degrees(grid: object, shape: object) -> object:
    """A patch in degrees by pyproj; beyond 180 where the shape is written so."""
    to = pyproj.Transformer.from_crs(grid.epsg, 4326, always_xy=True)
    left, bottom, right, top = utm.bounds(grid)
    patch = shapely.transform(shapely.box(left, bottom, right, top).segmentize(50), lambda xy: np.stack(to.transform(xy[:, 0], xy[:, 1]), axis=1))
    return shapely.transform(patch, lambda xy: np.where(xy[:, :1] < 0, xy + [360, 0], xy)) if shape.bounds[2] > 180 else patch


def test_countries_are_found_by_any_iso_column_and_unknown_codes_name_the_legal(tmp_path: Path) -> None:
    def feature(a2: str, eh: str, west: float) -> dict:
        return {"type": "Feature", "properties": {"ISO_A2": a2, "ISO_A2_EH": eh, "ADM0_A3": eh + "X"},
                "geometry": shapely.geometry.mapping(shapely.box(west, 10, west + 1, 11))}

    path = tmp_path / "countries.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature("-99", "FR", 0), feature("DE", "DE", 10), feature("-99", "NO", 20)]}))
    assert geography.read_region(path, codes=("FR",)).whole.bounds == (0, 10, 1, 11)
    assert geography.read_region(path, codes=("de", "NOX")).whole.bounds == (10, 10, 21, 11)
    with pytest.raises(UsageError, match="--region XX: .*legal: .*DE"):
        geography.read_region(path, codes=("XX",))


def test_a_file_that_is_none_or_has_no_codes_is_refused_by_name(tmp_path: Path, sample_data: Path) -> None:
    (tmp_path / "x.geojson").write_text("{")
    with pytest.raises(UsageError, match="x.geojson.*naturalearthdata.com"):
        geography.read_region(tmp_path / "x.geojson")
    with pytest.raises(UsageError, match="no column ISO_A2"):
        geography.read_region(sample_data / "labels" / "naturalearth" / "ne_110m_land.json", codes=("FR",))


def test_a_region_in_another_crs_is_brought_to_degrees(sample_data: Path) -> None:
    area = geography.read_region(sample_data / "labels" / "corine" / "clc.gpkg")
    west, south, east, north = area.whole.bounds
    assert -3.7 < west < east < -3.3 and 36.8 < south < north < 37.1


def test_date_windows_are_twelve_days_and_the_last_is_cut() -> None:
    found = dates.windows("2019-01-01", "2019-02-01")
    assert [(w.end - w.start) / dates.DAY_NS for w in found] == [12, 12, 7]
    assert dates.to_iso(found[0].start) == "2019-01-01T00:00:00.000Z" and dates.to_iso(found[-1].end) == "2019-02-01T00:00:00.000Z"
    assert dates.to_ns("2019-01-13T00:00:00Z") == found[1].start == dates.to_ns("2019-01-13T01:00:00+01:00")
    assert dates.to_ns("2024-04-22T17:53:02.036000Z") % 10**9 == 36_000_000
    for bad in (("2019-02-01", "2019-02-01"), ("20190201x", "2019-02-05")):
        with pytest.raises(UsageError):
            dates.windows(*bad)
