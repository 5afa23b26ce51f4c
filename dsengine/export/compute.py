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


class Work(NamedTuple):
    """A tile, the raster it is of, and the pixels that were read for it."""

    tile: Tile
    count: tuple[int, int]  # rows and columns of cells of the raster
    shape: tuple[int, int]  # its pixels
    area: tuple[Span, Span]  # pixel rows and columns that were read
    stored: np.ndarray  # (C, rows, columns) int16


def grid_shape(rule: Rule, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells; of whole patches where cells are patches, at least one."""
    if rule.mode == "patches":
        return tuple(max(1, side // rule.cells.stride) for side in shape)
    return tuple(rule.cells.count(side) for side in shape)


def compute(model: Model, rule: Rule, *, source: Pixels, tile: Tile, device: torch.device) -> Computed:
    """The cells of `tile`, float32; the encoder does not run where no cell has data. RunError for features that are not finite."""
    count = grid_shape(rule, source.shape)
    area = tuple(_pixels(rule, span, count=n, side=side) for span, n, side in zip(_needed(rule, tile, count), count, source.shape, strict=True))
    work = Work(tile, count, source.shape, area, source.read(*area))
    share = _data_share(rule, work, nodata=model.contract.nodata)
    enough = share >= MIN_DATA
    if enough.any():
        with torch.inference_mode():
            embedding = {"exact": _exact, "blended": _blended, "patches": _patches}[rule.mode](model, rule, work=work, device=device)
        if not np.isfinite(embedding).all():
            raise RunError(f"the encoder gives numbers that are not finite in rows {tile.rows.start} to {tile.rows.stop}, columns {tile.columns.start} to "
                           f"{tile.columns.stop} of the cells: its weights are damaged")
        embedding[:, ~enough] = np.nan
    else:
        embedding = np.full((rule.cells.dim, tile.rows.size, tile.columns.size), np.nan, np.float32)
    return Computed(embedding, np.floor(share * 100 + 1e-9).astype(np.uint8))


def _needed(rule: Rule, tile: Tile, count: tuple[int, int]) -> tuple[Span, Span]:
    """The cells whose pixels have to be read."""
    axes = list(zip((tile.rows, tile.columns), count, strict=True))
    if rule.mode == "patches":
        return tile.rows, tile.columns
    if rule.mode == "exact":
        return tuple(with_margin(span, rule.cells, n) for span, n in axes)
    windows = [lattice(n, rule.window) for _, n in axes]
    chosen = [touching(w, span) for w, (span, _) in zip(windows, axes, strict=True)]
    return tuple(Span(w[found[0]].start, w[found[-1]].stop) for w, found in zip(windows, chosen, strict=True))


def _pixels(rule: Rule, span: Span, *, count: int, side: int) -> Span:
    """The pixels of cells `span`, of `count` cells on `side` pixels."""
    if rule.mode == "patches":  # a rest beyond the last whole patch is left out
        return Span(span.start * rule.cells.stride, min(span.stop * rule.cells.stride, side))
    return pixels(span, rule.cells, count, side)


def _data_share(rule: Rule, work: Work, *, nodata: int) -> np.ndarray:
    """(h, w) share of each cell's own pixels with data in every band."""
    spans, stride = (work.tile.rows, work.tile.columns), rule.cells.stride
    own = [_pixels(rule, span, count=n, side=side) for span, n, side in zip(spans, work.count, work.shape, strict=True)]
    inside = tuple(slice(o.start - a.start, o.stop - a.start) for o, a in zip(own, work.area, strict=True))
    valid = (work.stored[(slice(None), *inside)] != nodata).all(0).astype(np.float64)
    edges = [np.minimum(np.arange(span.size) * stride, o.size - 1) for span, o in zip(spans, own, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(valid, edges[0], axis=0), edges[1], axis=1)
    return sums / np.outer(*(np.diff(np.append(edge, o.size)) for edge, o in zip(edges, own, strict=True)))


def _exact(model: Model, rule: Rule, *, work: Work, device: torch.device) -> np.ndarray:
    """All that was read in one pass, without the margin."""
    dense = _encode(model, torch.from_numpy(work.stored)[None], device=device).dense[0]
    rows, columns = (slice(span.start - area.start // rule.cells.stride, span.stop - area.start // rule.cells.stride)
                     for span, area in zip((work.tile.rows, work.tile.columns), work.area, strict=True))
    return dense[:, rows, columns].float().cpu().numpy().copy()


def _blended(model: Model, rule: Rule, *, work: Work, device: torch.device) -> np.ndarray:
    """The weighted mean of all windows that touch the tile, summed in float64 so that the order of windows does not show."""
    tile, stored = work.tile, torch.from_numpy(work.stored)
    out = torch.zeros(rule.cells.dim, tile.rows.size, tile.columns.size, dtype=torch.float64)
    windows = [lattice(n, rule.window) for n in work.count]
    share = [weights(w, n) for w, n in zip(windows, work.count, strict=True)]
    chosen = [(y, x) for y in touching(windows[0], tile.rows) for x in touching(windows[1], tile.columns)]
    places = {(y, x): _window_pixels(rule, work, (windows[0][y], windows[1][x])) for y, x in chosen}
    for batch in _alike(places):
        stack = torch.stack([stored[:, places[pair][0], places[pair][1]] for pair in batch])
        for (y, x), dense in zip(batch, _encode(model, stack, device=device).dense.double().cpu(), strict=True):
            _add(out, dense * torch.from_numpy(np.outer(share[0][y], share[1][x])), tile=tile, window=(windows[0][y], windows[1][x]))
    return out.float().numpy()


def _window_pixels(rule: Rule, work: Work, window: tuple[Span, Span]) -> tuple[slice, slice]:
    """Where a window's pixels lie in what was read."""
    spans = [_pixels(rule, span, count=n, side=side) for span, n, side in zip(window, work.count, work.shape, strict=True)]
    return tuple(slice(span.start - area.start, span.stop - area.start) for span, area in zip(spans, work.area, strict=True))


def _add(out: Tensor, weighted: Tensor, *, tile: Tile, window: tuple[Span, Span]) -> None:
    """Add one window's weighted cells to those of the tile that it holds."""
    spans = (tile.rows, tile.columns)
    both = [Span(max(w.start, t.start), min(w.stop, t.stop)) for w, t in zip(window, spans, strict=True)]
    to = tuple(slice(b.start - t.start, b.stop - t.start) for b, t in zip(both, spans, strict=True))
    of = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(both, window, strict=True))
    out[(slice(None), *to)] += weighted[(slice(None), *of)]


def _alike(places: dict[tuple[int, int], tuple[slice, slice]]) -> Iterator[list[tuple[int, int]]]:
    """Windows of one size in pixels, as many as fit a batch: those at the raster's edge may be smaller by the rest."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for pair, (rows, columns) in places.items():
        groups.setdefault((rows.stop - rows.start, columns.stop - columns.start), []).append(pair)
    for (height, width), members in groups.items():
        most = max(1, BATCH_PIXELS // (height * width))
        yield from (members[k:k + most] for k in range(0, len(members), most))


def _patches(model: Model, rule: Rule, *, work: Work, device: torch.device) -> np.ndarray:
    """The pooled features of each patch."""
    side, rows, columns = rule.cells.stride, work.tile.rows.size, work.tile.columns.size
    stored = torch.from_numpy(work.stored)
    cut = [stored[:, y * side:(y + 1) * side, x * side:(x + 1) * side] for y in range(rows) for x in range(columns)]
    most = max(1, BATCH_PIXELS // (side * side))
    found = [_encode(model, torch.stack(cut[k:k + most]), device=device).pooled.float().cpu() for k in range(0, len(cut), most)]
    return torch.cat(found).T.reshape(-1, rows, columns).numpy().copy()


def _encode(model: Model, stored_BCHW: Tensor, *, device: torch.device) -> Features:
    x = normalised(stored_BCHW.to(device), model.contract)
    return model.encoder(x.contiguous(memory_format=torch.channels_last))
