"""A table of figures in three spellings: CSV, Markdown, LaTeX. What is best is marked; what failed says so below."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from dsengine.study.results import Score

_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One place of a table: the mean over seeds; figures in [0, 1], NaN where there is none."""

    mean: float = math.nan
    std: float = math.nan  # sample deviation over seeds; NaN of one
    low: float = math.nan  # means over seeds of the ends of the 95 % intervals
    high: float = math.nan
    num_seeds: int = 0
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows and columns of entries. The best of each row is bold, of each column underlined, where asked for and where they differ."""

    name: str  # of its files
    title: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entries: tuple[tuple[Entry, ...], ...]
    heads: tuple[tuple[str, ...], ...] = ()  # lines under the names of columns, the first place its name
    notes: tuple[str, ...] = ()
    bold: bool = True
    underline: bool = True


def entry(scores: Sequence[Score], errors: Sequence[str] = ()) -> Entry:
    """Of the scores of some seeds."""
    values = [score.value for score in scores if math.isfinite(score.value)]
    if not values:
        return Entry(errors=tuple(errors))
    ends = [_mean([getattr(score, end) for score in scores]) for end in ("low", "high")]
    return Entry(mean=mean(values), std=stdev(values) if len(values) > 1 else math.nan, low=ends[0], high=ends[1], num_seeds=len(values),
                 errors=tuple(errors))


def best(table: Table) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Places (row, column) that are bold, and that are underlined; of equals all."""
    rows, columns = range(len(table.rows)), range(len(table.columns))
    bold = [_best(table, [(r, c) for c in columns]) for r in rows] if table.bold else []
    underlined = [_best(table, [(r, c) for r in rows]) for c in columns] if table.underline else []
    return set().union(*bold), set().union(*underlined)


def to_csv(table: Table) -> str:
    """Per cent: for each column the mean, and deviation, interval and number of seeds beside it."""
    parts = ("mean", "std", "low", "high", "seeds")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([table.corner, *(f"{column} {part}" for column in table.columns for part in parts)])
    for name, line in zip(table.rows, table.entries):
        writer.writerow([name, *(text for of in line for text in (*map(_plain, (of.mean, of.std, of.low, of.high)), of.num_seeds))])
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """With what failed, and what the figures are, below."""
    bold, underlined = best(table)
    marks, failed = _failures(table)

    def text(r: int, c: int) -> str:
        said = shown(table.entries[r][c], plus_minus="±") + "".join(f"[^{n}]" for n in marks.get((r, c), ()))
        said = f"<u>{said}</u>" if (r, c) in underlined else said
        return f"**{said}**" if (r, c) in bold else said

    lines = [[table.corner, *table.columns], ["---"] * (1 + len(table.columns)), *([list(head) for head in table.heads]),
             *([name, *(text(r, c) for c in range(len(table.columns)))] for r, name in enumerate(table.rows))]
    body = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
    notes = [line for note in (*table.notes, *(f"[^{n}]: {error}" for n, error in enumerate(failed, 1))) for line in (note, "")]
    return "\n".join([f"## {table.title}", "", *body, "", *notes])


def to_latex(table: Table) -> str:
    """A `table` that needs no package."""
    bold, underlined = best(table)
    marks, failed = _failures(table)

    def text(r: int, c: int) -> str:
        said = shown(table.entries[r][c], plus_minus=r"$\pm$")
        said += f"$^{{{','.join(map(str, marks[r, c]))}}}$" if (r, c) in marks else ""
        said = rf"\underline{{{said}}}" if (r, c) in underlined else said
        return rf"\textbf{{{said}}}" if (r, c) in bold else said

    lines = [[escape(part) for part in head] for head in ((table.corner, *table.columns), *table.heads)]
    body = [[escape(name), *(text(r, c) for c in range(len(table.columns)))] for r, name in enumerate(table.rows)]
    below = [escape(note) for note in table.notes] + [f"$^{{{n}}}$ {escape(error)}" for n, error in enumerate(failed, 1)]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}}}", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\hline",
        *(" & ".join(line) + r" \\" for line in lines), r"\hline", *(" & ".join(line) + r" \\" for line in body), r"\hline", r"\end{tabular}",
        *([r"\par\smallskip\footnotesize", r" \\".join(below)] if below else []), r"\end{table}", ""])


def shown(of: Entry, *, plus_minus: str) -> str:
    """Per cent: mean, deviation of two seeds and more, interval where there is one."""
    if not of.num_seeds:
        return "failed" if of.errors else "-"
    deviation = f" {plus_minus} {100 * of.std:.1f}" if math.isfinite(of.std) else ""
    interval = f" [{100 * of.low:.1f}, {100 * of.high:.1f}]" if math.isfinite(of.low) else ""
    return f"{100 * of.mean:.1f}{deviation}{interval}"


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_ESCAPES.get(sign, sign) for sign in text)


def _best(table: Table, places: list[tuple[int, int]]) -> set[tuple[int, int]]:
    values = {place: table.entries[place[0]][place[1]].mean for place in places}
    known = {place: value for place, value in values.items() if math.isfinite(value)}
    return {place for place, value in known.items() if value == max(known.values())} if len(set(known.values())) > 1 else set()


def _failures(table: Table) -> tuple[dict[tuple[int, int], list[int]], list[str]]:
    """Numbers of the notes of each place, and the notes."""
    notes: list[str] = []
    marks: dict[tuple[int, int], list[int]] = {}
    for r, line in enumerate(table.entries):
        for c, of in enumerate(line):
            for error in of.errors:
                notes += [] if error in notes else [error]
                marks.setdefault((r, c), []).append(notes.index(error) + 1)
    return marks, notes


def _mean(values: Sequence[float]) -> float:
    return mean(values) if all(map(math.isfinite, values)) else math.nan


def _plain(value: float) -> str:
    return f"{100 * value:.4f}" if math.isfinite(value) else ""
