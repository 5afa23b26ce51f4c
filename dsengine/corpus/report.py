"""Tables about a corpus for a person at a terminal of 80 columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsengine.corpus.facts import facts
from dsengine.corpus.index import Corpus
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.storage import Url
from dsengine.corpus.verify import Problem, Verified

MAX_ROWS = 40  # of a table about files or damage
MAX_FAULTS = 10


def print_info(corpus: Corpus | SeriesCorpus, console: Console) -> None:
    """What `corpus info` shows: summary, arrays, bands, labels, faults of the input and the S2 offsets that were decided."""
    found = facts(corpus)
    console.print(Text(found["path"], style="bold"))
    console.print(_summary(found))
    console.print(_array_table(found))
    console.print(_band_table(found["bands"]))
    if found["labels"]:
        console.print(_label_table(found["labels"]))
    if found["num_faults"]:
        console.print(_fault_table(found))
    if decided := found["made_by"].get("s2_offset"):
        console.print(_offset_table(decided))


def stats_table(corpus: Corpus | SeriesCorpus) -> Table:
    """One line a band: where it is stored and its statistics."""
    return _band_table(facts(corpus, shares=False)["bands"])


def damage_table(problems: Sequence[Problem], path: Path | Url) -> Table:
    """File below `path`, array and patch of each problem."""
    table = _table(f"problems: {len(problems)}" + (f", the first {MAX_ROWS}" if len(problems) > MAX_ROWS else ""), left=("file", "array", "patch", "what"))
    for problem in problems[:MAX_ROWS]:
        table.add_row(Text(str(problem.file).removeprefix(f"{path}/")), Text(problem.array), _patches(problem), Text(problem.what))
    return table


def verdict(path: Path | Url, result: Verified, *, before: np.ndarray, after: np.ndarray, rest: Sequence[Problem]) -> str:
    """The last line of `corpus verify`; `before` and `after` are column `quarantine`, `rest` the problems outside quarantine."""
    what = result.corpus.kind if isinstance(result.corpus, SeriesCorpus) else "patches"
    line = f"{path}: {result.num_chunks} chunks of {len(result.corpus)} {what} checked, {len(result.problems)} problems"
    set_aside, released = np.count_nonzero((before == 0) & (after != 0)), np.count_nonzero((before != 0) & (after == 0))
    if set_aside:
        line += f"; {set_aside} {what} put in quarantine"
    if released:
        line += f"; {released} {what} let back in"
    if inside := np.count_nonzero(after):
        line += f"; {inside} {what} in quarantine"
    if rest and any(problem.patch >= 0 for problem in rest):
        line += f"; `dsengine corpus verify --quarantine {path}` leaves damaged {what} out of every split"
    return line


def _patches(problem: Problem) -> str:
    if problem.patch < 0:
        return "-"
    return str(problem.patch) if problem.num_patches == 1 else f"{problem.patch}-{problem.patch + problem.num_patches - 1}"


def _summary(found: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    kind, rows, size = found["kind"], found["rows"], found["patch_size"]
    table.add_row(kind, f"{rows:,}" + (f" of {size} x {size} pixels, {found['resolution_m']:g} m" if size else ""))
    table.add_row("sensors", ", ".join(found["sensors"]))
    made_by = (found["split_made_by"] or {}).get("by")
    table.add_row("splits", ", ".join(f"{name} {count:,}" for name, count in found["splits"].items()) + (f" (by {made_by})" if made_by else ""))
    for measured in found["leakage"]:
        table.add_row("", Text(measured["sentence"]))
    if extent := found["extent"]:
        table.add_row("longitude", f"{extent['west']:.4f} to {extent['east']:.4f}")
        table.add_row("latitude", f"{extent['south']:.4f} to {extent['north']:.4f}")
    else:
        table.add_row("places", "unknown")
    for name, times in found["times"].items():
        table.add_row(f"time {name}", _time(times))
    table.add_row("nodata", f"{found['nodata']['mean']:.2%} of all values, {found['nodata']['rows']:,} {kind} have some")
    if cloud := found["cloud"]:
        table.add_row("cloud", f"{cloud['mean']:.1%} on average, unknown for {cloud['unknown']:,}")
    table.add_row("quarantine", f"{found['quarantine']:,} {kind}")
    if found["extra_columns"]:
        table.add_row("also in index", ", ".join(f"{name} ({dtype})" for name, dtype in found["extra_columns"].items()))
    if neighbours := found["neighbours"]:
        table.add_row("neighbours", f"{neighbours['pairs']:,} within {neighbours['radius_km']:g} km")
    if tested := found["made_by"].get("pair_test"):
        table.add_row("pairs", f"band correlation {tested['correlation']:.2f}" + ("" if tested["paired"] else ": scrambled"))
    table.add_row("on disk", f"{_bytes(found['bytes']['all'])}, of which index {_bytes(found['bytes']['index'])}, labels {_bytes(found['bytes']['labels'])}")
    table.add_row("manifest", "yes" if found["sealed"] else f"none: `dsengine corpus verify --seal {found['path']}` makes one")
    return table


def _array_table(found: Mapping[str, Any]) -> Table:
    table = _table("arrays", left=("array", "shape", "codec"), right=("on disk", "ratio", "shard"))
    for name, array in found["arrays"].items():
        codec = array["codec"].removeprefix("bytes, ").removesuffix(", crc32c") + ("" if array["codec"].endswith("crc32c") else ", unchecked")
        table.add_row(name.rpartition("/")[2], f"{'x'.join(map(str, array['shape']))} {array['dtype']}", codec, _bytes(array["stored_bytes"]),
                      "-" if array["ratio"] is None else f"{array['ratio']:.2f}", str(array["shard_rows"] or "-"))
    return table


def _band_table(bands: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("bands", left=("band", "array", "unit"), right=("m", "mean", "std", "valid", "cut"), fold=False)
    for band in bands:
        table.add_row(band["name"], band["array"].rpartition("/")[2], band["units"], f"{band['resolution_m']:g}", _number(band["mean"]), _number(band["std"]),
                      _count(band["count"]), _count(band["saturated"]))
    return table


def _label_table(labels: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("labels", left=("label", "kind", "classes, with their shares"))
    for name, label in labels.items():
        shares = label.get("shares") or {}
        classes = [f"{value} {text}" + (f" {shares[value]:.1%}" if value in shares else "") for value, text in label["classes"].items()]
        strangers = [f"{value} {share:.1%}" + (" (ignored)" if value == str(label["ignore"]) else "") for value, share in shares.items()
                     if value not in label["classes"]]
        sample = [f"[of {label['looked_at']} patches]"] if label.get("looked_at") and label["kind"] == "classmap" else []
        table.add_row(Text(name), str(label["kind"]), Text(", ".join([*classes, *strangers, *sample])))
    return table


def _fault_table(found: Mapping[str, Any]) -> Table:
    table = _table(f"faults of the input: {found['num_faults']:,}" + (f", the first {MAX_FAULTS}" if found["num_faults"] > MAX_FAULTS else ""), left=("what",))
    for fault in found["faults"][:MAX_FAULTS]:
        table.add_row(Text(str(fault)))
    return table


def _offset_table(decided: Mapping[str, Mapping[str, object]]) -> Table:
    table = _table(f"S2 offset of {len(decided)} sites" + (f", the first {MAX_ROWS}" if len(decided) > MAX_ROWS else ""), left=("site", "added", "why"))
    for site, decision in list(decided.items())[:MAX_ROWS]:
        table.add_row(Text(site), str(decision["offset"]), Text(str(decision["reason"])))
    return table


def _table(title: str, *, left: Sequence[str], right: Sequence[str] = (), fold: bool = True) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (*left, *right):
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold" if fold else "ellipsis", no_wrap=heading in right)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def _count(value: int | None) -> str:
    """Exact up to six digits, then in millions or thousand millions."""
    if value is None:
        return "-"
    return f"{value:,}" if value < 10**6 else f"{value / 1e6:,.1f} M" if value < 10**10 else f"{value / 1e9:,.1f} G"


def _bytes(value: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def _time(times: Mapping[str, Any]) -> str:
    if times["first"] is None:
        return "unknown"
    first, last = (times[key][:16].replace("T", " ") for key in ("first", "last"))
    return f"{first} to {last} UTC" + (f", unknown for {times['unknown']:,}" if times["unknown"] else "")
