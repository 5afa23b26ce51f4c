"""JPEG 2000 and GeoTIFF assets in an S3 bucket, as CDSE keeps them: moto's server on loopback stands for the bucket."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import rasterio
from moto.server import ThreadedMotoServer
from rasterio.transform import from_origin

from dsengine.corpus.build.archive import cog
from dsengine.corpus.build.archive.http import Patience, Refused, Unreachable
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.stac.s3 import S3Raster

FAST = Patience(tries=2, backoff_s=0.01, timeout_s=5.0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth numbers of one band."""
    y, x = np.mgrid[:600, :600]
    return (2000 + 900 * np.sin(x / 37.0) * np.cos(y / 23.0)).astype(np.uint16)


@pytest.fixture(scope="module")
def endpoint(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """GDAL's options for the bucket `eodata`, which holds B02.jp2, B02.tif and a VRT."""
    folder = tmp_path_factory.mktemp("eodata")
    common = {"height": 600, "width": 600, "count": 1, "dtype": "uint16", "crs": "EPSG:32632", "transform": from_origin(600000, 5000040, 10, 10)}
    for name, options in {"B02.jp2": {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}, "B02.tif": {"driver": "GTiff", "tiled": True}}.items():
        with rasterio.open(folder / name, "w", **common, **options) as file:
            file.write(image, 1)
    (folder / "evil.vrt").write_text(f'<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
                                     f'<SourceFilename>{folder / "B02.tif"}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>')
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://{address}")
        client.create_bucket(Bucket="eodata")
        for path in folder.iterdir():
            client.put_object(Bucket="eodata", Key=f"S2/{path.name}", Body=path.read_bytes())
        yield {"AWS_S3_ENDPOINT": address, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
    server.stop()


@pytest.mark.parametrize("name", ["B02.jp2", "B02.tif"])
def test_a_window_is_read_as_it_is(endpoint: dict[str, str], image: np.ndarray, name: str) -> None:
    with S3Raster(f"s3://eodata/S2/{name}", endpoint, FAST) as raster:
        got, empty = cog.read_patch(raster, Grid(32632, 601200.0, 5000040.0 - 2400, 60, 10.0), resolution_m=10.0, empty=0.0, resampling="nearest")
    assert np.array_equal(got, image[240:300, 120:180]) and empty == 0.0


def test_what_is_missing_or_out_of_reach_is_said_without_keys(endpoint: dict[str, str]) -> None:
    for url, options, error in (("s3://eodata/S2/none.tif", endpoint, Refused), ("s3://eodata/S2/B02.tif", {**endpoint, "AWS_S3_ENDPOINT": "127.0.0.1:9"}, Unreachable)):
        with pytest.raises(error) as caught, S3Raster(url, options, FAST):
            pass
        assert url in str(caught.value) and "TOPSECRET" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_format_that_names_other_files_is_not_opened(endpoint: dict[str, str]) -> None:
    with pytest.raises((Refused, Unreachable)), S3Raster("s3://eodata/S2/evil.vrt", endpoint, FAST):
        pass
