"""Embedding files as other software reads them: rasterio, xarray, geopandas, rio-cogeo; where cells lie, what has no data, what is inside."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

sys.path.insert(0, str(Path(__file__).parent))
from embed_cases import Small, contract, numbers, write, zscored  # noqa: E402

import dsengine
from dsengine.errors import UsageError
from dsengine.export.encode import encoding
from dsengine.export.facts import read_facts
from dsengine.export.model import sha256_of

HEIGHT, WIDTH = 203, 150  # neither is a multiple of the cell's 8 pixels


@pytest.fixture(scope="module")
def encoder() -> Small:
    torch.manual_seed(0)
    return Small(14).eval()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster with a hole: 40 x 60 pixels without data in one band."""
    values = numbers(HEIGHT, WIDTH)
    values[3, 64:104, 32:92] = 0
    return write(tmp_path_factory.mktemp("scene") / "place.tif", values)


@pytest.fixture(scope="module")
def files(encoder: Small, scene: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedding in every format and number type."""
    out = tmp_path_factory.mktemp("out")
    made = {}
    for suffix in ("zarr", "tif", "parquet"):
        for dtype in ("float32", "float16", "int8"):
            made[f"{suffix} {dtype}"], = dsengine.embed((encoder, contract()), scene, out / f"{dtype}.{suffix}", dtype=dtype, s2_offset="0")
    return made


@pytest.fixture(scope="module")
def want(encoder: Small, scene: Path) -> np.ndarray:
    """(6, 26, 19) float32 from one pass over the whole raster, NaN where fewer than half of a cell's pixels have data."""
    with rasterio.open(scene) as file:
        values = file.read()
    x = zscored(values, contract())
    hole = values[3] == 0
    x[0, 3][torch.from_numpy(hole)] = 0
    dense = encoder(x).dense[0].detach().numpy()
    for row in range(26):
        for column in range(19):
            if hole[8 * row:8 * row + 8, 8 * column:8 * column + 8].mean() > 0.5:
                dense[:, row, column] = np.nan
    return dense


def test_the_hole_is_where_cells_lack_most_of_their_pixels(want: np.ndarray) -> None:
    assert np.isnan(want[0]).sum() == 35 and np.isnan(want[0, 8:13, 4:11]).all()  # 5 rows and 7 columns; the eighth is half there


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_geotiff_holds_the_features_on_the_grid_of_the_raster(files: dict[str, Path], scene: Path, want: np.ndarray, dtype: str) -> None:
    with rasterio.open(files[f"tif {dtype}"]) as file, rasterio.open(scene) as raster:
        assert file.crs == raster.crs and file.shape == (26, 19) and file.count == 6
        assert (file.transform.a, file.transform.e) == (80.0, -80.0)  # 8 pixels of 10 m
        for row, column in [(0, 0), (25, 18), (7, 3)]:
            assert file.xy(row, column, offset="ul") == raster.xy(8 * row, 8 * column, offset="ul")  # to the last bit
        assert file.scales[0] == file.scales[5] and (dtype == "int8") == (file.scales[0] != 1.0)
        stored = file.read(masked=True)
        values = stored.astype(np.float64) * file.scales[0] + file.offsets[0]
        assert file.dtypes[0] == ("int8" if dtype == "int8" else "float32")
        error = {"float32": 1e-5, "float16": 1e-3, "int8": file.scales[0] / 2 + 1e-5}[dtype]
    missing = np.ma.getmaskarray(stored) | np.isnan(stored.filled(0).astype(np.float64))
    np.testing.assert_array_equal(missing, np.isnan(want))
    np.testing.assert_allclose(values.filled(np.nan)[~missing], want[~missing], atol=error)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_geotiff_is_cloud_optimised(files: dict[str, Path], dtype: str) -> None:
    """Without rio-cogeo: tiled, smaller pictures after the header in falling size, and GDAL's own mark that the layout is a COG's."""
    with rasterio.open(files[f"tif {dtype}"]) as file:
        assert file.profile["tiled"] and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.compression.value.lower() == "deflate"
    validate = pytest.importorskip("rio_cogeo", reason="rio-cogeo is not installed (extra `test`)").cog_validate
    assert validate(files[f"tif {dtype}"], strict=True) == (True, [], [])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_xarray_opens_the_zarr_with_coordinates_mask_and_crs(files: dict[str, Path], scene: Path, want: np.ndarray, dtype: str) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray is not installed (extra `test`)")
    data = xarray.open_zarr(files[f"zarr {dtype}"], consolidated=False)
    assert data.embedding.dims == ("feature", "y", "x") and data.attrs["Conventions"].startswith("CF-")
    error = {"float32": 1e-5, "float16": 1e-3, "int8": (want[~np.isnan(want)].max() - want[~np.isnan(want)].min()) / 508 + 1e-5}[dtype]
    np.testing.assert_allclose(data.embedding.values, want, atol=error)  # NaN where there is none, decoded by xarray itself
    with rasterio.open(scene) as raster:
        corner = raster.xy(0, 0, offset="ul")
        assert rasterio.crs.CRS.from_wkt(data[data.embedding.attrs["grid_mapping"]].attrs["crs_wkt"]) == raster.crs
    np.testing.assert_array_equal(data.x, corner[0] + 80 * (np.arange(19) + 0.5))
    np.testing.assert_array_equal(data.y, corner[1] - 80 * (np.arange(26) + 0.5))
    assert data.x.attrs["standard_name"] == "projection_x_coordinate" and data.y.attrs["units"] == "m"
    assert int(data.data_percent.values[0, 0]) == 100 and int(data.data_percent.values[9, 5]) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_geopandas_opens_the_points_where_the_cells_are(files: dict[str, Path], want: np.ndarray, dtype: str) -> None:
    geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed (extra `test`)")
    points = geopandas.read_parquet(files[f"parquet {dtype}"])
    assert points.crs.to_epsg() == 4326 or points.crs.to_authority() == ("OGC", "CRS84")
    assert len(points) == 26 * 19 - 35 and (points.geometry.geom_type == "Point").all()
    back = points.to_crs("EPSG:32613").geometry
    np.testing.assert_allclose(back.x, points.x, atol=1e-3)  # metres
    np.testing.assert_allclose(back.y, points.y, atol=1e-3)
    np.testing.assert_array_equal(points.x, 399960 + 80 * (points.column + 0.5))
    np.testing.assert_array_equal(points.id, points.row * 19 + points.column)
    coding = read_facts(files[f"parquet {dtype}"])["encoding"]
    values = np.stack(points.embedding).astype(np.float64) * coding["scale"] + coding["offset"]
    error = {"float32": 1e-5, "float16": 1e-3, "int8": coding["scale"] / 2 + 1e-5}[dtype]
    np.testing.assert_allclose(values, want[:, points.row, points.column].T, atol=error)


def test_every_file_says_which_encoder_contract_and_raster_made_it(files: dict[str, Path], encoder: Small) -> None:
    found = {name: read_facts(path) for name, path in files.items()}
    first = found["zarr float32"]
    assert first["encoder_sha256"] == sha256_of(encoder) and first["contract"] == json.loads(json.dumps(contract().to_json()))
    assert "place.tif" in first["source"]["files"] and first["source"]["s2_offset"] == 0 and first["rule"]["mode"] == "exact"
    assert len({facts["job"] for facts in found.values()}) == 1  # one job, nine number types and formats
    torch.manual_seed(1)
    changed = Small(14)
    assert sha256_of(changed) != sha256_of(encoder)


def test_int8_rounds_to_the_nearest_step_and_cosines_stay() -> None:
    draw = np.random.default_rng(0)
    values = np.maximum(draw.normal(size=(500, 64)), 0).astype(np.float32) * draw.uniform(0.2, 3, 64).astype(np.float32)
    coding = encoding("int8", float(values.min()), float(values.max()))
    stored = coding.encode(values)
    assert stored.min() == -127 and stored.max() == 127 and np.abs(coding.decode(stored) - values).max() <= coding.scale / 2 * (1 + 1e-6)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (values, coding.decode(stored))]
    assert np.abs(unit[0] @ unit[0].T - unit[1] @ unit[1].T).max() < 0.01
    assert coding.encode(np.array([np.nan]))[0] == -128 and np.isnan(coding.decode(np.array([-128], np.int8)))[0]


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="float32, int8"):
        encoding("float16", 0.0, 1e6)
    with pytest.raises(UsageError, match="legal: float32, float16, int8"):
        encoding("uint8", 0.0, 1.0)
    assert encoding("int8", 2.0, 2.0).decode(encoding("int8", 2.0, 2.0).encode(np.array([2.0], np.float32)))[0] == 2.0


def test_a_map_shows_imagery_and_embedding(encoder: Small, scene: Path, tmp_path: Path) -> None:
    dsengine.embed((encoder, contract()), scene, tmp_path / "a.zarr", s2_offset="0", picture=True)
    with rasterio.open(tmp_path / "a.png") as picture:
        colours = np.unique(picture.read()[:3].reshape(3, -1), axis=1)
    assert colours.shape[1] > 500
