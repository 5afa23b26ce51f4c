"""From pixels to cells: the features of one tile of a raster, by the rule of `tiles`."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dsengine.encoders import Features
from dsengine.errors import RunError
from dsengine.export.model import Model, normalised
from dsengine.export.tiles import Rule, Span, Tile, lattice, pixels, touching, weights, with_margin

MIN_DATA = 0.5  # share of a cell's own pixels that must have data in every band; below it the cell is nodata
BATCH_PIXELS = 1 << 20  # of the windows that go through the encoder together


class Pixels(Protocol):
    """What pixels are read from: a raster."""

    shape: tuple[int, int]

    def read(self, rows: Span, columns: Span) -> np.ndarray:
        """(C, h, w) int16 stored integers in the order of the model's bands."""


class Computed(NamedTuple):
    """One tile."""

    embedding: np.ndarray  # (D, h, w) float32, NaN where there is no data
    data_percent: np.ndarray  # (h, w) uint8, pixels of the cell that have data in every band


def grid_shape(rule: Rule, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells; of whole patches where cells are patches, at least one."""
    if rule.mode == "patches":
        return tuple(max(1, side // rule.cells.stride) for side in shape)
    return tuple(rule.cells.count(side) for side in shape)


def compute(model: Model, rule: Rule, source: Pixels, tile: Tile, *, device: torch.device) -> Computed:
    """The cells of `tile`, float32; the encoder does not run where no cell has data."""
    count = grid_shape(rule, source.shape)
    spans = _needed(rule, tile, count)
    area = tuple(_pixels(rule, span, n, side) for span, n, side in zip(spans, count, source.shape, strict=True))
    stored = source.read(*area)
    share = _data_share(stored, model.contract.nodata, rule, tile, count, source.shape, area)
    enough = share >= MIN_DATA
    if enough.any():
        with torch.inference_mode():
            run = {"exact": _exact, "blended": _blended, "patches": _patches}[rule.mode]
            embedding = run(model, rule, torch.from_numpy(stored), tile, count, source.shape, area, device)
        if not np.isfinite(embedding).all():
            raise RunError(f"the encoder gives numbers that are not finite in rows {tile.rows.start} to {tile.rows.stop}, columns {tile.columns.start} to "
                           f"{tile.columns.stop} of the cells: its weights are damaged")
        embedding[:, ~enough] = np.nan
    else:
        embedding = np.full((rule.cells.dim, tile.rows.size, tile.columns.size), np.nan, np.float32)
    return Computed(embedding, np.floor(share * 100 + 1e-9).astype(np.uint8))


def _needed(rule: Rule, tile: Tile, count: tuple[int, int]) -> tuple[Span, Span]:
    """The cells whose pixels have to be read."""
    axes = zip((tile.rows, tile.columns), count, strict=True)
    if rule.mode == "exact":
        return tuple(with_margin(span, rule.cells, n) for span, n in axes)
    if rule.mode == "patches":
        return tile.rows, tile.columns
    found = [[w for w in (lattice(n, rule.window)[k] for k in touching(lattice(n, rule.window), span))] for span, n in axes]
    return tuple(Span(windows[0].start, windows[-1].stop) for windows in found)


def _pixels(rule: Rule, span: Span, count: int, side: int) -> Span:
    if rule.mode == "patches":  # a rest beyond the last whole patch is left out
        return Span(span.start * rule.cells.stride, min(span.stop * rule.cells.stride, side))
    return pixels(span, rule.cells, count, side)


def _data_share(stored: np.ndarray, nodata: int, rule: Rule, tile: Tile, count: tuple[int, int], shape: tuple[int, int],
                area: tuple[Span, Span]) -> np.ndarray:
    """(h, w) share of each cell's own pixels with data in every band."""
    own = [_pixels(rule, span, n, side) for span, n, side in zip((tile.rows, tile.columns), count, shape, strict=True)]
    inside = tuple(slice(o.start - a.start, o.stop - a.start) for o, a in zip(own, area, strict=True))
    valid = (stored[(slice(None), *inside)] != nodata).all(0).astype(np.float64)
    edges = [np.minimum(np.arange(span.size) * rule.cells.stride, o.size - 1) for span, o in zip((tile.rows, tile.columns), own, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(valid, edges[0], axis=0), edges[1], axis=1)
    sides = [np.diff(np.append(edge, o.size)) for edge, o in zip(edges, own, strict=True)]
    return sums / np.outer(*sides)


def _exact(model: Model, rule: Rule, stored: Tensor, tile: Tile, count: tuple[int, int], shape: tuple[int, int],
           area: tuple[Span, Span], device: torch.device) -> np.ndarray:
    dense = _encode(model, stored[None], device).dense[0]
    top, left = (a.start // rule.cells.stride for a in area)
    rows, columns = tile.rows, tile.columns
    return dense[:, rows.start - top:rows.stop - top, columns.start - left:columns.stop - left].float().cpu().numpy().copy()


def _blended(model: Model, rule: Rule, stored: Tensor, tile: Tile, count: tuple[int, int], shape: tuple[int, int],
             area: tuple[Span, Span], device: torch.device) -> np.ndarray:
    """The weighted mean of all windows that touch the tile, summed in float64 so that the order of windows does not show."""
    out = torch.zeros(rule.cells.dim, tile.rows.size, tile.columns.size, dtype=torch.float64)
    windows = [lattice(n, rule.window) for n in count]
    share = [weights(w, n) for w, n in zip(windows, count, strict=True)]
    chosen = [(y, x) for y in touching(windows[0], tile.rows) for x in touching(windows[1], tile.columns)]
    for batch in _alike(chosen, windows, rule, count, shape):
        cut = [[_pixels(rule, w[k], n, side) for w, k, n, side in zip(windows, pair, count, shape, strict=True)] for pair in batch]
        stack = torch.stack([stored[:, r.start - area[0].start:r.stop - area[0].start, c.start - area[1].start:c.stop - area[1].start]
                             for r, c in cut])
        for (y, x), dense in zip(batch, _encode(model, stack, device).dense.double().cpu(), strict=True):
            _add(out, dense, tile, windows[0][y], windows[1][x], share[0][y], share[1][x])
    return out.float().numpy()


def _add(out: Tensor, dense: Tensor, tile: Tile, rows: Span, columns: Span, weight_y: np.ndarray, weight_x: np.ndarray) -> None:
    """Add one window's weighted cells to those of the tile that it holds."""
    weighted = dense * torch.from_numpy(np.outer(weight_y, weight_x))
    both = [Span(max(w.start, t.start), min(w.stop, t.stop)) for w, t in ((rows, tile.rows), (columns, tile.columns))]
    to = tuple(slice(b.start - t.start, b.stop - t.start) for b, t in zip(both, (tile.rows, tile.columns), strict=True))
    of = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(both, (rows, columns), strict=True))
    out[(slice(None), *to)] += weighted[(slice(None), *of)]


def _alike(chosen: list[tuple[int, int]], windows: list[list[Span]], rule: Rule, count: tuple[int, int],
           shape: tuple[int, int]) -> Iterator[list[tuple[int, int]]]:
    """Windows of one size in pixels, as many as fit a batch: those at the raster's edge may be smaller by the rest."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for pair in chosen:
        size = tuple(_pixels(rule, w[k], n, side).size for w, k, n, side in zip(windows, pair, count, shape, strict=True))
        groups.setdefault(size, []).append(pair)
    for size, members in groups.items():
        most = max(1, BATCH_PIXELS // (size[0] * size[1]))
        yield from (members[k:k + most] for k in range(0, len(members), most))


def _patches(model: Model, rule: Rule, stored: Tensor, tile: Tile, count: tuple[int, int], shape: tuple[int, int],
             area: tuple[Span, Span], device: torch.device) -> np.ndarray:
    """The pooled features of each patch."""
    side, (rows, columns) = rule.cells.stride, (tile.rows.size, tile.columns.size)
    cut = [stored[:, y * side:(y + 1) * side, x * side:(x + 1) * side] for y in range(rows) for x in range(columns)]
    most = max(1, BATCH_PIXELS // (side * side))
    found = [_encode(model, torch.stack(cut[k:k + most]), device).pooled.float().cpu() for k in range(0, len(cut), most)]
    return torch.cat(found).T.reshape(-1, rows, columns).numpy().copy()


def _encode(model: Model, stored_BCHW: Tensor, device: torch.device) -> Features:
    x = normalised(stored_BCHW.to(device), model.contract)
    return model.encoder(x.contiguous(memory_format=torch.channels_last))
