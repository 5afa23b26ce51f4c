"""Win matrices of crop evaluations, over seeds; Figures 3 and 4 of the second paper. `evaluate.crops.compare` has the definitions.

    W[i, j] = #(acc_i > acc_j) / #(acc_i != acc_j)        over the configurations of a network and the seeds of the study
"""

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsengine.evaluate.crops.compare import wins
from dsengine.study.results import Judged
from dsengine.study.table import escape


@dataclass(frozen=True)
class Matrix:
    """Of one network on one part: `test`, or `elsewhere` (another region or year)."""

    network: str
    part: str
    inputs: tuple[str, ...]
    share: np.ndarray  # (M, M) float64 W, NaN where all tie
    ties: np.ndarray  # (M, M) int64
    gains: dict[str, list[float]]  # input -> relative gain over raw, per cent, of each configuration and seed
    seeds: tuple[int, ...]


def matrices(judged: Judged) -> list[Matrix]:
    """Every network and part; inputs are those that all seeds have."""
    if not judged.documents:
        return []
    parts = [(network, part) for network, of in _first(judged)["networks"].items() for part in of if part != "configurations"]
    return [_matrix(judged, network, part) for network, part in parts]


def to_csv(matrix: Matrix) -> str:
    """W, the row against the column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["wins of the row", *matrix.inputs])
    for name, line in zip(matrix.inputs, matrix.share):
        writer.writerow([name, *("" if np.isnan(value) else f"{value:.4f}" for value in line)])
    return out.getvalue()


def to_markdown(matrix: Matrix) -> str:
    """W, and the median gain over raw."""
    head = ["wins of the row over", *matrix.inputs, "median gain over raw, %"]
    lines = [head, ["---"] * len(head)]
    for name, line in zip(matrix.inputs, matrix.share):
        gains = [gain for gain in matrix.gains.get(name, []) if np.isfinite(gain)]
        lines.append([name, *("-" if np.isnan(value) else f"{value:.2f}" for value in line), f"{np.median(gains):+.1f}" if gains else ""])
    body = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
    return "\n".join([f"## {matrix.network}, {matrix.part}", "", *body, ""])


def to_latex(matrix: Matrix) -> str:
    """W as a `tabular`."""
    lines = [["wins of the row over", *matrix.inputs]]
    lines += [[name, *("-" if np.isnan(value) else f"{value:.2f}" for value in line)] for name, line in zip(matrix.inputs, matrix.share)]
    body = [" & ".join(map(escape, line)) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * len(matrix.inputs)}}}", r"\hline", body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}", ""])


def _matrix(judged: Judged, network: str, part: str) -> Matrix:
    documents = list(judged.documents.items())
    found = [document["networks"][network][part] for _, document in documents]
    inputs = tuple(name for name in found[0]["accuracy"] if all(name in of["accuracy"] for of in found))
    accuracy = np.array([[value for of in found for value in of["accuracy"][name]] for name in inputs])
    compared = wins(accuracy)
    gains = {name: [np.nan if gain is None else gain for of in found for gain in of["gain_percent"].get(name, [])] for name in inputs}
    return Matrix(network, part, inputs, compared.share, compared.ties, gains, tuple(seed for seed, _ in documents))


def _first(judged: Judged) -> dict[str, Any]:
    return next(iter(judged.documents.values()))
