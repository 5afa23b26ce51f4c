"""Pictures of an evaluation: figures with intervals, IoU of each class, confusion matrices, what was swept, shares of labels."""

import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsengine.evaluate.bootstrap import Interval
from dsengine.evaluate.book import FIGURES, Book, Row
from dsengine.evaluate.tables import CLASS_FIGURES, varying

matplotlib.use("Agg")
_MOST = 12  # confusion matrices


def draw(book: Book, *, sweep: str | None = None, sweep_label: str = "", sweep_figure: str = "accuracy") -> list[Path]:
    """All that fit the evaluation, in OUT/figures. sweep: what was chosen on val, drawn against the figure that it was chosen by."""
    drawn = [_scores(book), _classes(book), _confusions(book)]
    if sweep is not None:
        drawn.append(_sweep(book, sweep, sweep_label, sweep_figure))
    if len({row.facts.get("label_fraction") for row in book.rows}) > 1:
        drawn.append(_fractions(book))
    return drawn


def draw_learning(book: Book) -> Path | None:
    """Training loss and val figure by epoch, of the rows that were trained by epochs."""
    rows = [row for row in book.rows if any("history" in chosen for chosen in row.protocol["chosen"])]
    if not rows:
        return None
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.set(ylabel="train loss, nats", title="dots: the epoch that was kept")
    lower.set(xlabel="epoch", ylabel="weighted mean IoU on val, %")
    for k, row in enumerate(rows):
        for chosen in row.protocol["chosen"]:
            epochs = [record["epoch"] for record in chosen["history"]]
            label = title(row, varying(book.rows)) if chosen is row.protocol["chosen"][0] else None
            upper.plot(epochs, [record["loss"] for record in chosen["history"]], color=f"C{k % 10}", linewidth=1, label=label)
            lower.plot(epochs, [100 * record["val_iou_weighted"] for record in chosen["history"]], color=f"C{k % 10}", linewidth=1)
            lower.plot(chosen["best_epoch"], 100 * chosen["val_iou_weighted"], "o", color=f"C{k % 10}", markersize=4)
    _legend(figure, upper)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return save(figure, book.out / "figures" / "learning.png")


def draw_bands(book: Book, names: tuple[str, ...]) -> Path:
    """The figure by band, a line an encoder and probe."""
    facts = [fact for fact in varying(book.rows) if fact != "band"]
    lines: dict[str, dict[str, Row]] = {}
    for row in book.rows:
        if row.facts["band"] in names:
            lines.setdefault(title(row, facts), {})[row.facts["band"]] = row
    figure = Figure(figsize=(max(6, 1 + 0.8 * len(names)), 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="band", ylabel=f"{FIGURES[book.figure]} on test, %")
    for k, (name, rows) in enumerate(lines.items()):
        found = [book.interval(rows[band], book.figure) for band in names]
        axes.errorbar(np.arange(len(names)) + 0.03 * (k - len(lines) / 2), [100 * i.value for i in found], yerr=errors(found), fmt="o", capsize=2,
                      markersize=4, linewidth=1, label=name)
    axes.set_xticks(np.arange(len(names)), names)
    _legend(figure, axes)
    axes.grid(axis="y", alpha=0.3)
    return save(figure, book.out / "figures" / "bands.png")


def title(row: Row, facts: list[str]) -> str:
    """The row's name and what tells it from others of that name."""
    return ", ".join([row.name, *(f"{fact.replace('_', ' ')} {row.facts[fact]:g}" if isinstance(row.facts[fact], float) else str(row.facts[fact])
                                  for fact in facts)])


def save(figure: Figure, path: Path) -> Path:
    """As PNG."""
    figure.savefig(path, dpi=110)
    return path


def plain(name: str) -> str:
    """`name` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=7)


def errors(intervals: list[Interval]) -> np.ndarray:
    """(2, n) lengths of error bars below and above, 0 where there is no interval; per cent."""
    ends = np.array([[i.value - i.low, i.high - i.value] for i in intervals]).reshape(-1, 2).T
    return 100 * np.clip(np.nan_to_num(ends), 0, None)


def _scores(book: Book) -> Path:
    facts = varying(book.rows)
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(book.rows)), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{FIGURES[book.figure]} on test, %", title="bars: 95 % interval")
    found = [book.interval(row, book.figure) for row in book.rows]
    colours = ["C0" if row.kind == "pretrained" else "0.6" for row in book.rows]
    place = np.arange(len(found))
    axes.barh(place, [100 * np.nan_to_num(i.value) for i in found], xerr=errors(found), color=colours, capsize=3)
    axes.set_yticks(place, [title(row, facts) for row in book.rows], fontsize=8)
    axes.set_ylabel("encoder")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return save(figure, book.out / "figures" / "scores.png")


def _classes(book: Book) -> Path:
    """As Figure 3 of the first paper."""
    facts, rows = varying(book.rows), book.rows[:_MOST]
    figure = Figure(figsize=(max(6, 1.0 + 0.9 * len(book.names)), 4), layout="constrained")
    axes = figure.add_subplot(xlabel="class", ylabel=f"{CLASS_FIGURES[book.class_figure]} on test, %")
    width = 0.8 / len(rows)
    for k, row in enumerate(rows):
        found = book.class_intervals(row)
        axes.bar(np.arange(len(found)) + (k - (len(rows) - 1) / 2) * width, [100 * np.nan_to_num(i.value) for i in found], width,
                 yerr=errors(found), label=title(row, facts), capsize=1.5, error_kw={"linewidth": 0.7})
    axes.set_xticks(np.arange(len(book.names)), book.names, rotation=30, ha="right", fontsize=8)
    _legend(figure, axes)
    axes.grid(axis="y", alpha=0.3)
    return save(figure, book.out / "figures" / "classes.png")


def _confusions(book: Book) -> Path:
    """A matrix a row of the table, side by side."""
    rows, facts = book.rows[:_MOST], varying(book.rows)
    wide, side = min(len(rows), 3), max(3.2, 1.5 + 0.35 * len(book.names))
    high = -(-len(rows) // wide)
    figure = Figure(figsize=(side * wide + 1.2, side * high), layout="constrained")
    every = figure.subplots(high, wide, squeeze=False)
    for k, (axes, row) in enumerate(zip(every.flat, rows)):
        counts = row.counts.sum(0).astype(np.float64)
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
        axes.set_title(title(row, facts), fontsize=8)
        axes.set_xticks(np.arange(len(book.names)), book.names, rotation=40, ha="right", fontsize=7)
        axes.set_yticks(np.arange(len(book.names)), book.names if k % wide == 0 else [""] * len(book.names), fontsize=7)
        for (y, x), value in np.ndenumerate(share) if len(counts) <= 12 else ():
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if value > 50 else "black")
    for axes in every.flat[len(rows):]:
        axes.set_axis_off()
    figure.supxlabel("predicted class")
    figure.supylabel("true class")
    figure.colorbar(image, ax=every, label="share of the true class, %", shrink=0.8)
    return save(figure, book.out / "figures" / "confusion.png")


def _sweep(book: Book, name: str, label: str, by: str) -> Path:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=label, ylabel=f"{FIGURES[by]} on val, %", xscale="log")
    for row in book.rows:
        for chosen in row.protocol["chosen"]:
            curve = chosen[f"val_by_{name}"]
            label_of = title(row, varying(book.rows)) if chosen is row.protocol["chosen"][0] else None
            (line,) = axes.plot([float(x) for x in curve], [100 * y for y in curve.values()], "o-", markersize=3, linewidth=1, label=label_of)
            axes.plot(chosen[name], 100 * chosen[f"val_{by}"], "o", color=line.get_color(), markersize=8, markerfacecolor="none")
    _legend(figure, axes)
    axes.grid(alpha=0.3)
    return save(figure, book.out / "figures" / "chosen.png")


def _fractions(book: Book) -> Path:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="share of the train labels, %", ylabel=f"{FIGURES[book.figure]} on test, %", xscale="log")
    lines: dict[str, list[Row]] = {}
    for row in book.rows:
        others = [fact for fact in varying(book.rows) if fact != "label_fraction"]
        lines.setdefault(title(row, others), []).append(row)
    for name, rows in lines.items():
        rows = sorted(rows, key=lambda row: row.facts["label_fraction"])
        found = [book.interval(row, book.figure) for row in rows]
        axes.errorbar([100 * row.facts["label_fraction"] for row in rows], [100 * i.value for i in found], yerr=errors(found), fmt="o-", capsize=3,
                      markersize=4, label=name)
    _legend(figure, axes)
    axes.grid(alpha=0.3)
    return save(figure, book.out / "figures" / "label_fractions.png")
