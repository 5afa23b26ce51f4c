"""Line charts and scatters as SVG: text stays text, colours follow the page's mode, and nothing has to be loaded to draw them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsengine.study.report.axes import Scale, number, scale_of, thinned, written
from dsengine.study.report.html import Html, join, tag
from dsengine.study.report.style import NUM_SERIES

WIDTH, HEIGHT = 372, 236  # about a phone's page, so that text is as large there as it is written here
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 8, 8, 38
_POINTS = 320  # of a line at most: one a pixel
_DOTS = 40  # a line of fewer points shows them


class Line(NamedTuple):
    """One curve. `colour` counts the runs; where colours are used up, lines are dashed, then dotted."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    thick: bool = False
    dots: bool = False


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_label: str, note: str = "", zero: bool = False, limit: float | None = None,
               named: bool = False) -> Html:
    """A <figure>. The y axis is logarithmic where positive values span more than two powers of ten.

    zero: the y axis begins at 0. limit: where an alarm begins, as a dashed line. named: there is a legend even for one curve.
    Values that are not finite are gaps.
    """
    lines = [line for line in lines if len(line.x)]
    drawn = [(line, _parts(line)) for line in lines]
    y_all = np.concatenate([line.y[np.isfinite(line.y)] for line in lines]) if lines else np.zeros(0)
    y_all = y_all if limit is None else np.append(y_all, limit)
    log = not zero and len(y_all) > 0 and y_all.min() > 0 and y_all.max() / y_all.min() > 100
    x = scale_of(np.concatenate([line.x for line in lines] or [np.zeros(0)]), start=_LEFT, end=WIDTH - _RIGHT, exact=True)
    y = scale_of(y_all, start=HEIGHT - _BOTTOM, end=_TOP, log=log, zero=zero)
    marks = [_curve(line, parts, x, y, envelope=len(lines) <= 2) for line, parts in drawn]
    if limit is not None:
        marks.insert(0, _rule("limit", _LEFT, float(y(np.array(limit))), WIDTH - _RIGHT))
    thin = max((parts[4] for _, parts in drawn), default=1)
    means = f"each point is the mean of {thin} records, the band their range" if len(lines) <= 2 else f"points are means of up to {thin} records"
    notes = [note, "logarithmic" if log else "", means if thin > 1 else ""]
    described = ". ".join([f"{title}, {y_label} by {x_label}", *(_summary(line) for line in lines[:12])])
    return tag("figure", {"class": "chart"}, _caption(title, notes), _svg([frame(x, y, x_label=x_label, y_label=y_label), *marks], described),
               legend(lines) if named or len(lines) > 1 else None)


def frame(x: Scale, y: Scale, *, x_label: str, y_label: str, height: float = HEIGHT) -> Html:
    """Axes with ticks and labels, for curves that lie inside the usual margins of a picture so high."""
    base = height - _BOTTOM
    x_ticks, y_ticks = x.ticks(5), y.ticks(5)
    parts = []
    for value, text in zip(y_ticks, written(y_ticks)):
        at = float(y(np.array(value)))
        parts += [_rule("rule", _LEFT, at, WIDTH - _RIGHT), _text(text, _LEFT - 6, at + 4, "end")]
    for value, text in zip(x_ticks, written(x_ticks)):
        at = float(x(np.array(value)))
        parts += [tag("path", {"class": "frame", "d": f"M{_n(at)} {_n(base)}v4"}), _text(text, at, base + 16, "end" if at > WIDTH - 24 else "middle")]
    parts += [tag("path", {"class": "frame", "d": f"M{_LEFT} {_n(base)}H{WIDTH - _RIGHT}"}),
              _text(x_label, (_LEFT + WIDTH - _RIGHT) / 2, height - 5, "middle", kind="label"),
              tag("text", {"class": "label", "text-anchor": "middle", "transform": f"translate(11 {_n((_TOP + base) / 2)}) rotate(-90)"}, y_label)]
    return join(parts)


def legend(lines: Sequence[Line]) -> Html:
    """Names beside a piece of each line."""
    items = []
    for line in lines:
        piece = tag("svg", {"viewBox": "0 0 26 10", "aria-hidden": "true"}, tag("path", {"class": _kind(line), "d": "M1 5H25"}),
                    tag("circle", {"class": f"dot {_colour(line.colour)}", "cx": 13, "cy": 5, "r": 2.6}) if line.dots else None)
        items.append(tag("li", None, piece, tag("span", None, line.name)))
    return tag("ul", {"class": "legend"}, *items)


class Group(NamedTuple):
    """Points of one colour in a scatter."""

    name: str
    points: np.ndarray  # (n, 2)
    colour: str  # "#rrggbb"


def scatter(groups: Sequence[Group], *, x_label: str, y_label: str, described: str, raster: str | None = None, side: float = 330) -> Html:
    """The <svg> of a square cloud. raster: a picture of the points, as `cloud_box` lays it out, in place of drawing each."""
    x, y = cloud_scales(groups, side=side)
    parts: list[Html | None] = [frame(x, y, x_label=x_label, y_label=y_label, height=side)]
    if raster is None:
        for group in groups:
            path = "".join(f"M{_n(a)} {_n(b)}h0" for a, b in zip(x(group.points[:, 0]), y(group.points[:, 1])))
            parts += [tag("path", {"class": "rim", "d": path}), tag("path", {"class": "points", "style": f"--c:{group.colour}", "d": path})]
    else:
        parts.append(tag("image", {"href": raster, "x": _LEFT, "y": _TOP, "width": WIDTH - _RIGHT - _LEFT, "height": side - _BOTTOM - _TOP}))
    return _svg(parts, described, height=side)


def cloud_scales(groups: Sequence[Group], *, side: float = 330) -> tuple[Scale, Scale]:
    """The axes of `scatter`."""
    points = np.concatenate([group.points for group in groups])
    pad = 0.03 * np.maximum(np.ptp(points, axis=0), 1e-9)
    ends = np.stack([points.min(0) - pad, points.max(0) + pad])
    return (scale_of(ends[:, 0], start=_LEFT, end=WIDTH - _RIGHT, exact=True), scale_of(ends[:, 1], start=side - _BOTTOM, end=_TOP, exact=True))


def cloud_box(*, side: float = 330) -> tuple[float, float, float, float]:
    """Left, top, width and height of the plane in a scatter, SVG units."""
    return _LEFT, _TOP, WIDTH - _RIGHT - _LEFT, side - _BOTTOM - _TOP


def _parts(line: Line) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    return thinned(line.x, line.y, _POINTS)


def _curve(line: Line, parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], x: Scale, y: Scale, *, envelope: bool) -> Html:
    at_x, mean, low, high, length = parts
    pieces = []
    if envelope and length > 1 and np.isfinite(low).all() and np.isfinite(high).all():
        outline = [*zip(x(at_x), y(high)), *zip(x(at_x[::-1]), y(low[::-1]))]
        pieces.append(tag("path", {"class": f"band {_colour(line.colour)}", "d": "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in outline) + "z"}))
    pieces.append(tag("path", {"class": _kind(line), "d": _path(x(at_x), y(mean))}))
    if line.dots and len(at_x) <= _DOTS or np.isfinite(mean).sum() == 1:
        pieces += [tag("circle", {"class": f"dot {_colour(line.colour)}", "cx": _n(a), "cy": _n(b), "r": 2.8},
                       tag("title", None, f"{line.name}: {number(value)} at {step:,.0f}"))
                   for a, b, step, value in zip(x(at_x), y(mean), at_x, mean) if math.isfinite(value)]
    return join(pieces)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Pen up where there is no value."""
    pen, parts = "M", []
    for a, b in zip(x, y):
        if math.isfinite(b):
            parts.append(f"{pen}{_n(a)} {_n(b)}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _summary(line: Line) -> str:
    finite = np.isfinite(line.y)
    if not finite.any():
        return f"{line.name}: no finite value"
    y, x = line.y[finite], line.x[finite]
    best = int(y.argmin())
    return f"{line.name}: first {number(y[0])}, last {number(y[-1])}, lowest {number(y[best])} at {x[best]:,.0f}, highest {number(y.max())}"


def _caption(title: str, notes: Sequence[str]) -> Html:
    text = "; ".join(note for note in notes if note)
    return tag("figcaption", None, tag("strong", None, title), text[:1].upper() + text[1:] or None)


def _svg(parts: Sequence[Html | None], described: str, *, height: float = HEIGHT) -> Html:
    return tag("svg", {"viewBox": f"0 0 {WIDTH} {_n(height)}", "role": "img", "aria-label": described}, *parts)


def _text(text: str, x: float, y: float, anchor: str, *, kind: str | None = None) -> Html:
    return tag("text", {"x": _n(x), "y": _n(y), "text-anchor": anchor, "class": kind}, text)


def _rule(kind: str, x: float, y: float, end: float) -> Html:
    return tag("path", {"class": kind, "d": f"M{_n(x)} {_n(y)}H{_n(end)}"})


def _kind(line: Line) -> str:
    again = ("", " dashed", " dotted")[line.colour // NUM_SERIES % 3]  # more runs than colours
    return f"line {_colour(line.colour)}{' thick' * line.thick}{again}"


def _colour(number: int) -> str:
    return f"c{number % NUM_SERIES}"


def _n(value: float) -> str:
    """A tenth of a unit is a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
