"""Where the patches of a corpus lie: points on longitude and latitude, coloured by split."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dsengine.corpus.build.optional import need
from dsengine.corpus.colours import SPLITS
from dsengine.errors import UsageError

MARGIN = 0.08  # of the extent
LEAST_SPAN_DEG = 0.05
OUTLINE = "#b9bec4"


def location_map(corpus: Any, *, outline: Path | None = None) -> Figure | None:
    """The figure, None when no place is known. `outline` is a vector file, such as of coasts, drawn beneath. UsageError when it cannot be read."""
    columns = [np.asarray(_column(corpus, name)) for name in ("lon", "lat", "split", "quarantine")]
    known = np.isfinite(columns[0]) & np.isfinite(columns[1])
    if not known.any():
        return None
    lon, lat, split, quarantine = (column[known] for column in columns)
    lon = _unwrapped(lon)
    west, east, south, north = _extent(lon, lat)
    stretch = 1 / max(0.2, math.cos(math.radians((south + north) / 2)))
    shape = (north - south) * stretch / (east - west)
    width, height = (9.0, min(9.0, max(3.0, 8.0 * shape + 1.0)))
    figure = Figure((width, height), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    if outline is not None:
        for line in _lines(outline):
            axes.plot(line[:, 0], line[:, 1], color=OUTLINE, linewidth=0.6, zorder=1)
    _points(axes, lon, lat, split, quarantine)
    axes.set(xlim=(west, east), ylim=(south, north), aspect=stretch)
    axes.set_title(f"{corpus.path.name}: {len(lon):,} {'patches' if hasattr(corpus.index, 'lon') else 'rows'}", fontsize=10, loc="left", weight="bold")
    _degrees(axes)
    return figure


def _points(axes: Axes, lon: np.ndarray, lat: np.ndarray, split: np.ndarray, quarantine: np.ndarray) -> None:
    size = float(np.clip(9000 / max(1, len(lon)), 1.5, 26))
    for number, (name, colour) in enumerate(SPLITS.items()):
        mine = (split == number) & (quarantine == 0)
        if mine.any():
            axes.scatter(lon[mine], lat[mine], s=size, color=colour, alpha=0.85 if len(lon) < 5000 else 0.5, linewidths=0, zorder=2 + number,
                         label=f"{name} {np.count_nonzero(mine):,}", rasterized=True)
    aside = quarantine != 0
    if aside.any():
        axes.scatter(lon[aside], lat[aside], s=size + 8, color="#555555", marker="x", linewidths=0.8, zorder=6,
                     label=f"quarantine {np.count_nonzero(aside):,}")
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="#cccccc", loc="best", markerscale=max(1.0, 4 / size ** 0.5))


def _degrees(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed((value + 180) % 360 - 180, "E", "W")))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(value, "N", "S")))
    axes.grid(color="#e6e8ea", linewidth=0.6, zorder=0)
    axes.tick_params(labelsize=8, color="#999999", labelcolor="#444444")
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(color="#bbbbbb", linewidth=0.7)


def _signed(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):g}°{positive if value > 0 else negative if value < 0 else ''}"


def _extent(lon: np.ndarray, lat: np.ndarray) -> tuple[float, float, float, float]:
    """West, east, south, north of the picture in degrees."""
    spans = []
    for values in (lon, lat):
        low, high = float(values.min()), float(values.max())
        room = max((high - low) * MARGIN, LEAST_SPAN_DEG / 2)
        spans += [low - room, high + room]
    return spans[0], spans[1], max(spans[2], -90.0), min(spans[3], 90.0)


def _unwrapped(lon: np.ndarray) -> np.ndarray:
    """Longitudes moved by whole turns so that the largest gap between them is not inside the picture."""
    ordered = np.sort(lon)
    gaps = np.diff(np.r_[ordered, ordered[0] + 360])
    widest = int(gaps.argmax())
    if widest == len(gaps) - 1 or gaps[widest] <= gaps[-1] + 1e-9:
        return lon
    return np.where(lon <= ordered[widest], lon + 360, lon)


def _lines(path: Path) -> Iterator[np.ndarray]:
    """(n, 2) longitude and latitude of each line and ring of a vector file."""
    pyogrio, shapely = need("pyogrio", "labels"), need("shapely", "labels")
    try:
        meta, _, geometry, _ = pyogrio.raw.read(path, columns=[])
    except (ValueError, RuntimeError, OSError) as error:
        raise UsageError(f"--outline {path}: cannot be read as a vector file ({error})") from error
    if meta["crs"] not in ("EPSG:4326", "OGC:CRS84", None):
        raise UsageError(f"--outline {path}: CRS {meta['crs']}; legal: degrees, EPSG:4326")
    parts = shapely.get_parts(shapely.boundary(shapely.from_wkb(geometry)) if _has_area(shapely, geometry) else shapely.from_wkb(geometry))
    yield from (shapely.get_coordinates(part) for part in shapely.get_parts(parts))


def _has_area(shapely: Any, geometry: np.ndarray) -> bool:
    return bool(len(geometry)) and shapely.get_dimensions(shapely.from_wkb(geometry[0])) == 2


def _column(corpus: Any, name: str) -> np.ndarray:
    return getattr(corpus.index, name) if hasattr(corpus.index, name) else corpus.index[name]
