"""Embedding one scene: tile by tile into a stage, then into the format that was asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dsengine.errors import UsageError
from dsengine.export import write_parquet, write_tiff, write_zarr
from dsengine.export.compute import MIN_DATA, compute, grid_shape
from dsengine.export.encode import DTYPES, encoding
from dsengine.export.facts import facts, is_finished, with_encoding
from dsengine.export.grid import Grid, cell_grid
from dsengine.export.model import Model
from dsengine.export.scene import Scene, opened
from dsengine.export.stage import Field, Stage, staged
from dsengine.export.tiles import Rule, tile_side, tiles

TILE_PATCHES = 8  # a side of a stored chunk, where cells are patches
_WRITERS = {".zarr": write_zarr.write_raster, ".tif": write_tiff.write_raster, ".tiff": write_tiff.write_raster, ".parquet": write_parquet.write_raster}


def embed_scene(model: Model, scene: Scene, rule: Rule, out: Path, *, dtype: str, device: torch.device, picture: bool,
                progress: Callable[[int, int], None] | None) -> None:
    """Write the embedding of `scene` to `out`; goes on where an earlier call was stopped, and does nothing where it was not."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: legal: {', '.join(DTYPES)}")
    shape = grid_shape(rule, scene.shape)
    grid = cell_grid(shape, scene.crs, scene.transform, rule.cells.stride)
    found = facts(model, kind="raster", source=scene.fingerprint(), rule={**rule.described(), "min_data": MIN_DATA, "tile_cells": _side(rule)})
    if not is_finished(out, found, dtype):
        with staged(out, found, _fields(rule, shape)) as stage:
            low, high = _fill(model, scene, rule, stage, shape=shape, device=device, progress=progress)
            coding = encoding(dtype, low, high)
            _WRITERS[out.suffix](stage, out, grid=grid, encoding=coding, facts=with_encoding(found, coding))
    if picture:
        from dsengine.export.picture import draw_scene

        draw_scene(out, scene, grid, nodata=model.contract.nodata, bands=[band.name for band in model.contract.bands],
                   scale=model.contract.scale)


def _side(rule: Rule) -> int:
    return TILE_PATCHES if rule.mode == "patches" else tile_side(rule.cells)


def _fields(rule: Rule, shape: tuple[int, int]) -> dict[str, Field]:
    side = tuple(min(_side(rule), n) for n in shape)
    return {"embedding": Field((rule.cells.dim, *shape), (rule.cells.dim, *side), "float32", ("feature", "y", "x")),
            "data_percent": Field(shape, side, "uint8", ("y", "x"))}


def _fill(model: Model, scene: Scene, rule: Rule, stage: Stage, *, shape: tuple[int, int], device: torch.device,
          progress: Callable[[int, int], None] | None) -> tuple[float, float]:
    """Compute what is not there yet; returns the lowest and highest value of all."""
    every = list(tiles(shape, _side(rule)))
    embedding, percent = stage.group["embedding"], stage.group["data_percent"]
    low, high = np.inf, -np.inf
    with opened(scene, model.contract.nodata) as reader:
        for count, tile in enumerate(every, start=1):
            place = slice(tile.rows.start, tile.rows.stop), slice(tile.columns.start, tile.columns.stop)
            if tile.number in stage.done:
                values = embedding[(slice(None), *place)]
            else:
                done = compute(model, rule, source=reader, tile=tile, device=device)
                values = done.embedding
                embedding[(slice(None), *place)], percent[place] = values, done.data_percent
                stage.finish(tile.number)
            if np.isfinite(values).any():
                low, high = min(low, float(np.nanmin(values))), max(high, float(np.nanmax(values)))
            if progress is not None:
                progress(count, len(every))
    return (low, high) if low <= high else (0.0, 0.0)

