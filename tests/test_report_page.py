"""The report as a page: it needs nothing beside it, shows every part or says why it is missing, and lets no text become markup."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from report_cases import Page, made_records, make_run  # noqa: E402

from dsengine import cli
from dsengine.errors import UsageError
from dsengine.study.report.style import DARK, LIGHT, MIX, SERIES_DARK, SERIES_LIGHT, contrast
from dsengine.study.report.write import write_report, write_short_report

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)>"\'&amp;</style></title>'


def _results(name: str, run: Path, classes: list[str]) -> dict:
    return {"evaluation": name, "corpus": {"path": f"/c/{name}", "label": "landcover"}, "split": {"by": "block"}, "figure": "f1_weighted", "rows": [
        {"name": "mine", "kind": "pretrained", "probe": "linear", "about": {"path": str(run)}, "classes": {c: {"iou": None} for c in classes},
         "confusion": [[3, 1], [0, 4]]}]}


def _evaluation(folder: Path, run: Path, *, name: str = "linear", classes: tuple[str, ...] = ("water", "forest")) -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(_results(name, run, list(classes))))
    (folder / "table.md").write_text(f"# {name}\n\n| encoder | weighted F1 |\n| --- | --- |\n| {classes[0]} | **81.5 [70.1, 90.2]** |\n| floor | 12.0 |\n\n8 places are few.\n")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "figures" / "scores.png")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "one")


def _page(*runs: Path, out: Path, **more: object) -> Page:
    return Page(write_report(runs, out=out, **more))


def test_the_page_loads_nothing_and_runs_nothing(run: Path, tmp_path: Path) -> None:
    _evaluation(tmp_path / "runs" / "probe", run)
    page = _page(run, out=tmp_path / "r.html")
    for element in page.all():
        assert element.name not in ("script", "link", "iframe", "object", "base", "form"), element.name
        assert not [key for key in element.attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href"):
            assert element.attributes.get(key, "#").startswith(("#", "data:image/")), element.attributes
    assert "url(" not in page.source and "@import" not in page.source
    policy = next(meta.attributes["content"] for meta in page.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "img-src data:" in policy and "script-src" not in policy


def test_the_page_has_one_title_headings_in_order_and_words_for_every_picture(run: Path, tmp_path: Path) -> None:
    _evaluation(tmp_path / "runs" / "probe", run)
    page = _page(run, out=tmp_path / "r.html")
    levels = [int(element.name[1]) for element in page.all() if re.fullmatch("h[1-6]", element.name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:])), levels
    assert page.all("html")[0].attributes["lang"] == "en" and page.all("main") and page.all("title")[0].text == "one"
    assert all(image.attributes["alt"] for image in page.all("img")) and page.all("img")
    drawn = [svg for svg in page.all("svg") if svg.attributes.get("aria-hidden") != "true"]
    assert drawn and all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in drawn)
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert all(link.attributes["href"][1:] in ids for link in page.all("a"))
    assert all(table.parent.attributes["class"] == "scroll" and table.all("caption")[0].text for table in page.all("table"))


def test_nothing_that_a_folder_says_becomes_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["method"] = {"name": EVIL, EVIL: EVIL}
    config["corpus"] = EVIL
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    records = made_records(4)
    records[2]["alarm"] = EVIL
    records[0][EVIL] = records[3][EVIL] = 1.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "history.jsonl").write_text(json.dumps({"event": "start", "time": EVIL, "versions": {EVIL: EVIL}, "machine": {"cpu": EVIL}}) + "\n")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(run / "figures" / "<i>x.png")
    _evaluation(tmp_path / "e", run, name=EVIL, classes=(EVIL, "forest"))
    other = make_run(tmp_path / "other")
    for page in (_page(run, tmp_path / "e", out=tmp_path / "r.html"), _page(run, other, out=tmp_path / "s.html")):
        assert not {element.name for element in page.all()} & {"script", "b"}
        assert not [image for image in page.all("img") if not image.attributes["src"].startswith("data:")]
        assert page.all("style")[0].parent.name == "head" and len(page.all("style")) == len(page.all("head")[0].all("title")) == 1
        assert page.source.count("alert(1)") > 5 and "<script" not in page.source
    assert EVIL in _page(run, out=tmp_path / "t.html").all("pre")[0].text


def test_a_folder_with_a_configuration_alone_makes_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "config.yaml").write_text("corpus: /nowhere\n")
    page = _page(run, out=tmp_path / "r.html")
    said = [element.text for element in page.all("p", "missing")]
    for words in ("No curves", "No contact sheet", "No reconstructions", "No embeddings", "No evaluation", "versions were not recorded"):
        assert any(words in text for text in said), words
    assert any(code.text.startswith("dsengine evaluate linear --run") for code in page.all("code")) and "`" not in page.root.text


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*made_records(5), {"step": 6, "loss": float("nan"), "lr": None}]) + '{"st')
    (run / "figures" / "views.png").write_bytes(b"no picture")
    (run / "history.jsonl").write_text("[1]\nnonsense\n")
    page = _page(run, out=tmp_path / "r.html")
    said = page.root.text
    assert "views.png: not a readable picture" in said and "history.jsonl: 1 lines are no records" in said and "1 logged losses are not finite" in said
    assert "6 (1 epochs)" in page.section("What was run").text
    (run / "metrics.jsonl").write_text("[]\n3\n")
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml: not readable YAML" in _page(run, out=tmp_path / "r.html").root.text


_JSON = st.recursive(st.none() | st.booleans() | st.integers(-5, 10**30) | st.floats() | st.text(max_size=4),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "name", "step", "a"]), inner, max_size=3), max_leaves=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["step", "epoch", "loss", "lr", "alarm", "data_wait", "feature_rank"]), _JSON),
       st.dictionaries(st.sampled_from(["event", "time", "seconds", "versions", "machine", "ranks", "how", "resumed"]), _JSON),
       st.dictionaries(st.sampled_from(["evaluation", "corpus", "split", "rows", "inputs"]), _JSON),
       st.dictionaries(st.sampled_from(["corpus", "method", "encoder", "train"]), _JSON), st.dictionaries(st.sampled_from(
           ["name", "classes", "confusion", "about", "probe"]), _JSON), st.text("|-#*:!a\n", max_size=30))
def test_any_json_in_the_files_makes_a_page(tmp_path: Path, record: dict, note: dict, results: dict, config: dict, row: dict, text: str) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    run = make_run(folder / "run", records=[*made_records(2), {"step": 3, **record}])
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "history.jsonl").write_text(json.dumps({"event": "start", **note}) + "\n" + json.dumps({"event": "end", **note}) + "\n")
    evaluation = _evaluation(run / "e", run)
    (evaluation / "results.json").write_text(json.dumps({"rows": [row], **results}))
    (evaluation / "table.md").write_text(text)
    assert Page(write_report([run], out=folder / "r.html", samples=0)).all("h1")


@pytest.mark.parametrize("how, words", [
    ("RunError: loss is not finite at step 3", "ended with RunError: loss is not finite at step 3"), (None, "killed, or still running"), ("done", "No alarm was raised")])
def test_how_a_run_ended_is_said(run: Path, tmp_path: Path, how: str | None, words: str) -> None:
    lines = (run / "history.jsonl").read_text().splitlines()
    lines[1:] = [] if how is None else [json.dumps({**json.loads(lines[1]), "how": how})]
    (run / "history.jsonl").write_text("\n".join(lines) + "\n")
    assert words in _page(run, out=tmp_path / "r.html").section("What was run").text


def test_several_runs_lie_over_each_other_and_the_settings_that_differ_are_listed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a" / "run", seed=1), make_run(tmp_path / "b" / "run", seed=2, lr=1e-3)]
    page = _page(*runs, out=tmp_path / "r.html")
    loss = page.all("figure", "chart")[0]
    assert [item.text for item in loss.all("li")] == ["a/run, training", "a/run, held-out", "b/run, training", "b/run, held-out"]
    assert {path.attributes["class"] for path in loss.all("path", "line")} == {"line c0", "line c0 thick", "line c1", "line c1 thick"}
    (table,) = [table for table in page.section("Settings").all("table")]
    assert [row.all("th")[0].text for row in table.all("tbody")[0].all("tr")] == ["train.seed", "train.lr"]
    assert [cell.text for cell in table.all("td")] == ["1", "2", "0.0005", "0.001"]


def test_more_runs_than_colours_are_told_apart_by_dashes(tmp_path: Path) -> None:
    page = _page(*(make_run(tmp_path / f"run{k}", seed=k) for k in range(18)), out=tmp_path / "r.html")
    kinds = [path.attributes["class"] for path in page.all("figure", "chart")[0].all("svg")[0].all("path", "line")]
    assert len(set(kinds)) == len(kinds) == 36


def test_evaluations_in_and_beside_a_run_are_found_and_those_of_other_runs_are_not(run: Path, tmp_path: Path) -> None:
    _evaluation(run / "linear", run, name="inside")
    _evaluation(run.parent / "probe", run, name="beside")
    _evaluation(run.parent / "stranger", tmp_path / "else", name="of another")
    said = _page(run, out=tmp_path / "r.html").section("Evaluations")
    assert [title.text.split(" ·")[0] for title in said.all("h3")] == ["inside", "beside"]
    given = _page(run, run.parent / "stranger", out=tmp_path / "r.html").section("Evaluations")
    assert [title.text.split(" ·")[0] for title in given.all("h3")] == ["of another", "inside", "beside"]


def test_an_evaluation_shows_its_tables_and_its_confusion_in_shares_of_the_truth(run: Path, tmp_path: Path) -> None:
    section = _page(_evaluation(tmp_path / "e", run), out=tmp_path / "r.html").section("Evaluations")
    figures, matrix = section.all("table")
    assert [cell.text for cell in figures.all("td")] == ["81.5 [70.1, 90.2]", "12.0"] and figures.all("strong")[0].text.startswith("81.5")
    assert [cell.text for cell in matrix.all("td")] == ["75", "25", "0", "100"]
    assert [cell.attributes["style"] for cell in matrix.all("td")] == ["--share:0.750", "--share:0.250", "--share:0.000", "--share:1.000"]
    assert "8 places are few." in section.text and matrix.all("caption")[0].text.startswith("Confusion of mine:")
    results = _results("x", run, ["water"])
    (tmp_path / "e" / "results.json").write_text(json.dumps(results))
    assert "No confusion matrix" in _page(tmp_path / "e", out=tmp_path / "r.html").root.text


def test_tables_of_an_evaluation_are_called_what_stands_before_them(run: Path, tmp_path: Path) -> None:
    folder = _evaluation(run.parent / "crops", tmp_path)
    (folder / "results.json").write_text(json.dumps({"evaluation": "crops", "inputs": [{"name": "mine", "about": {"path": str(run)}}]}))
    (folder / "table.md").write_text("# crops\n\n## task 1\n\n| network | input | F1 |\n| --- | --- | --- |\n| lstm | raw | 61.2 ± 3.0 |\n\nWins over the column, lstm:\n\n"
                                     "| | raw |\n| --- | --- |\n| raw | |\n\nOne thing to know: fields.\n\n![x](figures/x.png)\n")
    section = _page(run, out=tmp_path / "r.html").section("Evaluations")
    assert [table.all("caption")[0].text for table in section.all("table")] == ["task 1", "Wins over the column, lstm"]
    assert "One thing to know: fields." in section.text and "figures/x.png" not in section.text and section.text.count("Wins over") == 1
    assert [cell.attributes.get("class") for cell in section.all("table")[0].all("td")] == [None, "number"]


def test_what_cannot_be_a_report_is_refused_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.html").write_text("<p>years of work</p>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text("{")
    for argv, words in [([tmp_path / "empty"], "empty: no run"), ([tmp_path / "none"], "none: no run"), ([run, "--out", tmp_path / "x.pdf"], "ends in .html"),
                        ([run, "--out", tmp_path / "no" / "x.html"], "there is no folder"), ([run, "--out", tmp_path / "mine.html"], "is no report"),
                        ([run, "--corpus", "/nowhere"], "--corpus /nowhere"), ([run, "--samples", "-1"], "--samples -1"), ([tmp_path / "bad"], "not readable"), ([], "RUN")]:
        try:
            code = cli.main(["report", *map(str, argv)])
        except SystemExit as stop:
            code = stop.code
        err = capsys.readouterr().err
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
    assert (tmp_path / "mine.html").read_text() == "<p>years of work</p>"


def test_a_report_is_replaced_and_lies_in_the_run_unless_said_otherwise(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert write_short_report(run) == run / "report.html"
    assert "short report" in Page(run / "report.html").root.text
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "short report" not in Page(run / "report.html").root.text
    assert not [path for path in run.iterdir() if path.name.endswith(".part")]
    with pytest.raises(UsageError, match="name a run"):
        write_report([])


def test_text_and_lines_stand_out_from_the_page_in_both_modes() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)
    for theme, series, mix in ((LIGHT, SERIES_LIGHT, MIX["light"]), (DARK, SERIES_DARK, MIX["dark"])):
        for paper in ("paper", "raised"):
            assert all(contrast(theme[name], theme[paper]) >= 4.5 for name in ("ink", "soft", "accent"))
        assert contrast(theme["alarm"], theme["alarm-paper"]) >= 4.5 and contrast(theme["ink"], theme["alarm-paper"]) >= 4.5
        assert all(contrast(colour, theme["paper"]) >= 3 for colour in series) and len(set(series)) == len(series)
        accent, raised = ([int(theme[name][k:k + 2], 16) for k in (1, 3, 5)] for name in ("accent", "raised"))
        fullest = "#" + "".join(f"{round(mix * a + (1 - mix) * b):02x}" for a, b in zip(accent, raised))
        assert contrast(theme["ink"], fullest) >= 4.5, fullest
