"""What a study leaves beside its cells: tables/ (CSV, Markdown, LaTeX), figures/, tables.md with all of them, scores.csv, study.json."""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsengine.evaluate.book import versions
from dsengine.study import figures, layouts, table, wins
from dsengine.study.cells import Cell
from dsengine.study.results import Judged, gather
from dsengine.study.spec import Study
from dsengine.study.state import Outcome, replace

FORMATS = {"csv": table.to_csv, "md": table.to_markdown, "tex": table.to_latex}
WIN_FORMATS = {"csv": wins.to_csv, "md": wins.to_markdown, "tex": wins.to_latex}


def write(study: Study, cells: Sequence[Cell], outcomes: Mapping[str, Outcome], folder: Path, *, wall_s: float) -> Path:
    """All of it; returns the path of tables.md."""
    found = gather(study, cells, outcomes, folder)
    pages = [f"# {study.title}", ""]
    for judged in found.values():
        pages += _crops(judged, folder) if judged.documents or judged.failed_seeds else _grids(study, judged, folder)
    pages += failures(cells, outcomes)
    replace(folder / "scores.csv", scores(found))
    replace(folder / "study.json", json.dumps(document(study, cells, outcomes, found, wall_s=wall_s), indent=1, default=str, allow_nan=False))
    return replace(folder / "tables.md", "\n".join(pages))


def scores(found: Mapping[str, Judged]) -> str:
    """Every figure of every row, seed by seed, as CSV in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["evaluation", "encoder", "pretraining", "row", "seed", "facts", "figure", "value", "low", "high"])
    for key, judged in found.items():
        for of in judged.results:
            facts = "; ".join(f"{name}={value}" for name, value in of.facts)
            for figure, score in of.figures.items():
                writer.writerow([key, of.encoder or "", of.method or "", of.name, of.seed, facts, figure, *("" if math.isnan(x) else repr(x) for x in score)])
    return out.getvalue()


def failures(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line for each cell that failed or could not be begun."""
    bad = [(cell, outcomes[cell.id]) for cell in cells if cell.id in outcomes and outcomes[cell.id].status != "done"]
    return ["## What failed", "", *(f"- {cell.kind} {cell.name}: {outcome.error}" for cell, outcome in bad), ""] if bad else []


def document(study: Study, cells: Sequence[Cell], outcomes: Mapping[str, Outcome], found: Mapping[str, Judged], *, wall_s: float) -> dict[str, Any]:
    """study.json."""
    def described(cell: Cell) -> dict[str, Any]:
        outcome = outcomes.get(cell.id)
        return {"id": cell.id, "kind": cell.kind, **cell.about, "folder": cell.folder, "needs": cell.needs, "settings": cell.settings,
                "outcome": None if outcome is None else asdict(outcome)}

    rows = [{"evaluation": key, "encoder": of.encoder, "method": of.method, "name": of.name, "seed": of.seed, "facts": dict(of.facts),
             "figures": {name: _numbers(score) for name, score in of.figures.items()},
             "classes": {label: {name: _numbers(score) for name, score in scores.items()} for label, scores in of.classes.items()}}
            for key, judged in found.items() for of in judged.results]
    matrices = [{"evaluation": key, "network": of.network, "part": of.part, "inputs": of.inputs, "seeds": of.seeds,
                 "share": [[None if math.isnan(x) else float(x) for x in line] for line in of.share], "ties": of.ties.tolist()}
                for key, judged in found.items() for of in wins.matrices(judged)]
    machine = {"system": platform.platform(), "processors": os.cpu_count(), "processor": platform.processor()}
    return {"title": study.title, "study": _plain(asdict(study)), "cells": [described(cell) for cell in cells], "results": rows, "wins": matrices,
            "seconds": {"this_call": round(wall_s, 2), "all_cells": round(sum(outcome.seconds for outcome in outcomes.values()), 2),
                        "processors": round(sum(outcome.cpu_s for outcome in outcomes.values()), 2)},
            "versions": versions(), "machine": machine}


def _grids(study: Study, judged: Judged, folder: Path) -> list[str]:
    pages = []
    for of in layouts.tables(study, judged):
        for suffix, spell in FORMATS.items():
            replace(folder / "tables" / f"{of.name}.{suffix}", spell(of))
        pages += [table.to_markdown(of)]
    drawn = figures.draw(study, judged, folder / "figures")
    return [*pages, *(f"![{path.stem}]({path.relative_to(folder)})\n" for path in drawn)]


def _crops(judged: Judged, folder: Path) -> list[str]:
    key, title = judged.evaluation.key, judged.evaluation.title
    every = wins.matrices(judged)
    pages = [f"## {title}", "", *(f"- seed {seed} failed: {error}" for seed, error in judged.failed_seeds.items()), ""]
    for part in dict.fromkeys(of.part for of in every):
        of_part = [of for of in every if of.part == part]
        for of in of_part:
            for suffix, spell in WIN_FORMATS.items():
                replace(folder / "tables" / f"{key}-wins-{of.network}-{part}.{suffix}", spell(of))
            pages.append(wins.to_markdown(of))
        drawn = [figures.draw_wins(of_part, f"{title}, {part}", folder / "figures" / f"{key}-wins-{part}.png"),
                 figures.draw_gains(of_part, f"{title}, {part}", folder / "figures" / f"{key}-gains-{part}.png")]
        pages += [f"![{path.stem}]({path.relative_to(folder)})\n" for path in drawn if path is not None]
    return pages


def _numbers(score: Sequence[float]) -> list[float | None]:
    """[value, low, high], NaN as null."""
    return [None if math.isnan(x) else x for x in score]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(of) for key, of in value.items()}
    return [_plain(of) for of in (sorted(value) if isinstance(value, frozenset) else value)] if isinstance(value, (list, tuple, frozenset)) else value
