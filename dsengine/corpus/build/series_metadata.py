"""zarr.json files of a corpus of series or pixels, made by zarr-python in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from dsengine.corpus.build.metadata import add_columns, compressors
from dsengine.corpus.schema import NODATA, UNKNOWN_TIME, VERSION
from dsengine.corpus.series_schema import SeriesLayout, SeriesSpec


def series_store(layout: SeriesLayout, num_rows: int, *, root: Mapping[str, Any],
                 attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Buffer]:
    """Root group and empty arrays, as the content of a store; shared times are written whole. `attributes` are added by sensor."""
    content: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(content), attributes={"dsengine": {
        "version": VERSION, "kind": layout.kind, "num_rows": num_rows, "bands": [band._asdict() for band in layout.bands()], **root}})
    for spec in layout.arrays:
        _values(group, layout, spec, num_rows, attributes.get(spec.sensor, {}))
        if spec.steps:
            _vector(group, f"valid/{spec.sensor}", layout, (num_rows, spec.steps), dtype="bool", fill_value=False,
                    attributes={"means": spec.valid})
        if spec.steps and not spec.time:
            _vector(group, f"time/{spec.sensor}", layout, (num_rows, spec.steps), dtype="int64", fill_value=UNKNOWN_TIME,
                    attributes={"units": "ns UTC"})
    shared = {spec.sensor: np.array([spec.time], np.int64) for spec in layout.arrays if spec.time}
    if shared:
        add_columns(content, shared, folder="time", attributes={name: {"units": "ns UTC"} for name in shared})
    return content


def _values(group: zarr.Group, layout: SeriesLayout, spec: SeriesSpec, num_rows: int, attributes: Mapping[str, Any]) -> None:
    described = {"bands": list(spec.bands), "units": spec.units, "scale_factor": spec.scale_factor, "add_offset": spec.add_offset,
                 "nodata": NODATA, "resolution_m": spec.resolution_m, **attributes}
    group.create_array(
        layout.array(spec), shape=(num_rows, *spec.row_shape), chunks=(layout.rows_a_chunk(spec), *spec.row_shape),
        shards=(layout.rows_a_block(), *spec.row_shape), dtype=spec.dtype, fill_value=NODATA,
        compressors=compressors(layout.codec, np.dtype(spec.dtype).itemsize),
        dimension_names=("series", "step", "band") if spec.steps else ("pixel", "band"), attributes=described)


def _vector(group: zarr.Group, name: str, layout: SeriesLayout, shape: tuple[int, int], *, dtype: str, fill_value: Any,
            attributes: Mapping[str, Any]) -> None:
    chunk = (layout.rows_a_block(), shape[1])
    group.create_array(name, shape=shape, chunks=chunk, shards=chunk, dtype=dtype, fill_value=fill_value,
                       compressors=[ZstdCodec(level=3), Crc32cCodec()], dimension_names=("series", "step"), attributes=dict(attributes))
