"""A sheet of time series: each row's bands against time, in physical units, one scale for the sheet."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from dsengine.corpus.schema import SPLITS, UNKNOWN_TIME
from dsengine.corpus.series import SeriesCorpus, read_rows
from dsengine.errors import UsageError

ACROSS = 3
MAX_TITLE = 42  # characters of labels above a plot
COLOURS = ("#3566a8", "#c0392b", "#2f8f5b", "#e3a02b", "#7a5195", "#00a0a8", "#8c564b", "#d1518f", "#6b8e23", "#555555", "#ff7c43", "#1f78b4", "#a05d56")


def series_sheet(corpus: SeriesCorpus, rows: np.ndarray) -> Figure:
    """The figure of the first sensor of `rows`. UsageError for a corpus of pixels, which have no picture."""
    if corpus.kind != "series":
        raise UsageError(f"{corpus.path} holds {corpus.kind}, which make no picture; legal: a corpus of patches or series")
    sensor = corpus.sensors[0]
    bands = [band.name for band in corpus.bands if band.sensor == sensor]
    attrs, found = dict(corpus.series[sensor].attrs), corpus.read_series(rows, sensor)
    physical = np.where(found.values == attrs["nodata"], np.nan, found.values * attrs["scale_factor"] + attrs["add_offset"])
    physical[~found.valid] = np.nan
    down = -(-len(rows) // ACROSS)
    figure = Figure((11.0, 1.9 * down + 0.9), dpi=150, facecolor="white", layout="constrained")
    grid = figure.subplots(down, min(ACROSS, len(rows)), squeeze=False, sharey=True).ravel()
    for axes, row, values, times in zip(grid, rows, physical, found.time, strict=False):
        known = times != UNKNOWN_TIME
        x = [datetime.fromtimestamp(int(t) / 1e9, tz=UTC) for t in times[known]] if known.any() else np.arange(len(times))
        for number, name in enumerate(bands):
            y = values[known, number] if known.any() else values[:, number]
            axes.plot(x, y, color=COLOURS[number % len(COLOURS)], linewidth=0.9, marker=".", markersize=2.5, label=name)
        _style(axes, f"{row}  {SPLITS[corpus.index['split'][row]]}  {_labels(corpus, int(row))}", dated=bool(known.any()))
    for axes in grid[len(rows):]:
        axes.set_visible(False)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(13, len(names)), fontsize=7, frameon=False)
    figure.suptitle(f"{corpus.path.name}   {sensor} in {attrs['units']}, {len(rows)} of {len(corpus):,} series", fontsize=10, weight="bold", x=0.01, ha="left")
    return figure


def _style(axes: Any, title: str, *, dated: bool) -> None:
    axes.set_title(title, fontsize=7, loc="left", color="#333333")
    axes.tick_params(labelsize=6, color="#999999", labelcolor="#444444")
    axes.grid(color="#eceef0", linewidth=0.6)
    for spine in axes.spines.values():
        spine.set(color="#bbbbbb", linewidth=0.6)
    if dated:
        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _labels(corpus: SeriesCorpus, row: int) -> str:
    found = []
    for name, array in corpus.labels.items():
        classes = {int(value): text for value, text in array.attrs["classes"].items()}
        values = read_rows(array, np.array([row]), corpus.path / "labels" / name)[0]
        held = [int(values)] if array.attrs.get("kind") == "class" else [list(classes)[k] for k in np.flatnonzero(values)]
        found.append(", ".join(classes.get(value, str(value)) for value in held))
    text = "  ".join(dict.fromkeys(found))
    return text if len(text) <= MAX_TITLE else f"{text[:MAX_TITLE - 3]}..."
