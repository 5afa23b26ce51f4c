"""Tables of a study: literal tables in three spellings, what is marked, what failed, and which table an evaluation gets."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dsengine.study import cells, layouts, outputs, spec, wins
from dsengine.study.results import Judged, Score, gather
from dsengine.study.state import Outcome
from dsengine.study.table import Entry, Table, best, entry, escape, to_csv, to_latex, to_markdown

NAN = math.nan
TABLE9 = ((38.5, 48.2, 55.7), (49.4, 54.8, 59.4), (50.2, 51.3, 59.7), (46.3, 37.6, 48.8))  # of the first paper
ENCODERS, METHODS = ("ResNet18", "ResNet34", "ResNet18-Attn"), ("None", "VAE", "T2V", "CSF")


def paper() -> Table:
    entries = tuple(tuple(entry([Score(value / 100, NAN, NAN)]) for value in line) for line in TABLE9)
    return Table(name="t", title="Table 9", corner="Encoder", rows=METHODS, columns=ENCODERS, entries=entries,
                 heads=(("Parameters, million", "13.5", "23.5", "13.9"),), notes=("Per cent.",))


def test_table_9_has_its_bold_and_underlined_figures_in_markdown() -> None:
    assert to_markdown(paper()) == """## Table 9

| Encoder | ResNet18 | ResNet34 | ResNet18-Attn |
| --- | --- | --- | --- |
| Parameters, million | 13.5 | 23.5 | 13.9 |
| None | 38.5 | 48.2 | **55.7** |
| VAE | 49.4 | <u>54.8</u> | **59.4** |
| T2V | <u>50.2</u> | 51.3 | **<u>59.7</u>** |
| CSF | 46.3 | 37.6 | **48.8** |

Per cent.
"""


def test_table_9_in_latex_needs_no_package() -> None:
    assert to_latex(paper()) == r"""\begin{table}
\centering
\caption{Table 9}
\begin{tabular}{lrrr}
\hline
Encoder & ResNet18 & ResNet34 & ResNet18-Attn \\
Parameters, million & 13.5 & 23.5 & 13.9 \\
\hline
None & 38.5 & 48.2 & \textbf{55.7} \\
VAE & 49.4 & \underline{54.8} & \textbf{59.4} \\
T2V & \underline{50.2} & 51.3 & \textbf{\underline{59.7}} \\
CSF & 46.3 & 37.6 & \textbf{48.8} \\
\hline
\end{tabular}
\par\smallskip\footnotesize
Per cent.
\end{table}
"""


def test_csv_has_every_number_apart() -> None:
    two = [Score(0.50, 0.4, 0.6), Score(0.54, 0.42, 0.66)]
    table = Table(name="t", title="t", corner="pretraining", rows=("a",), columns=("x", "y"), entries=((entry(two), Entry()),))
    assert to_csv(table) == ("pretraining,x mean,x std,x low,x high,x seeds,y mean,y std,y low,y high,y seeds\n"
                             f"a,52.0000,{100 * 0.02 * math.sqrt(2):.4f},41.0000,63.0000,2,,,,,0\n")


@pytest.mark.parametrize("scores, errors, markdown, latex", [
    ([Score(0.5, NAN, NAN)], (), "50.0", "50.0"),
    ([Score(0.5, 0.25, 0.75)], (), "50.0 [25.0, 75.0]", "50.0 [25.0, 75.0]"),
    ([Score(0.5, NAN, NAN), Score(0.7, NAN, NAN)], (), "60.0 ± 14.1", r"60.0 $\pm$ 14.1"),
    ([Score(0.5, 0.2, 0.6), Score(0.7, 0.4, 0.8)], (), "60.0 ± 14.1 [30.0, 70.0]", r"60.0 $\pm$ 14.1 [30.0, 70.0]"),
    ([Score(0.5, NAN, NAN)], ("no disk",), "50.0[^1]", "50.0$^{1}$"),
    ([], ("no disk", "no data"), "failed[^1][^2]", "failed$^{1,2}$"),
    ([Score(NAN, NAN, NAN)], (), "-", "-"),
    ([], (), "-", "-"),
])
def test_an_entry_says_what_is_known(scores: list[Score], errors: tuple[str, ...], markdown: str, latex: str) -> None:
    table = Table(name="t", title="t", corner="c", rows=("a",), columns=("x",), entries=((entry(scores, errors),),))
    assert f"| a | {markdown} |" in to_markdown(table) and rf"a & {latex} \\" in to_latex(table)
    for number, error in enumerate(errors, 1):
        assert f"[^{number}]: {error}" in to_markdown(table) and f"$^{{{number}}}$ {error}" in to_latex(table)


def test_equals_are_all_best_and_where_all_are_equal_none_is() -> None:
    def made(*lines: tuple[float, ...]) -> Table:
        return Table(name="t", title="t", corner="c", rows=("a", "b"), columns=("x", "y", "z"),
                     entries=tuple(tuple(Entry(mean=value, num_seeds=1) for value in line) for line in lines))

    bold, underlined = best(made((0.1, 0.3, 0.3), (0.2, 0.2, 0.2)))
    assert bold == {(0, 1), (0, 2)} and underlined == {(1, 0), (0, 1), (0, 2)}
    bold, underlined = best(made((0.1, NAN, NAN), (NAN, NAN, NAN)))
    assert not bold and not underlined  # nothing to be better than


@pytest.mark.parametrize("text, latex", [("50 % of A&B_1", r"50 \% of A\&B\_1"), (r"a\b", r"a\textbackslash{}b"), ("{x}^2~$#", r"\{x\}\textasciicircum{}2\textasciitilde{}\$\#")])
def test_latex_prints_what_was_written(text: str, latex: str) -> None:
    assert escape(text) == latex
    table = Table(name="t", title=text, corner=text, rows=(text,), columns=(text,), entries=((entry([], (text,)),),), notes=(text,), heads=((text, text),))
    assert to_latex(table).count(latex) == 8 and "|" not in to_markdown(table).splitlines()[2].replace("| ", "").replace(" |", "")


STUDY = {"corpus": {"synth": {"patches": 32, "size": 32}}, "seeds": [0, 1], "encoders": {"resnet18": {"title": "R18"}, "resnet34": {"title": "R34"}},
         "methods": ["none", "vae"], "evaluations": {"scene": {"label_fractions": [0.1, 1.0]}}}


def judged(folder: Path, rows: dict[str, list[dict]]) -> tuple[spec.Study, Judged]:
    """The study's evaluation with results.json of `rows` by `encoder-method seed`; what is not there failed."""
    study = spec.parse(spec._mapped(STUDY))
    planned, outcomes = cells.plan(study), {}
    for cell in planned:
        place = f"{cell.about.get('encoder')}-{cell.about.get('method')} {cell.about.get('seed')}"
        done = cell.kind != "evaluate" or place in rows
        outcomes[cell.id] = Outcome(status="done" if done else "failed", name=cell.name, error="" if done else "no disk")
        if cell.kind == "evaluate" and done:
            (folder / cell.folder).mkdir(parents=True)
            document = {"figure": "f1_weighted", "classes": ["a", "b"], "rows": rows[place]}
            (folder / cell.folder / "results.json").write_text(json.dumps(document))
    return study, gather(study, planned, outcomes, folder)["scene"]


def row(name: str, value: float, *, kind: str = "pretrained", share: float = 1.0, band: str = "all") -> dict:
    classes = {label: {"iou": None, "f1": value + k / 10, "support": 1} for k, label in enumerate("ab")}
    return {"name": name, "kind": kind, "probe": "mlp", "label_fraction": share, "band": band, "protocol": {"bands": ["B02"]}, "about": {}, "classes": classes,
            "figures": {"f1_weighted": {"value": value, "low": None, "high": None}}, "num_groups": 3, "confusion": []}


def test_seeds_are_averaged_facts_are_tables_and_floors_stand_below(tmp_path: Path) -> None:
    rows = {"resnet18-none 0": [row("untrained resnet18", 0.2, kind="untrained"), row("image statistics", 0.3, kind="floor"),
                                row("untrained resnet18", 0.1, kind="untrained", share=0.1)],
            "resnet18-none 1": [row("untrained resnet18", 0.4, kind="untrained")], "resnet34-vae 0": [row("resnet34-vae", 0.5)]}
    found = {table.name: table for table in layouts.tables(*judged(tmp_path, rows))}
    assert set(found) == {f"scene{part}-label-fraction-{share}" for part in ("", "-classes") for share in ("0.1", "1")}
    small, whole, classes = (found[f"scene{part}-label-fraction-{share}"] for part, share in (("", "0.1"), ("", "1"), ("-classes", "1")))
    assert whole.rows == ("none", "vae") and whole.columns == ("R18", "R34")
    assert (whole.entries[0][0].mean, whole.entries[0][0].num_seeds) == (pytest.approx(0.3), 2) and whole.entries[0][0].std == pytest.approx(math.sqrt(0.02))
    assert whole.entries[1][1].mean == 0.5 and whole.entries[1][1].errors == ("R34, vae, seed 1: no disk",)
    assert whole.entries[1][0].num_seeds == 0 and len(whole.entries[1][0].errors) == 2
    assert "Floors: image statistics 30.0." in whole.notes
    assert small.entries[0][0].mean == 0.1
    assert classes.columns == ("a", "b") and classes.rows[0] == "R18, none" and classes.entries[0][1].mean == pytest.approx(0.4)


def test_bands_make_table_one_with_foreign_weights_in_front(tmp_path: Path) -> None:
    rows = {"resnet18-none 0": [row("ImageNet", 0.6, band="B02"), row("untrained resnet18", 0.2, kind="untrained", band="B02"),
                                row("untrained resnet18", 0.3, kind="untrained", band="B8A")],
            "resnet18-vae 0": [row("resnet18-vae", 0.7, band="B02"), row("resnet18-vae", 0.8, band="B8A")]}
    (table,) = layouts.tables(*judged(tmp_path, rows))
    assert table.rows == ("B02", "B8A") and table.columns == ("ImageNet", "R18, none", "R18, vae", "R34, none", "R34, vae")
    assert [of.mean for of in table.entries[0]] == pytest.approx([0.6, 0.2, 0.7, NAN, NAN], nan_ok=True)
    assert best(table) == ({(0, 2), (1, 2)}, set())


def crops(accuracy: dict[str, list[float]]) -> dict:
    gains = {name: [100 * (a - r) / r for a, r in zip(values, accuracy["raw"])] for name, values in accuracy.items() if name != "raw"}
    return {"networks": {"bilstm": {"configurations": [], "test": {"accuracy": accuracy, "gain_percent": gains}}}}


def test_wins_are_counted_over_configurations_and_seeds() -> None:
    of = Judged(spec.parse(spec._mapped(STUDY)).evaluations[0])
    of.documents = {0: crops({"raw": [0.5, 0.6], "x": [0.6, 0.6], "y": [0.4, 0.7]}), 1: crops({"raw": [0.5, 0.5], "x": [0.4, 0.9]})}
    (matrix,) = wins.matrices(of)
    assert matrix.inputs == ("raw", "x") and (matrix.network, matrix.part, matrix.seeds) == ("bilstm", "test", (0, 1))
    np.testing.assert_allclose(matrix.share, [[NAN, 1 / 3], [2 / 3, NAN]])  # x wins twice, loses once, ties once
    assert matrix.ties[0, 1] == 1 and matrix.gains["x"] == pytest.approx([20, 0, -20, 80])
    assert wins.to_csv(matrix) == "wins of the row,raw,x\nraw,,0.3333\nx,0.6667,\n"
    assert "| x | 0.67 | - | +10.0 |" in wins.to_markdown(matrix)
    assert wins.to_latex(matrix) == "\n".join([r"\begin{tabular}{lrr}", r"\hline", r"wins of the row over & raw & x \\", r"\hline", r"raw & - & 0.33 \\",
                                               r"x & 0.67 & - \\", r"\hline", r"\end{tabular}", ""])


def test_study_json_is_json_and_has_all_numbers(tmp_path: Path) -> None:
    study, of = judged(tmp_path, {"resnet18-none 0": [row("untrained resnet18", 0.2, kind="untrained")]})
    planned = cells.plan(study)
    text = json.dumps(outputs.document(study, planned, {}, {"scene": of}, wall_s=1.0), default=str, allow_nan=False)
    found = json.loads(text)
    assert found["results"][0]["figures"]["f1_weighted"] == [0.2, None, None] and found["results"][0]["facts"]["probe"] == "mlp"
    assert len(found["cells"]) == len(planned) and found["versions"]["torch"] and found["study"]["seeds"] == [0, 1]
