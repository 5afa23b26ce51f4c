"""Tables about a corpus for a person at a terminal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsengine.corpus.index import Corpus
from dsengine.corpus.schema import SPLITS, UNKNOWN_TIME
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.series_report import series_summary, time_range
from dsengine.corpus.verify import Problem, Verified

MAX_ROWS = 40  # of a table about files or damage


def print_info(corpus: Corpus | SeriesCorpus, console: Console) -> None:
    """What `corpus info` shows: summary, bands, labels and the S2 offsets that were decided."""
    console.print(series_summary(corpus) if isinstance(corpus, SeriesCorpus) else _summary(corpus))
    console.print(stats_table(corpus))
    if corpus.labels:
        console.print(_label_table(corpus))
    if decided := corpus.attributes.get("made_by", {}).get("s2_offset"):
        console.print(_offset_table(decided))


def stats_table(corpus: Corpus | SeriesCorpus) -> Table:
    """One line a band: where it is stored and its statistics."""
    table = Table(title="bands", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("band", "array", "ch", "m", "unit", "mean", "std", "valid", "cut"):
        table.add_column(heading, justify="left" if heading in ("band", "array", "unit") else "right", no_wrap=True)
    for band in corpus.bands:
        attrs = dict((corpus.values[band.sensor] if isinstance(corpus, SeriesCorpus) else corpus.arrays[band.array]).attrs)
        values = [attrs.get(key, [None] * (band.channel + 1))[band.channel] for key in ("mean", "std", "count", "saturated")]
        cells = [_number(values[0]), _number(values[1]), *("-" if v is None else f"{v:,}" for v in values[2:])]
        table.add_row(band.name, band.array, str(band.channel), f"{attrs['resolution_m']:g}", attrs["units"], *cells)
    return table


def damage_table(problems: Sequence[Problem], path: Path) -> Table:
    """File below `path`, array and patch of each problem."""
    table = Table(title=f"problems: {len(problems)}" + (f", the first {MAX_ROWS}" if len(problems) > MAX_ROWS else ""), title_justify="left",
                  box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("file", "array", "patch", "what"):
        table.add_column(heading, overflow="fold")
    for problem in problems[:MAX_ROWS]:
        file = problem.file.relative_to(path) if problem.file.is_relative_to(path) else problem.file
        table.add_row(Text(str(file)), Text(problem.array), _patches(problem), Text(problem.what))
    return table


def verdict(path: Path, result: Verified, *, before: np.ndarray, after: np.ndarray, rest: Sequence[Problem]) -> str:
    """The last line of `corpus verify`; `before` and `after` are column `quarantine`, `rest` the problems outside quarantine."""
    line = f"{path}: {result.num_chunks} chunks of {len(result.corpus)} patches checked, {len(result.problems)} problems"
    set_aside, released = np.count_nonzero((before == 0) & (after != 0)), np.count_nonzero((before != 0) & (after == 0))
    if set_aside:
        line += f"; {set_aside} patches put in quarantine"
    if released:
        line += f"; {released} patches let back in"
    if inside := np.count_nonzero(after):
        line += f"; {inside} patches in quarantine"
    if rest and any(problem.patch >= 0 for problem in rest):
        line += f"; `dsengine corpus verify --quarantine {path}` leaves damaged patches out of every split"
    return line


def _patches(problem: Problem) -> str:
    if problem.patch < 0:
        return "-"
    return str(problem.patch) if problem.num_patches == 1 else f"{problem.patch}-{problem.patch + problem.num_patches - 1}"


def _summary(corpus: Corpus) -> Table:
    index, table = corpus.index, Table(show_header=False, title=Text(str(corpus.path)), title_justify="left")
    table.add_row("patches", f"{len(corpus):,} of {corpus.patch_size} x {corpus.patch_size} pixels, {corpus.resolution_m:g} m")
    table.add_row("sensors", ", ".join(corpus.sensors))
    table.add_row("split", ", ".join(f"{name} {len(corpus.rows(name)):,}" for name in SPLITS))
    table.add_row("longitude", f"{index.lon.min():.4f} to {index.lon.max():.4f}")
    table.add_row("latitude", f"{index.lat.min():.4f} to {index.lat.max():.4f}")
    for sensor in corpus.sensors:
        table.add_row(f"time {sensor}", time_range(getattr(index, f"time_{sensor}", np.array([UNKNOWN_TIME]))))
    table.add_row("nodata", f"{index.nodata_fraction.mean():.2%} of all pixels, {np.count_nonzero(index.nodata_fraction):,} patches have some")
    table.add_row("on disk", f"{sum(f.stat().st_size for f in corpus.path.rglob('*') if f.is_file()) / 2**20:,.1f} MiB")
    return table


def _label_table(corpus: Corpus) -> Table:
    table = Table(title="labels", title_justify="left")
    for heading in ("label", "kind", "classes", "ignored"):
        table.add_column(heading)
    for name, array in corpus.labels.items():
        attrs = dict(array.attrs)
        classes = ", ".join(f"{value} {text}" for value, text in attrs.get("classes", {}).items())
        table.add_row(name, str(attrs.get("kind")), classes, "-" if attrs.get("ignore") is None else str(attrs["ignore"]))
    return table


def _offset_table(decided: dict[str, dict[str, object]]) -> Table:
    table = Table(title=f"S2 offset of {len(decided)} sites" + (f", the first {MAX_ROWS}" if len(decided) > MAX_ROWS else ""), title_justify="left")
    for heading in ("site", "added", "why"):
        table.add_column(heading, overflow="fold")
    for site, decision in list(decided.items())[:MAX_ROWS]:
        table.add_row(Text(site), str(decision["offset"]), Text(str(decision["reason"])))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
