"""A crop study as Markdown and CSV."""

import csv
import io
import math
from itertools import permutations, product
from typing import Any

import numpy as np

from dsengine.evaluate.crops.parts import ELSEWHERE
from dsengine.evaluate.crops.results import FIGURES, Results
from dsengine.evaluate.crops.runs import Run, score
from dsengine.evaluate.tables import cell, grid

PARTS = {"test": "task 1: the test fields", ELSEWHERE: "task 2: elsewhere"}


def markdown(results: Results, described: dict[str, Any]) -> str:
    """table.md: for each judged part one table of figures and one win matrix a network, then what they rest on."""
    lines = ["# crops", ""]
    for part in results.judged:
        lines += [f"## {PARTS[part]}", "", *_figures(results, part), ""]
        if len(results.inputs) > 1:
            for network in results.configurations:
                lines += [f"Wins of the row's input over the column's, {network}:", "", *_wins(results, network, part), ""]
    return "\n".join([*lines, *_notes(results, described), ""])


def sheets(results: Results) -> dict[str, str]:
    """{file: text}: configurations.csv, a line a fit and judged part; wins.csv, a line an ordered pair of inputs."""
    return {"configurations.csv": _csv(_configurations(results)), "wins.csv": _csv(_pairs(results))}


def _figures(results: Results, part: str) -> list[str]:
    head = ["network", "input", "accuracy, mean ± sd", "macro F1, mean ± sd", "accuracy of the one chosen on val", "wins over raw",
            "gain over raw, median"]
    rows = []
    for network in results.configurations:
        accuracy, f1 = (results.figure(network, part, figure) for figure in ("accuracy", "f1_macro"))
        won, gain = results.wins(network, part), results.gains(network, part)
        for k, name in enumerate(results.names):
            over = ["", ""] if k == 0 else [_share(won.won[k, 0], won.won[0, k]), _median(gain[k - 1])]
            rows.append([network, name, _spread(accuracy[k]), _spread(f1[k]), cell(results.intervals(network, name, part)["accuracy"]), *over])
    return grid(head, rows)


def _wins(results: Results, network: str, part: str) -> list[str]:
    won = results.wins(network, part).won
    rows = [[name, *("" if i == j else _share(won[i, j], won[j, i]) for j in range(len(won)))] for i, name in enumerate(results.names)]
    return grid(["", *results.names], rows)


def _share(won: int, lost: int) -> str:
    return f"{won / (won + lost):.2f} ({won}:{lost})" if won + lost else "all ties"


def _spread(x: np.ndarray) -> str:
    return f"{100 * x.mean():.1f} ± {100 * x.std():.1f}"


def _median(x: np.ndarray) -> str:
    return f"{np.nanmedian(x):+.1f} %" if np.isfinite(x).any() else "-"


def _notes(results: Results, described: dict[str, Any]) -> list[str]:
    setting, parts = results.setting, described["parts"]
    sizes = ", ".join(f"{name} {part['rows']} rows of {part['fields']} fields" for name, part in parts.items())
    said = [f"Figures in per cent. {setting.configs} configurations a network, the same for every input; {setting.seeds} fit(s) of each; mean ± "
            f"standard deviation over configurations. [95 % interval]: {setting.num_draws:,} draws of whole fields. Wins leave out ties; (won:lost).",
            f"{sizes}; {len(results.task.names)} classes. Split by {setting.split}; a field is "
            + (f"what has one value of index column {results.task.field}." if results.task.field else "a row, as the corpus has no column of fields."),
            "Always the commonest class of train: " + ", ".join(f"{100 * value:.1f} on {part}" for part, value in described["floor"].items())
            + f". Fits below that: {_below(results)} of {len(results.runs)}; gains over such a raw input have no meaning."]
    if setting.shrink > 1:
        said.append(f"Reduced setting: the widths of the paper's spaces are divided by {setting.shrink}.")
    if rare := results.task.left_out["rows_of_rare_classes"]:
        counts = ", ".join(f"{name} {count}" for name, count in rare.items())
        said.append(f"Left out, rows of classes of fewer than {setting.min_fields} fields: {counts}.")
    if shared := results.task.left_out["rows_of_fields_that_are_also_elsewhere"]:
        said.append(f"Left out of task 1, rows of fields that are also elsewhere: {shared}.")
    for given in results.inputs:
        if seen := given.about.get("judged_rows_in_its_train_split"):
            said.append(f"{given.name} was pretrained, without labels, on the train split of this corpus, in which lie of the judged rows: "
                        + ", ".join(f"{count} of {parts[part]['rows']} of {part}" for part, count in seen.items()) + ".")
    if setting.split == "fields":
        said.append("Split by fields: neighbouring fields lie on both sides, so the figures are higher than for places never seen (split=block).")
    fewest = min(parts[part]["fields"] for part in results.judged)
    if fewest < 200:
        said.append(f"{fewest} judged fields are few: {100 / fewest:.1f} points are one field, and all configurations are judged on the same ones.")
    return [line for text in said for line in (text, "")][:-1]


def _below(results: Results) -> int:
    """Fits with a lower accuracy than the commonest class has, on any judged part."""
    return sum(any(_score(results, run, part, "accuracy") < results.commonest(part) for part in results.judged) for run in results.runs)


def _configurations(results: Results) -> list[dict[str, Any]]:
    shapes = {(c.network, c.number): c.to_json() for of in results.configurations.values() for c in of}
    keys = dict.fromkeys(key for shape in shapes.values() for key in shape)
    return [{**{key: shapes[run.network, run.configuration].get(key, "") for key in keys}, "input": run.input, "seed": run.seed, "part": part,
             **{figure: _score(results, run, part, figure) for figure in FIGURES}, "best_epoch": run.best_epoch,
             "num_parameters": run.num_parameters, "seconds": run.seconds} for run in results.runs for part in ("val", *results.judged)]


def _score(results: Results, run: Run, part: str, figure: str) -> float:
    return score(run, part, results.task.parts[part].classes, len(results.task.names), figure=figure)


def _pairs(results: Results) -> list[dict[str, Any]]:
    lines = []
    for network, part in product(results.configurations, results.judged):
        found = results.wins(network, part)
        for i, j in permutations(range(len(results.names)), 2):
            share = found.share[i, j]
            lines.append({"network": network, "part": part, "input": results.names[i], "over": results.names[j], "won": int(found.won[i, j]),
                          "lost": int(found.won[j, i]), "ties": int(found.ties[i, j]), "share": "" if math.isnan(share) else float(share)})
    return lines


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()
