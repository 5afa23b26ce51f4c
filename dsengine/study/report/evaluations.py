"""Evaluations: their tables as they wrote them, confusion matrices out of results.json, and their other figures."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from dsengine.study.report.folders import Evaluation
from dsengine.study.report.html import Html, join, missing, paragraph, table, tag
from dsengine.study.report.pictures import picture

_MOST_MATRICES, _MOST_FIGURES, _MOST_CLASSES = 6, 12, 40
_CAPTIONS = {
    "scores": "Figure of each encoder on the test set, per cent, with its 95 % interval", "classes": "Figure of each class, per cent",
    "learning": "Training loss and figure on val, by epoch", "bands": "Figure by band, per cent", "chosen": "What was chosen on val, per cent",
    "label_fractions": "Figure by share of the train labels, per cent", "maps": "What was shown, the truth, and what was predicted",
}


def section(evaluation: Evaluation) -> Html:
    """One evaluation."""
    results = evaluation.results
    title = str(results.get("evaluation") or evaluation.path.resolve().name)
    folder = evaluation.path.resolve().name
    parts: list[Html | None] = [tag("h3", None, title if folder == title else f"{title} · {folder}"), paragraph(_about(results), kind="note")]
    parts += _tables(evaluation.tables) if evaluation.tables else [missing("No tables: the folder has no table.md, the evaluation was not finished.")]
    rows = _rows(results)
    matrices = [matrix for row, name in zip(rows[:_MOST_MATRICES], _names(rows)) if (matrix := _matrix(row, name)) is not None]
    parts.append(tag("div", {"class": "sheets"}, *matrices) if matrices else missing("No confusion matrix: results.json holds none."))
    if matrices and len(rows) > _MOST_MATRICES:
        parts.append(paragraph(f"The confusion matrices of {len(rows) - _MOST_MATRICES} more rows are in {evaluation.path}.", kind="note"))
    figures = [path for path in evaluation.figures if not path.name.startswith("confusion")]
    drawn = [picture(path, _caption(path.stem), alt=f"{title}: {_caption(path.stem)}; its numbers are in the tables above")
             for path in figures[:_MOST_FIGURES]]
    parts.append(tag("div", {"class": "sheets"}, *drawn) if drawn else missing("No figures: the evaluation's folder figures/ is empty."))
    return tag("section", None, *parts)


def markdown_parts(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """("table", rows), ("heading", [[text]]) and ("text", [[line]]) of a Markdown text, in order; its title and pictures are left out."""
    block: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("|"):
            block.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if block:
            yield "table", [row for row in block if not all(re.fullmatch(r":?-{3,}:?", cell) for cell in row)]
            block = []
        if line.strip() and not line.startswith(("# ", "![")):
            yield ("heading" if line.startswith("#") else "text"), [[line.lstrip("#").strip()]]


def _tables(text: str) -> list[Html]:
    """Tables with captions: the line before one that ends in a colon, else the heading that it stands under, else what its first column says."""
    parts: list[Html] = []
    found = list(markdown_parts(text))
    heading = ""
    for k, (kind, rows) in enumerate(found):
        if kind == "heading":
            heading = rows[0][0]
        elif kind == "text" and not (_announces(rows) and k + 1 < len(found) and found[k + 1][0] == "table"):
            parts.append(paragraph(rows[0][0], kind="note"))
        elif kind == "table" and rows:
            announced = found[k - 1][1][0][0].rstrip(":") if k and found[k - 1][0] == "text" and _announces(found[k - 1][1]) else ""
            numbers = [n for n in range(1, len(rows[0])) if all(_is_number(row[n]) for row in rows[1:] if n < len(row))]
            parts.append(table([_plain(cell) for cell in rows[0]], [[_plain(cell) for cell in row] for row in rows[1:]], numbers=numbers,
                               caption=announced or heading or _title_of(rows)))
    return parts


def _announces(rows: list[list[str]]) -> bool:
    return rows[0][0].endswith(":")


def _title_of(rows: list[list[str]]) -> str:
    first = rows[0][0]
    return f"{first} of each class, %" if first in ("IoU", "F1", "Jaccard") else f"Figures by {first}, on the test set, %"


def _is_number(text: str) -> bool:
    return text in ("", "-") or bool(re.match(r"[*<_u>]*[+-]?\d", text))


def _plain(cell: str) -> Html:
    """Bold and underlined of Markdown, as tables of studies have them."""
    bold = re.fullmatch(r"\*\*(.+)\*\*", cell)
    inner = bold.group(1) if bold else cell
    under = re.fullmatch(r"<u>(.+)</u>", inner)
    content = tag("u", None, under.group(1)) if under else join([inner])
    return tag("strong", None, content) if bold else content


def _about(results: dict[str, Any]) -> str:
    corpus, split = (results.get(key) if isinstance(results.get(key), dict) else {} for key in ("corpus", "split"))
    said = [f"corpus {corpus['path']}" if "path" in corpus else "", f"label {corpus['label']}" if corpus.get("label") else "",
            f"split: {split['by']}" if "by" in split else ""]
    return ", ".join(text for text in said if text) or "results.json says neither corpus nor split"


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = results.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _matrix(row: dict[str, Any], name: str) -> Html | None:
    """Counts as a table whose cells are shaded by their share of the true class; nothing where the row has none."""
    classes = list(row["classes"]) if isinstance(row.get("classes"), dict) else []
    try:
        counts = np.array(row.get("confusion"), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if counts.ndim != 2 or counts.shape != (len(classes), len(classes)) or not classes or len(classes) > _MOST_CLASSES:
        return None
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    columns = [tag("th", {"scope": "col"}, predicted) for predicted in classes]
    head = tag("tr", None, tag("th", {"scope": "col", "class": "corner"}, "true \\ predicted"), *columns)
    lines = [tag("tr", None, tag("th", {"scope": "row"}, true), *(_cell(counts[y, x], shares[y, x], own=x == y) for x in range(len(classes))))
             for y, true in enumerate(classes)]
    whole = tag("table", {"class": "confusion"}, tag("caption", None, f"Confusion of {name}: share of the true class, % (rows sum to 100)"),
                tag("thead", None, head), tag("tbody", None, *lines))
    return tag("div", {"class": "scroll", "role": "region", "aria-label": f"confusion matrix of {name}", "tabindex": "0"}, whole)


def _cell(count: float, share: float, *, own: bool) -> Html:
    kind = " ".join(name for name, holds in (("own", own), ("nil", share == 0)) if holds)
    return tag("td", {"style": f"--share:{share:.3f}", "class": kind or None, "title": f"{count:,.0f} samples"}, f"{100 * share:.0f}")


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """The name of each row, and the facts that tell it from others."""
    told = [{key: value for key, value in row.items() if key not in ("name", "kind", "num_groups") and isinstance(value, (str, int, float))}
            for row in rows]
    varying = [key for key in dict.fromkeys(key for facts in told for key in facts) if len({str(facts.get(key)) for facts in told}) > 1]
    return [", ".join([str(row.get("name", "?")), *(f"{key.replace('_', ' ')} {facts[key]}" for key in varying if key in facts)])
            for row, facts in zip(rows, told)]


def _caption(stem: str) -> str:
    return _CAPTIONS.get(stem, stem.replace("_", " ").replace("-", " "))


def overview(evaluations: list[Evaluation]) -> Html:
    """All evaluations, or why there are none."""
    if not evaluations:
        return missing("No evaluation of these runs was found in or beside their folders; `dsengine evaluate linear --run DIR --corpus PATH "
                       "--out DIR/linear` makes one, or name its folder: `dsengine report DIR OUT`.")
    return join(section(evaluation) for evaluation in evaluations)


