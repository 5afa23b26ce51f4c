"""Real single radar rasters through source geotiff: a terrain-corrected one pixel by pixel, a raw ground-range one refused by what it lacks."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from dsengine import cli
from dsengine.corpus import open_corpus

RTC = "S1A__IW___A_20150309T173017_VV_grd_mli_geo_norm_db.tif"
SIZE = 64


def test_every_pixel_of_a_terrain_corrected_single_polarisation_raster(sample_data: Path, tmp_path: Path) -> None:
    file = sample_data / "s1" / RTC
    assert cli.main(["corpus", "build", str(tmp_path / "c"), "--source", "geotiff", "--s1", str(file), "--s1-bands", "VV", "--size", str(SIZE)]) == 0
    corpus = open_corpus(tmp_path / "c")
    with rasterio.open(file) as raster:
        pixels, nodata, transform, crs = raster.read(1), raster.nodata, raster.transform, raster.crs.to_epsg()
    assert [band.name for band in corpus.bands] == ["VV"] and corpus.resolution_m == 20 and nodata == -99
    assert len(corpus) == (pixels.shape[0] // SIZE) * (pixels.shape[1] // SIZE) > 1
    stored = corpus.read(range(len(corpus)), "s1")[:, 0]
    for row, found in enumerate(stored):
        left, top = (corpus.index.x[row] - transform.c) / transform.a, (corpus.index.y[row] - transform.f) / transform.e
        expected = pixels[int(top):int(top) + SIZE, int(left):int(left) + SIZE]
        np.testing.assert_array_equal(found == -32768, expected == nodata)
        valid = expected != nodata
        assert np.abs(found[valid] / 100 - expected[valid]).max() <= 0.005001 and corpus.index.epsg[row] == crs == 32631
    assert np.datetime64(int(corpus.index.time_s1[0]), "ns") == np.datetime64("2015-03-09T17:30:17")


def test_raw_ground_range_data_are_refused_with_what_they_need(sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["corpus", "build", str(tmp_path / "c"), "--source", "geotiff", "--s1", str(sample_data / "s1" / "*iw-v?.tiff")]) == 2
    error = capsys.readouterr().err
    assert "iw-vh.tiff" in error and "ground control points" in error and "geocode" in error
    assert not (tmp_path / "c").exists()
