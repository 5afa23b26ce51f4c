"""What a corpus holds, as plain numbers and strings: the one source of `corpus info`, as tables and as JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ShardingCodec

from dsengine.corpus.index import Corpus, Index
from dsengine.corpus.leakage import Leakage, leakage
from dsengine.corpus.manifest import MANIFEST
from dsengine.corpus.schema import SPLITS, UNKNOWN_TIME
from dsengine.corpus.series import SeriesCorpus, read_rows
from dsengine.corpus.series_schema import SERIES_INDEX
from dsengine.corpus.storage import Storage, storage_at
from dsengine.errors import RunError

SHARE_PATCHES = 256  # of a class map that are looked at for the shares of its classes


def facts(corpus: Corpus | SeriesCorpus, *, shares: bool = True) -> dict[str, Any]:
    """JSON: sizes in bytes, times in ISO 8601 UTC, None where something is unknown. `shares` reads labels."""
    storage = storage_at(corpus.path)
    columns = corpus.index._asdict() if isinstance(corpus, Corpus) else corpus.index
    attributes = corpus.attributes
    rows = len(corpus)
    arrays = {key: _array(storage, key, array) for key, array in _values(corpus).items()}
    labels = {name: _label(corpus, storage, name, array, shares) for name, array in corpus.labels.items()}
    return {
        "path": str(corpus.path), "kind": getattr(corpus, "kind", "patches"), "version": attributes.get("version"), "rows": rows,
        "patch_size": corpus.patch_size if isinstance(corpus, Corpus) else None,
        "resolution_m": corpus.resolution_m if isinstance(corpus, Corpus) else None,
        "sensors": list(corpus.sensors), "bands": [_band(corpus, band) for band in corpus.bands], "arrays": arrays, "labels": labels,
        "splits": {name: len(corpus.rows(name)) for name in SPLITS}, "split_made_by": attributes.get("splits"),
        "leakage": _leakage(corpus), "quarantine": int(np.count_nonzero(columns["quarantine"])),
        "extent": _extent(columns), "times": _times(corpus, columns),
        "nodata": {"mean": float(columns["nodata_fraction"].mean()), "rows": int(np.count_nonzero(columns["nodata_fraction"]))},
        "cloud": _spread(columns["cloud_fraction"]) if "cloud_fraction" in columns else None,
        "extra_columns": _extra(corpus), "neighbours": _neighbours(corpus, storage),
        "faults": attributes.get("faults", []), "num_faults": attributes.get("num_faults", len(attributes.get("faults", []))),
        "made_by": attributes.get("made_by", {}), "sealed": storage.exists(MANIFEST),
        "bytes": {"arrays": sum(array["stored_bytes"] for array in arrays.values()), "index": sum(storage.sizes("index")),
                  "labels": sum(storage.sizes("labels")), "all": sum(storage.sizes())},
    }


def _values(corpus: Corpus | SeriesCorpus) -> Mapping[str, zarr.Array]:
    """The arrays of sensors by key."""
    return corpus.arrays if isinstance(corpus, Corpus) else {f"{corpus.kind}/{sensor}": array for sensor, array in corpus.values.items()}


def _array(storage: Storage, key: str, array: zarr.Array) -> dict[str, Any]:
    codec = array.metadata.codecs[0]
    sharded = isinstance(codec, ShardingCodec)
    inner = [part.to_dict() for part in (codec.codecs if sharded else array.metadata.codecs)]
    stored = sum(storage.sizes(f"{key}/c"))
    raw = int(np.prod(array.shape)) * array.dtype.itemsize
    return {"shape": list(array.shape), "dtype": str(array.dtype), "codec": ", ".join(map(_codec, inner)),
            "chunk": list(codec.chunk_shape if sharded else array.chunks), "shard_rows": int(array.metadata.chunk_grid.chunk_shape[0]) if sharded else None,
            "stored_bytes": stored, "raw_bytes": raw, "ratio": raw / stored if stored else None}


def _codec(codec: Mapping[str, Any]) -> str:
    """`blosc lz4 5`, `zstd 3`, `dsengine.bitpack lorenzo`, `crc32c`."""
    configuration = codec.get("configuration", {})
    details = [str(configuration[key]) for key in ("cname", "clevel", "level", "predictor") if key in configuration]
    return " ".join([codec["name"], *details])


def _band(corpus: Corpus | SeriesCorpus, band: Any) -> dict[str, Any]:
    attrs = dict((corpus.arrays[band.array] if isinstance(corpus, Corpus) else corpus.values[band.sensor]).attrs)
    measured = {key: values[band.channel] if (values := attrs.get(key)) else None for key in ("mean", "std", "count", "saturated")}
    return {"name": band.name, "sensor": band.sensor, "array": band.array, "resolution_m": attrs["resolution_m"], "units": attrs["units"], **measured}


def _label(corpus: Corpus | SeriesCorpus, storage: Storage, name: str, array: zarr.Array, shares: bool) -> dict[str, Any]:
    attrs = dict(array.attrs)
    classes = {str(value): text for value, text in attrs.get("classes", {}).items()}
    found = {"kind": attrs.get("kind"), "classes": classes, "ignore": attrs.get("ignore"), "stored_bytes": sum(storage.sizes(f"labels/{name}/c"))}
    return {**found, **(_shares(corpus, name, array, classes) if shares else {})}


def _shares(corpus: Corpus | SeriesCorpus, name: str, array: zarr.Array, classes: Mapping[str, str]) -> dict[str, Any]:
    """`shares`: value -> fraction of patches or pixels; `looked_at`: patches read for that. Of large class maps a sample, evenly spread."""
    rows = np.arange(len(corpus))
    if array.attrs.get("kind") == "classmap" and len(rows) > SHARE_PATCHES:
        rows = rows[np.arange(SHARE_PATCHES) * len(rows) // SHARE_PATCHES]
    try:
        values = read_rows(array, rows, corpus.path / "labels" / name)
    except RunError:
        return {"shares": None, "looked_at": 0}  # `verify` says more
    if array.attrs.get("kind") == "multilabel":
        return {"shares": dict(zip(classes, (values != 0).mean(axis=0).tolist(), strict=False)), "looked_at": len(rows)}
    found, counts = np.unique(values, return_counts=True)
    return {"shares": {str(int(value)): int(count) / values.size for value, count in zip(found, counts, strict=True)}, "looked_at": len(rows)}


def _leakage(corpus: Corpus | SeriesCorpus) -> list[dict[str, Any]]:
    found: list[Leakage | None] = [leakage(corpus, name) for name in ("val", "test")] if isinstance(corpus, Corpus) else []
    return [{**measured._asdict(), "sentence": measured.sentence()} for measured in found if measured is not None]


def _extent(columns: Mapping[str, np.ndarray]) -> dict[str, float] | None:
    lon, lat = columns["lon"], columns["lat"]
    known = np.isfinite(lon) & np.isfinite(lat)
    if not known.any():
        return None
    return {"west": float(lon[known].min()), "east": float(lon[known].max()), "south": float(lat[known].min()), "north": float(lat[known].max())}


def _times(corpus: Corpus | SeriesCorpus, columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    found = {name.removeprefix("time_"): np.asarray(columns[name]) for name in columns if name.startswith("time_")}
    if isinstance(corpus, SeriesCorpus):
        found |= {sensor: read_rows(array, slice(None), corpus.path / "time" / sensor).ravel() for sensor, array in corpus.time.items()}
    return {name: _time_range(times) for name, times in found.items() if name in corpus.sensors or isinstance(corpus, SeriesCorpus)}


def _time_range(times: np.ndarray) -> dict[str, Any]:
    known = times[times != UNKNOWN_TIME]
    first, last = (_iso(known.min()), _iso(known.max())) if known.size else (None, None)
    return {"first": first, "last": last, "unknown": int(len(times) - len(known))}


def _iso(time_ns: np.integer) -> str:
    return datetime.fromtimestamp(int(time_ns) // 10**9, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _spread(values: np.ndarray) -> dict[str, Any] | None:
    known = values[np.isfinite(values)]
    return {"mean": float(known.mean()), "unknown": int(len(values) - len(known))} if known.size else None


def _extra(corpus: Corpus | SeriesCorpus) -> dict[str, str]:
    """Index columns beyond the standard ones -> dtype."""
    if isinstance(corpus, Corpus):
        return {name: _dtype(array) for name, array in corpus.columns.items()}
    return {name: _dtype(array) for name, array in corpus.index.arrays.items() if name not in SERIES_INDEX and name not in Index._fields}


def _dtype(array: zarr.Array) -> str:
    return "str" if array.dtype.kind in "OTU" else str(array.dtype)


def _neighbours(corpus: Corpus | SeriesCorpus, storage: Storage) -> dict[str, Any] | None:
    if not isinstance(corpus, Corpus) or not storage.exists("neighbours/zarr.json"):
        return None
    attributes = corpus.neighbours.attributes
    return {key: attributes.get(key) for key in ("radius_km", "pairs", "where")}
