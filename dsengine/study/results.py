"""What the evaluations found, by encoder, method and seed; read from their results.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dsengine.errors import RunError
from dsengine.study.cells import JOINT, Cell, place_of
from dsengine.study.spec import Evaluation, Study
from dsengine.study.state import DONE, Outcome

_NO_FACTS = {"name", "kind", "figures", "num_groups", "classes", "confusion", "protocol", "about", "over_best_floor"}
Facts = tuple[tuple[str, Any], ...]  # what tells rows of one encoder apart: probe, band, label_fraction


class Score(NamedTuple):
    """A figure in [0, 1] and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of one evaluation."""

    encoder: str | None  # None: a floor, or weights that are not the study's
    method: str | None
    seed: int
    name: str
    facts: Facts
    figures: dict[str, Score]
    classes: dict[str, dict[str, Score]]  # class -> iou, f1
    about: dict[str, Any]
    bands: tuple[str, ...]


@dataclass
class Judged:
    """All that one evaluation of the study found."""

    evaluation: Evaluation
    figure: str = ""  # that its tables show
    classes: tuple[str, ...] = ()
    results: list[Result] = field(default_factory=list)
    folders: dict[tuple[str, str, int], Path] = field(default_factory=dict)  # of what is done
    errors: dict[tuple[str, str, int], str] = field(default_factory=dict)  # of what failed
    documents: dict[int, dict[str, Any]] = field(default_factory=dict)  # by seed, of evaluations that judge all runs at once
    failed_seeds: dict[int, str] = field(default_factory=dict)  # of such


def gather(study: Study, cells: Sequence[Cell], outcomes: Mapping[str, Outcome], folder: Path) -> dict[str, Judged]:
    """By evaluation. RunError for a results.json that does not read."""
    found = {evaluation.key: Judged(evaluation) for evaluation in study.evaluations}
    for cell in cells:
        if cell.kind == "evaluate" and cell.id in outcomes:
            judged, outcome = found[cell.about["evaluation"]], outcomes[cell.id]
            if cell.task.command in JOINT:
                _add_joint(judged, cell, outcome, folder)
            elif outcome.status == DONE:
                _add(judged, cell, folder / cell.folder)
            else:
                judged.errors[place_of(cell)] = outcome.error
    return found


def varying(results: Sequence[Result]) -> list[str]:
    """Facts in which results differ, in their order."""
    names = dict.fromkeys(name for result in results for name, _ in result.facts)
    return [name for name in names if len({str(dict(result.facts).get(name)) for result in results}) > 1]


def _add(judged: Judged, cell: Cell, folder: Path) -> None:
    document = _read(folder)
    judged.figure, judged.classes = judged.evaluation.figure or document["figure"], tuple(document["classes"])
    judged.folders[place_of(cell)] = folder
    for row in document["rows"]:
        mine = row["kind"] == "untrained" if cell.about["untrained"] else row["name"] in cell.runs
        judged.results.append(_result(row, cell, mine))


def _add_joint(judged: Judged, cell: Cell, outcome: Outcome, folder: Path) -> None:
    if outcome.status == DONE:
        judged.documents[cell.about["seed"]] = _read(folder / cell.folder)
    else:
        judged.failed_seeds[cell.about["seed"]] = outcome.error


def _result(row: Mapping[str, Any], cell: Cell, mine: bool) -> Result:
    encoder, method, seed = place_of(cell)
    classes = {name: {key: _score(of.get(f"{key}_interval", of[key])) for key in ("iou", "f1") if key in of} for name, of in row["classes"].items()}
    return Result(encoder=encoder if mine else None, method=method if mine else None, seed=seed, name=row["name"], classes=classes, about=row["about"],
                  facts=tuple((key, value) for key, value in row.items() if key not in _NO_FACTS), bands=tuple(row["protocol"].get("bands", ())),
                  figures={key: _score(value) for key, value in row["figures"].items()})


def _score(of: Any) -> Score:
    """A number, or one with its interval; null is NaN."""
    parts = (of["value"], of["low"], of["high"]) if isinstance(of, dict) else (of, None, None)
    return Score(*(math.nan if part is None else float(part) for part in parts))


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "results.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / 'results.json'}: not readable ({error}); remove {folder} and its cell is done again") from error
