"""Raster labels against GDAL's own reprojection and against the file at each pixel centre; nodata, tiles, classes, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject

from dsengine.corpus.build.labellers._base import Labeller
from dsengine.corpus.build.labelling import Request, make_labeller
from dsengine.corpus.build.plan import Grid
from dsengine.errors import RunError, UsageError

GRID = Grid(32632, 500000.0, 5200000.0, 32, 10.0)
WIDE = GRID._replace(size=256)


def write(path: Path, x: np.ndarray, *, crs: str | None = "EPSG:32632", left: float = GRID.x, top: float = GRID.y, pixel: float = 10.0,
          colours: dict[int, tuple[int, int, int]] | None = None, **profile: Any) -> Path:
    with rasterio.open(path, "w", driver="GTiff", height=x.shape[0], width=x.shape[1], count=1, dtype=x.dtype, crs=crs,
                       transform=from_origin(left, top, pixel, pixel), **profile) as file:
        file.write(x, 1)
        if colours:
            file.write_colormap(1, colours)
    return path


def label(path: Path | str, **options: str) -> Labeller:
    return make_labeller(Request("cover", "raster", Path(path), options))


def classes(*shape: int, dtype: str = "uint8", most: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, most, shape).astype(dtype)


def test_on_the_same_grid_every_pixel_is_the_file(tmp_path: Path) -> None:
    x = classes(64, 64)
    drawer = label(write(tmp_path / "a.tif", x))
    np.testing.assert_array_equal(drawer(GRID), x[:32, :32])
    np.testing.assert_array_equal(drawer(GRID._replace(x=GRID.x + 70, y=GRID.y - 130)), x[13:45, 7:39])
    assert drawer.spec.classes == {k: f"class {k}" for k in range(1, 10)} and drawer.spec.ignore == 0 and drawer.spec.dtype == "uint8"


@pytest.mark.parametrize(("crs", "pixel"), [("EPSG:4326", 0.0001), ("EPSG:3035", 13.0), ("EPSG:32633", 25.0), ("EPSG:3857", 4.0),
                                              ("EPSG:2056", 10.0)])
def test_other_grids_equal_gdal_and_the_file_at_each_pixel_centre(tmp_path: Path, crs: str, pixel: float) -> None:
    pyproj = pytest.importorskip("pyproj")
    steps = (np.arange(WIDE.size) + 0.5) * WIDE.resolution_m
    x, y = pyproj.Transformer.from_crs(32632, crs, always_xy=True).transform(*np.meshgrid(WIDE.x + steps, WIDE.y - steps))
    left, top = x.min() - 7.3 * pixel, y.max() + 9.1 * pixel
    shape = int((top - y.min()) / pixel) + 10, int((x.max() - left) / pixel) + 10
    raw = classes(*shape)
    got = label(write(tmp_path / "a.tif", raw, crs=crs, left=left, top=top, pixel=pixel))(WIDE)
    row, column = ((top - y) / pixel).astype(int), ((x - left) / pixel).astype(int)
    # GDAL may differ where a centre lies on the edge of two source pixels.
    to_edge = np.minimum(*(np.abs((v / pixel) - np.rint(v / pixel)) for v in (top - y, x - left)))
    np.testing.assert_array_equal(got[to_edge > 1e-3], raw[row, column][to_edge > 1e-3])
    expected = np.zeros_like(got)
    reproject(raw, expected, src_transform=from_origin(left, top, pixel, pixel), src_crs=crs, dst_crs="EPSG:32632",
              dst_transform=from_origin(WIDE.x, WIDE.y, 10, 10), resampling=Resampling.nearest)
    assert (got != expected).mean() < 0.05  # its default tolerance is an eighth of a pixel


def test_nodata_and_what_lies_outside_are_ignored(tmp_path: Path) -> None:
    x = classes(20, 20)
    x[3, 4], x[5, 6] = 77, 0
    expected = np.zeros((32, 32), int)
    expected[:20, :20] = np.where(x == 77, 0, x)
    drawer = label(write(tmp_path / "a.tif", x, nodata=77))
    assert drawer.spec.ignore == 255 and 0 in drawer.spec.classes and 77 not in drawer.spec.classes  # 0 is a class of this file
    got = drawer(GRID)
    outside = np.ones((32, 32), bool)
    outside[:20, :20] = x == 77
    np.testing.assert_array_equal(got, np.where(outside, 255, expected))
    assert (label(tmp_path / "a.tif", ignore="99")(GRID) == 99).sum() == outside.sum()
    assert (label(tmp_path / "a.tif")(GRID._replace(x=900000.0)) == 255).all()


def test_nodata_can_be_given(tmp_path: Path) -> None:
    x = classes(32, 32)
    got = label(write(tmp_path / "a.tif", x), nodata="3")(GRID)
    np.testing.assert_array_equal(got, np.where(x == 3, 0, x))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_every_type_of_whole_numbers_is_read(tmp_path: Path, dtype: str) -> None:
    x = classes(32, 32, dtype=dtype, most=400)
    if dtype.startswith("f"):
        x[0, 0] = np.nan
    got = label(write(tmp_path / "a.tif", x))(GRID)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, np.nan_to_num(x))


def test_tiles_make_one_map_and_the_first_with_data_counts(tmp_path: Path) -> None:
    left, right = classes(32, 20, seed=1), classes(32, 20, seed=2)
    left[:, 18:] = 0
    write(tmp_path / "t_1.tif", left, nodata=0)
    write(tmp_path / "t_2.tif", right, left=GRID.x + 160, nodata=0)
    write(tmp_path / "t_3.tif", classes(32, 32, seed=3), crs="EPSG:32601", nodata=0)  # elsewhere
    expected = np.zeros((32, 32), int)
    expected[:, 16:] = right[:, :16]
    expected[:, :18] = left[:, :18]
    np.testing.assert_array_equal(label(tmp_path / "t_*.tif")(GRID), expected)


def test_overviews_made_of_averages_are_not_read(tmp_path: Path) -> None:
    x = np.random.default_rng(0).choice([1, 9], (512, 512)).astype(np.uint8)
    path = write(tmp_path / "a.tif", x, tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8], Resampling.average)
    assert set(np.unique(label(path)(Grid(32632, GRID.x, GRID.y, 64, 80.0)))) == {1, 9}


def test_classes_come_from_a_table_file_or_one_of_the_package(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.array([[10, 40], [95, 0]], np.uint8), pixel=160.0)
    drawer = label(path, classes="worldcover")
    assert drawer.spec.classes[40] == "cropland" and drawer.spec.ignore == 0 and set(np.unique(drawer(GRID))) == {0, 10, 40, 95}
    (tmp_path / "t.csv").write_text('value,name\n10,"trees, all"\n40,crops\n95,swamp\n')
    assert label(path, classes=f"{tmp_path}/t.csv", others="ignore").spec.classes == {10: "trees, all", 40: "crops", 95: "swamp"}
    assert make_labeller(Request("worldcover", "raster", path, {})).spec.classes[95] == "mangroves"
    painted = write(tmp_path / "p.tif", np.array([[1, 2]], np.uint8), pixel=160.0, colours={1: (255, 0, 0), 2: (0, 128, 255)})
    assert label(painted).spec.classes == {1: "class 1 #ff0000", 2: "class 2 #0080ff"}


def test_a_value_that_is_not_in_the_table_stops_or_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.array([[10, 41]], np.uint8), pixel=160.0)
    with pytest.raises(RunError, match=r"a.tif holds value 41; legal: 10, 20, .*others=ignore"):
        label(path, classes="worldcover")(GRID)
    assert set(np.unique(label(path, classes="worldcover", others="ignore")(GRID))) == {0, 10}


@pytest.mark.parametrize("text, message", [
    ("!!python/object/apply:os.system ['true']", "not plain YAML"), ("a: &a [x, x]\nb: *a", "aliases are not legal"), ("- 1", "legal: VALUE: NAME"),
    ("one: water", "'one' is not a whole number")])
def test_a_table_that_is_not_plain_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.tif", classes(8, 8))
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"t.yaml.*{message}"):
        label(path, classes=f"{tmp_path}/t.yaml")


def test_what_is_no_local_class_map_is_refused_by_name(tmp_path: Path) -> None:
    good = write(tmp_path / "a.tif", classes(8, 8))
    (tmp_path / "a.vrt").write_text(f"<VRTDataset rasterXSize='8' rasterYSize='8'><VRTRasterBand dataType='Byte' band='1'><SimpleSource>"
                                    f"<SourceFilename>{good}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>")
    (tmp_path / "vrt.tif").write_bytes((tmp_path / "a.vrt").read_bytes())
    write(tmp_path / "bare.tif", classes(8, 8), crs=None)
    write(tmp_path / "half.tif", np.full((8, 8), 1.5, np.float32))
    write(tmp_path / "wide.tif", np.array([[-1, 70000]], np.int32))
    for name, options, message in (
            ("a.vrt", {}, "a.vrt: legal: local rasters ending in .tif"), ("vrt.tif", {}, "vrt.tif cannot be opened"),
            ("no*.tif", {}, "no local file matches"),
            ("bare.tif", {}, "bare.tif has no CRS; give it with crs=EPSG:NUMBER"),
            ("half.tif", {}, "half.tif holds 1.5; a class map holds whole numbers"),
            ("wide.tif", {}, "values -1 to 70000 do not fit"), ("a.tif", {"band": "2"}, "a.tif has no band 2: legal: 1 to 1"),
            ("a.tif", {"classes": "worldcove"}, "classes=worldcove: legal"), ("a.tif", {"band": "x"}, "band=x: legal: a whole number from 1")):
        with pytest.raises(UsageError, match=message):
            label(tmp_path / name, **options)
    with pytest.raises(UsageError, match="no local file matches"):
        label("/vsicurl/http://127.0.0.1:9/a.tif")
    assert label(tmp_path / "bare.tif", crs="EPSG:32632").spec.classes


def test_a_raster_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", classes(512, 512), tiled=True, blockxsize=128, blockysize=128)
    drawer = label(path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(RunError, match="a.tif cannot be read near x=50"):
        drawer(Grid(32632, GRID.x, GRID.y, 512, 10.0))


def test_a_projected_crs_with_northing_first_is_read_as_gdal_does(sample_data: Path) -> None:
    """EPSG:3042 is UTM 30 with axes north, east: taken literally the map would lie thousands of kilometres away."""
    path = sample_data / "labels/corine/clc.tif"
    with rasterio.open(path) as file:
        assert file.crs == CRS.from_epsg(3042)
        raw = file.read(1)
    got = label(path)(Grid(25830, 453239.0 + 2500, 4099639.0 - 5000, 64, 25.0))
    np.testing.assert_array_equal(got, raw[200:264, 100:164])
