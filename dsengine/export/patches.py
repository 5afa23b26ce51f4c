"""Embedding a corpus: block by block of its rows into a stage, then a table of patches."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsengine.corpus import Band, Corpus
from dsengine.corpus.manifest import MANIFEST
from dsengine.corpus.schema import Contract
from dsengine.data.layout import chunk_layout
from dsengine.data.pipeline import open_pipeline
from dsengine.errors import UsageError
from dsengine.export import write_parquet, write_zarr
from dsengine.export.encode import DTYPES, encoding
from dsengine.export.facts import facts, is_finished, with_encoding
from dsengine.export.model import Model, normalised, probe
from dsengine.export.stage import Field, Stage, staged

BLOCK_ROWS = 256  # of a stored chunk, done together
BATCH_PIXELS = 1 << 20  # that go through the encoder together
_COLUMNS = ("id", "lon", "lat", "epsg", "x", "y", "split", "time_s2", "time_s1", "nodata_fraction", "cloud_fraction", "source")


def embed_corpus(model: Model, corpus: Corpus, out: Path, *, pooled: bool, dtype: str, where: str | None, device: torch.device, picture: bool,
                 progress: Callable[[int, int], None] | None) -> Path:
    """One vector a patch, or its dense map, of all patches that are not in quarantine and meet `where`. Returns `out`."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: legal: {', '.join(DTYPES)}")
    legal = [".zarr", ".parquet"] if pooled else [".zarr"]
    if out.suffix not in legal:
        raise UsageError(f"--out {out}: {'embeddings' if pooled else 'dense maps'} of a corpus; legal: a name that ends in {', '.join(legal)}")
    check_bands(corpus, model.contract)
    rows = corpus.rows("all", where)
    if not len(rows):
        raise UsageError(f"--where {where}: no patch of {corpus.path} meets it")
    sample = _shape(model, corpus, device, pooled=pooled)
    rule = {"mode": "pooled" if pooled else "dense", "patch_px": corpus.patch_size, "cells": list(sample[1:]), "block_rows": BLOCK_ROWS}
    found = facts(model, kind="patches", source=_source(corpus, rows), rule=rule)
    if not is_finished(out, found, dtype):
        dimensions = ("patch", "feature") if pooled else ("patch", "feature", "row", "column")
        field = Field((len(rows), *sample), (min(BLOCK_ROWS, len(rows)), *sample), "float32", dimensions)
        with staged(out, found, {"embedding": field}) as stage:
            coding = encoding(dtype, *_fill(model, corpus, rows, stage, pooled=pooled, device=device, progress=progress))
            columns = {name: getattr(corpus.index, name)[rows] for name in _COLUMNS}
            writer = {".zarr": write_zarr, ".parquet": write_parquet}[out.suffix]
            writer.write_table(stage, out, columns=columns, encoding=coding, facts=with_encoding(found, coding))
    if picture:
        from dsengine.export.picture import draw_corpus

        draw_corpus(out, corpus)
    return out


def check_bands(corpus: Corpus, contract: Contract) -> None:
    """UsageError unless the corpus has the contract's bands in its units and scale, on its ground resolution."""
    there = {band.name: dict(corpus.arrays[band.array].attrs) for band in corpus.bands}
    legal = [band.name for band in contract.bands]
    if missing := [name for name in legal if name not in there]:
        raise UsageError(f"--corpus {corpus.path}: bands {', '.join(there)}: {', '.join(missing)} missing; legal: corpora with all of {', '.join(legal)}")
    for name, *want in zip(legal, contract.units, contract.scale, contract.offset, strict=True):
        have = [there[name][key] for key in ("units", "scale_factor", "add_offset")]
        if have != want or there[name]["nodata"] != contract.nodata:
            raise UsageError(f"--corpus {corpus.path}: {name} is stored as {have}, nodata {there[name]['nodata']}; legal: {want}, {contract.nodata}")
    if abs(corpus.resolution_m / contract.resolution_m - 1) > 0.01:
        raise UsageError(f"--corpus {corpus.path}: pixels of {corpus.resolution_m:g} m; legal: {contract.resolution_m:g} m")


def _source(corpus: Corpus, rows: np.ndarray) -> dict[str, object]:
    """The corpus's manifest covers its metadata and index; its chunks have checksums of their own."""
    manifest = hashlib.sha256(corpus.storage.get(MANIFEST)).hexdigest() if corpus.storage.exists(MANIFEST) else None
    return {"corpus": os.path.basename(str(corpus.path)), "manifest_sha256": manifest, "rows": len(rows),
            "rows_sha256": hashlib.sha256(rows.tobytes()).hexdigest()}


def _shape(model: Model, corpus: Corpus, device: torch.device, *, pooled: bool) -> tuple[int, ...]:
    """Of one patch's embedding."""
    side = corpus.patch_size
    found = probe(model.encoder, torch.zeros(1, len(model.contract.bands), side, side, device=device))
    if not pooled and found.dense is None:
        raise UsageError("encoder: it has no dense map; legal: pooled embeddings")
    return tuple((found.pooled if pooled else found.dense).shape[1:])


def _fill(model: Model, corpus: Corpus, rows: np.ndarray, stage: Stage, *, pooled: bool, device: torch.device,
          progress: Callable[[int, int], None] | None) -> tuple[float, float]:
    """Compute the blocks that are not there yet; returns the lowest and highest value of all."""
    bands = [next(b for b in corpus.bands if b.name == band.name) for band in model.contract.bands]
    arrays = list(dict.fromkeys(band.array for band in bands))
    layouts = [chunk_layout(corpus.arrays[name], root=corpus.path) for name in arrays]
    batch = max(1, min(BLOCK_ROWS, BATCH_PIXELS // corpus.patch_size**2))
    blocks, embedding, low, high = -(-len(rows) // BLOCK_ROWS), stage.group["embedding"], np.inf, -np.inf
    with open_pipeline(layouts, max_batch=batch, num_threads=max(1, min(8, len(os.sched_getaffinity(0)))), device=device) as pipeline:
        for block in range(blocks):
            mine = slice(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(rows)))
            if block in stage.done:
                values = embedding[mine]
            else:
                parts = [rows[k:min(k + batch, mine.stop)] for k in range(mine.start, mine.stop, batch)]
                values = np.concatenate([_encoded(model, pipeline, ids, bands, arrays, pooled=pooled, device=device) for ids in parts])
                embedding[mine] = values
                stage.finish(block)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            if progress is not None:
                progress(mine.stop, len(rows))
    return low, high


def _encoded(model: Model, pipeline: "Patches", ids: np.ndarray, bands: list[Band], arrays: list[str], *, pooled: bool,  # noqa: F821
             device: torch.device) -> np.ndarray:
    with pipeline.lease(ids) as raw, torch.inference_mode():
        stored = torch.stack([_upsampled(raw[arrays.index(band.array)][:, band.channel], band.factor) for band in bands], dim=1)
        found = model.encoder(normalised(stored.to(device), model.contract).contiguous(memory_format=torch.channels_last))
        return (found.pooled if pooled else found.dense).float().cpu().numpy()


def _upsampled(x_BHW: Tensor, factor: int) -> Tensor:
    return x_BHW if factor == 1 else x_BHW.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
