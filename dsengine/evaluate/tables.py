"""Results as Markdown: figures in per cent with their 95 % intervals, floors in the same table, what they rest on below it."""

import math

from dsengine.evaluate.bootstrap import Interval
from dsengine.evaluate.book import FIGURES, Book, Row

CLASS_FIGURES = {"iou": "Jaccard index (IoU)", "f1": "F1"}


def markdown(book: Book, *, figures: tuple[str, ...]) -> str:
    """The table of all rows, then a figure of each class, then what to know when reading them."""
    names = [name for name in figures if all(name in row.figures for row in book.rows)]
    facts = varying(book.rows)
    lead = [[_plain(row.facts[fact]) for fact in facts] for row in book.rows]
    lines = grid(["encoder", "kind", *facts, *(FIGURES[name] for name in names), f"{FIGURES[book.figure]} over the best floor"],
                 [[row.name, row.kind, *said, *(cell(book.interval(row, name)) for name in names), _gap(book, row)]
                  for row, said in zip(book.rows, lead)])
    per_class = grid([CLASS_FIGURES[book.class_figure], *facts, *book.names],
                     [[row.name, *said, *map(cell, book.class_intervals(row))] for row, said in zip(book.rows, lead)])
    return "\n".join([f"# {book.evaluation}", "", *lines, "", *per_class, "", *notes(book), ""])


def grid(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    safe = [[text.replace("|", "/") for text in line] for line in (head, *rows)]
    return ["| " + " | ".join(line) + " |" for line in (safe[0], ["---"] * len(head), *safe[1:])]


def varying(rows: list[Row]) -> list[str]:
    """Facts in which rows differ."""
    return [fact for fact in rows[0].facts if len({str(row.facts[fact]) for row in rows}) > 1]


def notes(book: Book) -> list[str]:
    """What the numbers rest on."""
    groups = max(len(row.counts) for row in book.rows)
    unit = "place" if book.header["setting"]["unit"] == "place" else "sample"
    tested = int(book.rows[0].counts.sum())
    said = [f"{FIGURES[book.figure]} is the figure that floors are compared by. Per cent, [95 % interval] from {book.num_draws:,} draws of "
            f"the {groups:,} test {unit}s ({tested:,} scored); - is nothing to score, or fewer than 2 {unit}s."]
    if groups < 30:
        said.append(f"{groups} {unit}s are few: the intervals say how the figure moves with these {unit}s and prove nothing about others.")
    if book.header.get("distance"):
        said.append(f"{book.header['distance']}.")
    if book.header["split"]["by"] == "random":
        said.append("The split is random: patches of one place lie on both sides, so the figures are higher than for places never seen.")
    said.append("Protocol of each row, confusion matrices, hashes and versions: results.json.")
    return [line for text in said for line in (text, "")][:-1]


def cell(interval: Interval) -> str:
    """Per cent."""
    if not math.isfinite(interval.value):
        return "-"
    bounds = f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if math.isfinite(interval.low) else ""
    return f"{100 * interval.value:.1f}{bounds}"


def _gap(book: Book, row: Row) -> str:
    floor = book.best_floor(row) if row.kind == "pretrained" else None
    gap = None if floor is None else book.difference(row, floor, book.figure)
    return "" if gap is None else f"{'+' if gap.value >= 0 else ''}{cell(gap)} ({floor.name})"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
