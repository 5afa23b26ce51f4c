"""zarr.json files and index columns of a corpus, made by zarr-python in memory and then written durably."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from dsengine.corpus.bitpack import BitpackCodec
from dsengine.corpus.manifest import MANIFEST, digest, sealed
from dsengine.corpus.schema import NODATA, VERSION, LabelSpec, Layout
from dsengine.corpus.shards import BITPACK, BLOSC_BLOCK, bitpack_nodata, codec_of
from dsengine.corpus.storage import Storage

COLUMN_ROWS = 65536  # rows in one chunk of an index column


def serializer(codec: str, dtype: np.dtype) -> Any:
    """First codec of an image array or class map; must agree with `shards.encoder`."""
    return BitpackCodec(predictor=BITPACK[codec], nodata=bitpack_nodata(dtype)) if codec in BITPACK else "auto"


def compressors(codec: str, itemsize: int) -> list[Any]:
    """Codecs after that; must agree with `shards.encoder`."""
    compress = {
        "lz4": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", blocksize=BLOSC_BLOCK, typesize=itemsize)],
        "zstd": [ZstdCodec(level=3)],
        "none": [],
        **dict.fromkeys(BITPACK, []),
    }[codec]
    return [*compress, Crc32cCodec()]


def corpus_store(layout: Layout, num_patches: int, *, root: Mapping[str, Any],
                 attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Buffer]:
    """Root group and empty image and class-map arrays, as the content of a store. `attributes` are added to those of the arrays they name."""
    content: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(content), attributes={"dsengine": {
        "version": VERSION, "num_patches": num_patches, "patch_size": layout.patch_size, "resolution_m": layout.resolution_m,
        "bands": [band._asdict() for band in layout.bands()], **root}})
    for spec in layout.arrays:
        side = layout.side(spec)
        described = {"bands": list(spec.bands), "units": spec.units, "scale_factor": spec.scale_factor, "add_offset": spec.add_offset,
                     "nodata": NODATA, "resolution_m": layout.resolution_m * spec.factor}
        _sharded(group, spec.name, (num_patches, len(spec.bands), side, side), layout, dtype="int16", fill_value=NODATA,
                 dimensions=("patch", "band", "y", "x"), attributes={**described, **attributes.get(spec.name, {})})
    labels = group.create_group("labels") if layout.labels else None
    for label in layout.labels:
        if label.kind == "classmap":
            _sharded(labels, label.name, (num_patches, layout.patch_size, layout.patch_size), layout, dtype=label.dtype,
                     fill_value=label.ignore or 0, dimensions=("patch", "y", "x"), attributes=label_attributes(label))
    return content


def add_columns(content: dict[str, Buffer], columns: Mapping[str, np.ndarray], *, folder: str,
                attributes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write whole columns, (N,) or (N, K), as arrays `folder`/name: zstd and crc32c, 65536 rows a chunk."""
    group = zarr.open_group(MemoryStore(content), mode="a").require_group(folder)
    for name, column in columns.items():
        dtype = str if column.dtype.kind in "OTU" else column.dtype
        array = group.create_array(
            name, shape=column.shape, chunks=(max(1, min(COLUMN_ROWS, len(column))), *column.shape[1:]), dtype=dtype,
            compressors=[ZstdCodec(level=3), Crc32cCodec()], dimension_names=("patch", "class")[:column.ndim],
            attributes=dict((attributes or {}).get(name, {})))
        array[...] = column


def label_attributes(label: LabelSpec) -> dict[str, Any]:
    """Attributes of labels/<name>."""
    return {"kind": label.kind, "classes": {str(value): name for value, name in label.classes.items()}, "ignore": label.ignore}


def dump(content: Mapping[str, Buffer], storage: Storage) -> None:
    """Write every key, the root's own zarr.json last: it is what says that the corpus is complete. A complete one gets its manifest before that."""
    data = {key: content[key].to_bytes() for key in sorted(content.keys() - {"zarr.json"})}
    storage.concurrently(lambda item: storage.put(item[0], [item[1]]), data.items())
    root = content["zarr.json"].to_bytes()
    if json.loads(root)["attributes"]["dsengine"].get("complete"):
        manifest, root = sealed(storage, root, {key: digest(value) for key, value in data.items()})
        storage.put(MANIFEST, [manifest])
    storage.put("zarr.json", [root])


def _sharded(group: zarr.Group, name: str, shape: tuple[int, ...], layout: Layout, *, dtype: str, fill_value: int,
             dimensions: tuple[str, ...], attributes: Mapping[str, Any]) -> None:
    codec = codec_of(layout.codec, np.dtype(dtype))
    group.create_array(
        name, shape=shape, chunks=(1, *shape[1:]), shards=(layout.shard_patches, *shape[1:]), dtype=dtype, fill_value=fill_value,
        serializer=serializer(codec, np.dtype(dtype)), compressors=compressors(codec, np.dtype(dtype).itemsize), dimension_names=dimensions,
        attributes=dict(attributes))
