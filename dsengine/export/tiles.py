"""Which windows an area of cells is made of, and with which weights: the rule that decides what an embedding is.

Exact: an encoder whose cells see a bounded neighbourhood gets each tile with all the pixels that its cells depend on, and what comes out
is what the whole raster in one pass would give, up to rounding. No blending is needed, there are no seams.

Blended: an encoder that sees everything (attention) has no such result: what a cell becomes depends on the window. Windows of the
training size lie on one lattice for the whole raster, half a window apart, the last one pushed back to the edge; a cell is the mean of
the windows that hold it, weighted by sin^2 of its place in each, so a window's influence fades before it ends. Tiles only say which
cells are computed together: every tile evaluates all windows that touch it, and the result does not depend on tiles.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dsengine.export.model import Cells


WINDOW_PX = 1600  # a tile with its margin: 64 channels at half that side have 164 MB in float32
TILE_BYTES = 32 << 20  # of a tile's features in float32
LEAST_SIDE = 32  # cells


class Span(NamedTuple):
    """Cells start ... stop - 1 along one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.stop - self.start


class Tile(NamedTuple):
    """Cells that are computed and stored together; `number` counts row by row."""

    number: int
    rows: Span
    columns: Span


class Rule(NamedTuple):
    """How windows are laid; sides in cells."""

    mode: str  # exact | blended | patches
    cells: Cells
    window: int  # side of a window; exact: of a tile without its margin

    def described(self) -> dict[str, object]:
        """As stored beside the embedding."""
        c = self.cells
        step = {"exact": self.window, "blended": self.window // 2, "patches": self.window}[self.mode] * c.stride
        return {"mode": self.mode, "cell_px": c.stride, "window_px": self.window * c.stride, "step_px": step,
                "margin_cells": None if self.mode != "exact" else [c.before, c.after], "cell_sees_px": c.sees}


def tile_side(cells: Cells) -> int:
    """Cells a side that are computed and stored together, so that neither a tile with its margin nor its features fill the memory.

    The margin is computed twice: a ResNet18 of the paper's stem, 80 cells and 13 of margin, does 1.35 times the work of one pass.
    """
    margin = (cells.before or 0) + (cells.after or 0)
    fitting = min(WINDOW_PX // cells.stride - margin, int((TILE_BYTES / (4 * cells.dim)) ** 0.5), 512)
    return max(LEAST_SIDE, fitting // 16 * 16)


def tiles(shape: tuple[int, int], side: int) -> Iterator[Tile]:
    """All tiles of (rows, columns) cells, `side` cells each or less at the lower and right edge."""
    starts = [(y, x) for y in range(0, shape[0], side) for x in range(0, shape[1], side)]
    for number, (y, x) in enumerate(starts):
        yield Tile(number, Span(y, min(y + side, shape[0])), Span(x, min(x + side, shape[1])))


def with_margin(span: Span, cells: Cells, count: int) -> Span:
    """`span` and the cells whose pixels reach into it, of `count` there are."""
    return Span(max(0, span.start - cells.before), min(count, span.stop + cells.after))


def pixels(span: Span, cells: Cells, count: int, side: int) -> Span:
    """The pixels of `span`, of a raster of `side` pixels and `count` cells; the last cell takes the rest along."""
    return Span(span.start * cells.stride, side if span.stop == count else span.stop * cells.stride)


def lattice(count: int, window: int) -> list[Span]:
    """Windows of `window` cells (2 or more), half a window apart, over `count` cells; the last is pushed back to end with them."""
    if count <= window:
        return [Span(0, count)]
    step = window // 2
    starts = [*range(0, count - window, step), count - window]
    return [Span(start, start + window) for start in starts]


def weights(windows: list[Span], count: int) -> list[np.ndarray]:
    """(cells of the window,) float64 weights of each window along an axis; over every cell they sum to 1."""
    raw = [np.sin(np.pi * (np.arange(w.size) + 0.5) / w.size) ** 2 for w in windows]
    total = np.zeros(count)
    for window, weight in zip(windows, raw, strict=True):
        total[window.start:window.stop] += weight
    return [weight / total[window.start:window.stop] for window, weight in zip(windows, raw, strict=True)]


def touching(windows: list[Span], span: Span) -> list[int]:
    """Numbers of the windows that share a cell with `span`."""
    return [k for k, window in enumerate(windows) if window.start < span.stop and span.start < window.stop]
