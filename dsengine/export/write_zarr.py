"""Embeddings as Zarr v3 that xarray opens: named dimensions, coordinates, CF attributes, and the CRS as CF and GeoZarr have it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dsengine.export.encode import Encoding
from dsengine.export.grid import Grid
from dsengine.export.stage import Field, Stage, make_array

CONVENTIONS = "CF-1.11"


def write_raster(stage: Stage, out: Path, *, grid: Grid, encoding: Encoding, facts: Mapping[str, Any]) -> None:
    """`embedding` (feature, y, x) and `data_percent` (y, x) with x and y of the cells' centres."""
    group = _encoded(stage, encoding)
    for name, values in (("x", grid.x()), ("y", grid.y())):
        _coordinate(group, name, values, {"axis": name.upper(), **_AXES[grid.crs.is_geographic, name]})
    _coordinate(group, "feature", np.arange(group["embedding"].shape[0]), {"long_name": "feature of the encoder", "units": "1"})
    reference = group.create_array("spatial_ref", shape=(), dtype="int64", dimension_names=(), overwrite=True)
    reference.attrs.update(_reference(grid))
    group["embedding"].attrs.update({"long_name": "embedding", "units": "1", "grid_mapping": "spatial_ref", **encoding.attributes()})
    group["data_percent"].attrs.update({"long_name": "pixels of the cell with data in every band", "units": "%", "grid_mapping": "spatial_ref"})
    _finish(group, stage, out, facts)


def write_table(stage: Stage, out: Path, *, columns: Mapping[str, np.ndarray], encoding: Encoding, facts: Mapping[str, Any]) -> None:
    """`embedding` (patch, feature), or (patch, feature, row, column) of dense maps, with one coordinate a column of the corpus's index."""
    group = _encoded(stage, encoding)
    for name, values in columns.items():
        strings = values.dtype.kind in "OUT"
        array = group.create_array(name, shape=values.shape, dtype=str if strings else values.dtype, dimension_names=("patch",), overwrite=True)
        array[...] = values.astype(object) if strings else values
        array.attrs.update(_COLUMN_ATTRS.get(name, {}))
    group["embedding"].attrs.update({"long_name": "embedding", "units": "1", "coordinates": " ".join(columns), **encoding.attributes()})
    _finish(group, stage, out, facts)


_AXES = {
    (False, "x"): {"standard_name": "projection_x_coordinate", "units": "m"}, (False, "y"): {"standard_name": "projection_y_coordinate", "units": "m"},
    (True, "x"): {"standard_name": "longitude", "units": "degrees_east"}, (True, "y"): {"standard_name": "latitude", "units": "degrees_north"},
}
_COLUMN_ATTRS = {
    "lon": {"standard_name": "longitude", "units": "degrees_east"}, "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "x": {"long_name": "easting of the upper left corner", "units": "m"}, "y": {"long_name": "northing of the upper left corner", "units": "m"},
    "epsg": {"long_name": "EPSG code of x and y"}, "id": {"long_name": "row in the corpus"},
    "data_percent": {"long_name": "pixels of the patch with data in every band", "units": "%"},
}


def _encoded(stage: Stage, encoding: Encoding) -> zarr.Group:
    """The group that becomes the product: the stage's own, or a copy in another number type, made chunk by chunk."""
    if encoding.dtype == "float32":
        return stage.group
    group = zarr.open_group(stage.folder / "coded.zarr", mode="w", zarr_format=3)
    source = stage.group["embedding"]
    field = Field(source.shape, source.chunks, encoding.dtype, source.metadata.dimension_names)
    target = make_array(group, "embedding", field, fill=encoding.nodata)
    for start in np.ndindex(*(-(-n // c) for n, c in zip(source.shape, source.chunks, strict=True))):
        block = tuple(slice(k * c, (k + 1) * c) for k, c in zip(start, source.chunks, strict=True))
        target[block] = encoding.encode(source[block])
    if "data_percent" in stage.group:
        percent = stage.group["data_percent"]
        make_array(group, "data_percent", Field(percent.shape, percent.chunks, "uint8", percent.metadata.dimension_names))[...] = percent[...]
    return group


def _coordinate(group: zarr.Group, name: str, values: np.ndarray, attributes: Mapping[str, str]) -> None:
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=(name,), overwrite=True)
    array[...] = values
    array.attrs.update(attributes)


def _reference(grid: Grid) -> dict[str, Any]:
    t = grid.transform
    epsg = grid.crs.to_epsg()
    return {"crs_wkt": grid.crs.to_wkt(), "spatial_ref": grid.crs.to_wkt(), "GeoTransform": " ".join(f"{v!r}" for v in (t.c, t.a, t.b, t.f, t.d, t.e)),
            **({"epsg": epsg} if epsg else {})}


def _finish(group: zarr.Group, stage: Stage, out: Path, facts: Mapping[str, Any]) -> None:
    group.attrs.update({"Conventions": CONVENTIONS, "title": "embeddings by dsengine", "dsengine": json.loads(json.dumps(facts))})
    os.replace(stage.folder / ("data.zarr" if group.store == stage.group.store else "coded.zarr"), out)
