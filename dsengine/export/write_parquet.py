"""Embeddings as GeoParquet 1.1 points, WGS 84 longitude and latitude: a row a cell or patch with data."""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.corpus.build.optional import need
from dsengine.export.encode import Encoding
from dsengine.export.grid import Grid
from dsengine.export.stage import Stage

_POINT = np.dtype([("order", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])  # well-known binary of a point


def write_raster(stage: Stage, out: Path, *, grid: Grid, encoding: Encoding, facts: Mapping[str, Any]) -> None:
    """Rows in the order of tiles; `id` counts the cells of the grid row by row."""
    _write(stage, out, _raster_rows(stage, grid), encoding=encoding, facts=facts)


def write_table(stage: Stage, out: Path, *, columns: Mapping[str, np.ndarray], encoding: Encoding, facts: Mapping[str, Any]) -> None:
    """Rows in the order of the corpus, with the columns of its index."""
    _write(stage, out, _table_rows(stage, columns), encoding=encoding, facts=facts)


def _raster_rows(stage: Stage, grid: Grid) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    array, percent = stage.group["embedding"], stage.group["data_percent"]
    height, width = array.chunks[1:]
    for y in range(0, array.shape[1], height):
        for x in range(0, array.shape[2], width):
            block = array[:, y:y + height, x:x + width]
            rows, columns = np.nonzero(np.isfinite(block[0]))
            if len(rows):
                lon, lat = grid.lonlat(rows + y, columns + x)
                found = {"id": (rows + y) * grid.shape[1] + columns + x, "row": rows + y, "column": columns + x, "lon": lon, "lat": lat,
                         "x": grid.x()[columns + x], "y": grid.y()[rows + y], "data_percent": percent[y:y + height, x:x + width][rows, columns]}
                yield found, block[:, rows, columns].T


def _table_rows(stage: Stage, columns: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    array = stage.group["embedding"]
    for start in range(0, array.shape[0], array.chunks[0]):
        block = array[start:start + array.chunks[0]]
        kept = np.isfinite(block[:, 0])
        if kept.any():
            yield {name: values[start:start + len(block)][kept] for name, values in columns.items()}, block[kept]


def _write(stage: Stage, out: Path, blocks: Iterator[tuple[dict[str, np.ndarray], np.ndarray]], *, encoding: Encoding,
           facts: Mapping[str, Any]) -> None:
    pa, pq = need("pyarrow", "export"), need("pyarrow.parquet", "export")
    path, writer = stage.folder / "points.parquet", None
    box = [np.inf, np.inf, -np.inf, -np.inf]
    try:
        for columns, values in blocks:
            lon, lat = columns["lon"], columns["lat"]
            box = [min(box[0], lon.min()), min(box[1], lat.min()), max(box[2], lon.max()), max(box[3], lat.max())]
            flat = pa.array(np.ascontiguousarray(encoding.encode(values)).reshape(-1))
            parts = {**{name: pa.array(column) for name, column in columns.items()},
                     "embedding": pa.FixedSizeListArray.from_arrays(flat, values.shape[1]), "geometry": pa.array(_points(lon, lat), pa.binary())}
            table = pa.table(parts)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is None:
            raise _empty(out)
        writer.add_key_value_metadata({"geo": json.dumps(_geo(box)), "dsengine": json.dumps(facts)})
    finally:
        if writer is not None:
            writer.close()
    os.replace(path, out)


def _empty(out: Path) -> Exception:
    from dsengine.errors import RunError

    return RunError(f"{out}: no cell has data, so there are no points to write")


def _points(lon: np.ndarray, lat: np.ndarray) -> list[bytes]:
    records = np.empty(len(lon), _POINT)
    records["order"], records["kind"], records["x"], records["y"] = 1, 1, lon, lat
    data, size = records.tobytes(), struct.calcsize("<BIdd")
    return [data[k:k + size] for k in range(0, len(data), size)]


def _geo(box: list[float]) -> dict[str, Any]:
    """Without `crs`: by the standard that is longitude and latitude in WGS 84."""
    column = {"encoding": "WKB", "geometry_types": ["Point"], "bbox": [float(v) for v in box]}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
