"""Embeddings as a cloud-optimised GeoTIFF: a band a feature, tiled, with overviews, written by GDAL's COG driver."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.shutil import copy
from rasterio.windows import Window

from dsengine.errors import RunError
from dsengine.export.encode import Encoding
from dsengine.export.grid import Grid
from dsengine.export.scene import CACHE_MB
from dsengine.export.stage import Stage

BLOCK_BYTES = 32 << 20  # of one block with all its bands, which a reader unpacks whole
TAG = "DSENGINE"


def write_raster(stage: Stage, out: Path, *, grid: Grid, encoding: Encoding, facts: Mapping[str, Any]) -> None:
    """float16 is stored as 16-bit floats in bands that read as float32: GDAL before 3.11 has no type of its own for them."""
    array = stage.group["embedding"]
    side = block_side(array.shape[0], np.dtype(encoding.dtype).itemsize)
    half = {"nbits": 16} if encoding.dtype == "float16" else {}
    plain, cog = stage.folder / "plain.tif", stage.folder / "cog.tif"
    profile = {"count": array.shape[0], "height": grid.shape[0], "width": grid.shape[1], "crs": grid.crs, "transform": grid.transform,
               "dtype": "int8" if encoding.dtype == "int8" else "float32", "nodata": encoding.nodata, "tiled": True, "blockxsize": side,
               "blockysize": side, "interleave": "pixel", "bigtiff": "IF_SAFER", **half}
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
            with rasterio.open(plain, "w", driver="GTiff", **profile) as file:
                _fill(file, array, encoding)
                file.update_tags(**{TAG: json.dumps(facts)})
                if encoding.dtype == "int8":
                    file.scales, file.offsets = (encoding.scale,) * array.shape[0], (encoding.offset,) * array.shape[0]
            copy(plain, cog, driver="COG", blocksize=side, compress="DEFLATE", predictor="YES", bigtiff="IF_SAFER", resampling="AVERAGE", **half)
    except rasterio.errors.RasterioError as error:
        raise RunError(f"{out}: cannot be written: {error}") from error
    os.replace(cog, out)


def block_side(bands: int, itemsize: int) -> int:
    """Pixels a side of a block: a multiple of 16, at most 512."""
    side = int((BLOCK_BYTES / (bands * itemsize)) ** 0.5) // 16 * 16
    return max(16, min(512, side))


def _fill(file: rasterio.io.DatasetWriter, array: "zarr.Array", encoding: Encoding) -> None:  # noqa: F821
    """Copy chunk by chunk."""
    rows, columns = array.chunks[1:]
    for y in range(0, array.shape[1], rows):
        for x in range(0, array.shape[2], columns):
            block = encoding.encode(array[:, y:y + rows, x:x + columns])
            values = block.astype(np.float32) if encoding.dtype == "float16" else block
            file.write(values, window=Window(x, y, block.shape[2], block.shape[1]))
