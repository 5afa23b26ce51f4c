"""A contact sheet of patches: true colour, radar and class map side by side, one stretch for the whole sheet."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dsengine.corpus.colours import class_colours
from dsengine.corpus.index import Corpus
from dsengine.corpus.schema import SPLITS, UNKNOWN_TIME
from dsengine.corpus.series import read_rows
from dsengine.errors import UsageError

RGB = ("B04", "B03", "B02")
NODATA = (0.83, 0.66, 0.80)  # a colour that no stretch makes
PERCENTILES = (1.0, 99.0)
GAMMA = 0.5  # forest has 0.03 where snow has 0.9
CELL_INCH, TITLE_INCH, GAP_INCH = 1.55, 0.27, 0.10
MAX_PATCHES = 400


class Panel(NamedTuple):
    """One picture of every patch of the sheet."""

    name: str
    pictures: np.ndarray  # (n, H, W, 3) float in [0, 1]


def pick_rows(corpus: Any, *, rows: str | None, count: int, seed: int) -> np.ndarray:
    """Rows to show: as written in `rows` ("3,10-14"), else `count` of all splits, drawn by `seed`, ascending. UsageError."""
    if rows is None:
        if count < 1:
            raise UsageError(f"--count {count}: legal: 1 or more")
        usable = corpus.rows("all")
        found = np.sort(np.random.default_rng(seed).choice(usable, min(count, len(usable)), replace=False))
    else:
        found = np.array(_parsed(rows, len(corpus)), np.int64)
    if not 1 <= len(found) <= MAX_PATCHES:
        raise UsageError(f"{len(found)} patches do not make a sheet; legal: 1 to {MAX_PATCHES}")
    return found


def contact_sheet(corpus: Corpus, rows: np.ndarray, *, label: str | None = None) -> Figure:
    """The figure of patches `rows`. `label` names the class map to draw (default: the first). RunError for damaged patches."""
    classmaps = [name for name, array in corpus.labels.items() if array.attrs.get("kind") == "classmap"]
    if label is not None and label not in corpus.labels:
        raise UsageError(f"--label {label}: legal: {', '.join(corpus.labels) or 'none, the corpus has no labels'}")
    drawn = label if label in classmaps else None if label else next(iter(classmaps), None)
    panels = _sensor_panels(corpus, rows)
    legend: dict[str, str] = {}
    if drawn is not None:
        panel, legend = _label_panel(corpus, rows, drawn)
        panels.append(panel)
    return _sheet(corpus, rows, panels, legend)


def save(figures: Mapping[Path, Figure | None]) -> None:
    """Write each figure there is as PNG and print its path. UsageError for another suffix or a folder that cannot be written, before anything is."""
    for path in figures:
        if path.suffix.lower() != ".png":
            raise UsageError(f"--out {path}: legal: a name that ends in .png")
        if not path.parent.is_dir():
            raise UsageError(f"--out {path}: there is no folder {path.parent}")
    for path, figure in ((path, figure) for path, figure in figures.items() if figure is not None):
        try:
            figure.savefig(path)
        except OSError as error:
            raise UsageError(f"--out {path}: cannot be written: {error.strerror}") from error
        print(path)


def _sensor_panels(corpus: Corpus, rows: np.ndarray) -> list[Panel]:
    panels, names = [], {band.name for band in corpus.bands}
    if names.issuperset(RGB):
        panels.append(_stretched("true colour", _bands(corpus, rows, RGB), gamma=GAMMA))
    rest = [sensor for sensor in corpus.sensors if not (panels and sensor == next(b.sensor for b in corpus.bands if b.name == RGB[0]))]
    for sensor in rest:
        bands = [band.name for band in corpus.bands if band.sensor == sensor]
        shown = "VV" if "VV" in bands else bands[0]
        panels.append(_stretched(shown, _bands(corpus, rows, (shown,)), gamma=1.0))
    return panels


def _bands(corpus: Corpus, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(n, bands, H, W) physical values of bands on the finest grid, NaN without data."""
    stored: dict[str, np.ndarray] = {}
    found = []
    for name in names:
        band = next(band for band in corpus.bands if band.name == name)
        array = corpus.arrays[band.array]
        if band.array not in stored:
            stored[band.array] = read_rows(array, rows, corpus.path / band.array)
        values = stored[band.array][:, band.channel]
        physical = np.where(values == array.attrs["nodata"], np.nan, values * array.attrs["scale_factor"] + array.attrs["add_offset"])
        found.append(physical.repeat(band.factor, axis=1).repeat(band.factor, axis=2))
    return np.stack(found, axis=1)


def _stretched(name: str, values: np.ndarray, *, gamma: float) -> Panel:
    """Grey or colour pictures of (n, 1 or 3, H, W) physical values, NaN without data; the bands share one stretch, so hues stay true."""
    valid = np.isfinite(values)
    low, high = np.percentile(values[valid], PERCENTILES) if valid.any() else (0.0, 1.0)
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1) ** gamma
    pictures = np.repeat(scaled, 3 // values.shape[1], axis=1).transpose(0, 2, 3, 1)
    return Panel(name, np.where(valid.all(axis=1)[..., None], pictures, NODATA))


def _label_panel(corpus: Corpus, rows: np.ndarray, name: str) -> tuple[Panel, dict[str, str]]:
    """The class maps, and class name -> colour of the classes that occur."""
    array = corpus.labels[name]
    classes = {int(value): text for value, text in array.attrs["classes"].items()}
    ignored = array.attrs.get("ignore")
    if ignored is not None and int(ignored) not in classes:
        classes[int(ignored)] = "ignored"
    values = read_rows(array, rows, corpus.path / "labels" / name)
    colours = class_colours(classes)
    pictures = np.full((*values.shape, 3), NODATA)
    present = [int(value) for value in np.unique(values)]
    for value in present:
        pictures[values == value] = to_rgb(colours.get(value, "#000000"))
    return Panel(name, pictures), {classes.get(value, f"{value}: no class"): colours.get(value, "#000000") for value in present}


def _sheet(corpus: Corpus, rows: np.ndarray, panels: Sequence[Panel], legend: Mapping[str, str]) -> Figure:
    """Patches in columns, the panels of each side by side under its title."""
    across = max(1, min(len(rows), round(math.sqrt(len(rows) * 1.6 / len(panels)))))
    down = -(-len(rows) // across)
    group = len(panels) * CELL_INCH + (len(panels) - 1) * 0.04
    columns = max(1, int((across * group + GAP_INCH) / 1.15))
    legend_lines = -(-len(legend) // columns)
    width = across * group + (across + 1) * GAP_INCH
    top, bottom = 0.36, 0.12 + 0.18 * legend_lines
    height = top + down * (CELL_INCH + TITLE_INCH + GAP_INCH) + bottom
    figure = Figure((width, height), dpi=150, facecolor="white")
    figure.text(GAP_INCH / width, 1 - 0.18 / height, _headline(corpus, rows, panels), fontsize=9, weight="bold", va="center", color="#222222")
    for place, row in enumerate(rows):
        left = GAP_INCH + (place % across) * (group + GAP_INCH)
        base = height - top - (place // across + 1) * (CELL_INCH + TITLE_INCH + GAP_INCH) + GAP_INCH
        for number, panel in enumerate(panels):
            axes = figure.add_axes(((left + number * (CELL_INCH + 0.04)) / width, base / height, CELL_INCH / width, CELL_INCH / height))
            _picture(axes, panel.pictures[place])
        figure.text(left / width, (base + CELL_INCH + 0.05) / height, _title(corpus, int(row)), fontsize=5.6, color="#333333", va="bottom", linespacing=1.25)
    if legend:
        handles = [Patch(facecolor=colour, edgecolor="#888888", linewidth=0.4, label=text) for text, colour in legend.items()]
        figure.legend(handles=handles, loc="lower center", ncols=min(columns, len(handles)), fontsize=6.5, frameon=False, handlelength=1.1, handleheight=1.1,
                      columnspacing=1.4, bbox_to_anchor=(0.5, 0.0))
    return figure


def _picture(axes: Axes, picture_HW3: np.ndarray) -> None:
    axes.imshow(picture_HW3, interpolation="nearest" if len(picture_HW3) < 200 else "antialiased", aspect="auto")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#888888", linewidth=0.4)


def _headline(corpus: Corpus, rows: np.ndarray, panels: Sequence[Panel]) -> str:
    side = corpus.patch_size * corpus.resolution_m / 1000
    return f"{corpus.path.name}   {len(rows)} of {len(corpus):,} patches, {side:g} km a side   {' | '.join(panel.name for panel in panels)}"


def _title(corpus: Corpus, row: int) -> str:
    """Two lines: row, split, place; dates and labels of the whole patch."""
    index = corpus.index
    split = "quarantine" if index.quarantine[row] else SPLITS[index.split[row]]
    lon, lat = index.lon[row], index.lat[row]
    place = f"{abs(lat):.3f}°{'S' if lat < 0 else 'N'} {abs(lon):.3f}°{'W' if lon < 0 else 'E'}" if np.isfinite([lon, lat]).all() else "place unknown"
    dates = [f"{sensor} {day}" for sensor in corpus.sensors if (day := _day(getattr(index, f"time_{sensor}", None), row))]
    return f"{row}  {split}  {place}\n{'  '.join([*dates, *_patch_labels(corpus, row)])}"


def _patch_labels(corpus: Corpus, row: int) -> list[str]:
    found = []
    for name, array in corpus.labels.items():
        kind, classes = array.attrs.get("kind"), {int(value): text for value, text in array.attrs["classes"].items()}
        if kind != "classmap":
            values = read_rows(array, np.array([row]), corpus.path / "labels" / name)[0]
            held = [int(values)] if kind == "class" else [list(classes)[k] for k in np.flatnonzero(values)]
            text = ", ".join(classes.get(value, str(value)) for value in held)
            found.append(text if len(text) <= 48 else f"{text[:45]}...")
    return found


def _day(times: np.ndarray | None, row: int) -> str:
    if times is None or times[row] == UNKNOWN_TIME:
        return ""
    return datetime.fromtimestamp(int(times[row]) / 1e9, tz=UTC).strftime("%Y-%m-%d")


def _parsed(text: str, num_rows: int) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"--rows {text}: legal: rows and ranges such as 3,10-14")
        found += range(int(first), min(int(last) if dash else int(first), num_rows) + 1)
    if not found or max(found) >= num_rows:
        raise UsageError(f"--rows {text}: legal: 0 to {num_rows - 1}")
    return found
