"""What training leaves for the report: a short one in the run folder, a history of starts and ends; and reports of every kind of corpus."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from report_cases import Page, add_checkpoint, make_run  # noqa: E402

from dsengine import cli
from dsengine.corpus.synth.series import synthesize_series
from dsengine.engine.history import noted, read_history
from dsengine.errors import RunError
from dsengine.study.report.write import write_report


def _train(corpus: Path, out: Path, *more: str) -> int:
    return cli.main(["train", "--method", "vae", "--corpus", str(corpus), "--out", str(out), "--gpus", "0", "--batch-size", "8", "--set",
                     "train.precision=fp32", "--set", "train.heldout_samples=8", *(part for text in more for part in ("--set", text))])


@pytest.fixture(scope="module")
def trained(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert _train(small_corpus, out, "train.max_steps=2") == 0
    return out


def test_a_finished_run_has_a_short_report_with_its_curves_views_and_reconstructions(trained: Path) -> None:
    page = Page(trained / "report.html")
    assert page.all("h1")[0].text == "run" and "No alarm was raised" in page.root.text
    assert {"Loss", "Learning rate", "Throughput", "Waiting for data"} <= {figure.all("strong")[0].text for figure in page.all("figure", "chart")}
    assert [image.attributes["alt"].split()[0] for image in page.all("img")] == ["contact", "reconstruction"]
    assert "resnet18, 11.21 M parameters" in page.section("What was run").text and "96 patches of 32 px" in page.section("What was run").text
    said = [text.text for text in page.all("p", "missing")]
    assert len(said) == 1 and said[0].startswith("Embeddings and evaluations are not in this short report")
    assert page.section("Machine and versions").all("dt")[0].text == "Started"


def test_history_says_when_on_what_and_how_it_ended_and_no_name_of_the_machine(trained: Path) -> None:
    start, end = read_history(trained)
    assert (start["event"], start["ranks"], start["resumed"], start["machine"]["device"]) == ("start", 1, False, "cpu")
    assert start["versions"]["torch"] and start["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert end["event"] == "end" and end["how"] == "done" and end["seconds"] > 0
    assert os.uname().nodename not in (trained / "history.jsonl").read_text()


def test_the_settings_in_the_report_are_those_of_the_run(trained: Path) -> None:
    assert Page(trained / "report.html").section("Settings").all("pre")[0].texts == [(trained / "config.yaml").read_text()]


def test_a_run_that_fails_leaves_a_report_that_says_with_what(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert _train(small_corpus, tmp_path / "run", "train.lr=1e25", "train.log_steps=1") == 1
    page = Page(tmp_path / "run" / "report.html")
    assert "not finite at step" in page.all("div", "alarm")[0].text and "RunError" in page.all("div", "alarm")[0].text
    assert read_history(tmp_path / "run")[-1]["how"].startswith("RunError: the loss is not finite")


def test_a_report_that_cannot_be_written_is_said_and_the_run_is_done(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Path) -> Path:
        raise RunError(f"{run}: disk full")

    monkeypatch.setattr("dsengine.study.report.write.write_short_report", refuse)
    cli._report(tmp_path)
    assert "no report:" in (said := capsys.readouterr().err) and "disk full" in said


def test_a_killed_start_has_no_end_and_a_second_one_follows_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", history=False)
    with pytest.raises(KeyboardInterrupt), noted(run, device="cpu", ranks=1, resumed=False):
        raise KeyboardInterrupt
    with noted(run, device="cpu", ranks=1, resumed=False):
        pass
    with open(run / "history.jsonl", "a") as file:
        file.write(json.dumps({**read_history(run)[0], "resumed": True}) + '\n{"event": "en')
    assert [(record["event"], record.get("how")) for record in read_history(run)] == [
        ("start", None), ("end", "KeyboardInterrupt"), ("start", None), ("end", "done"), ("start", None)]
    page = Page(write_report([run], out=tmp_path / "r.html"))
    assert "in 3 starts, and 1 without a recorded end" in page.section("What was run").text and "killed, or still running" in page.root.text


@pytest.mark.parametrize("kind, encoder", [("pixels", "resmlp"), ("series", "temporal")])
def test_pixels_and_series_have_a_cloud_and_say_that_they_have_no_map(tmp_path: Path, kind: str, encoder: str) -> None:
    corpus = synthesize_series(tmp_path / kind, kind=kind, num_rows=96, seed=3)
    run = make_run(tmp_path / "run", corpus=corpus, method="scarf")
    add_checkpoint(run, corpus, method="scarf", encoder=encoder)
    section = Page(write_report([run], out=tmp_path / "r.html", samples=20)).section("Views and embeddings")
    cloud = section.all("figure", "chart")[0]
    assert sum(path.attributes["d"].count("M") for path in cloud.all("path", "points")) == 20
    assert f"No embedding maps: {kind} have no map." in section.text


def test_a_run_of_several_encoders_has_a_cloud_of_each(small_corpus: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", corpus=small_corpus, method="simclr")
    add_checkpoint(run, small_corpus, method="simclr", modalities=("s2", "s1"))
    section = Page(write_report([run], out=tmp_path / "r.html", samples=8)).section("Views and embeddings")
    assert [title.text for title in section.all("h4")] == ["Encoder s2", "Embedding maps", "Encoder s1", "Embedding maps"]
    assert len(section.all("figure", "chart")) == 2
    assert [trio.all("div")[0].text for trio in section.all("div", "trio")[::6]] == ["B04 B03 B02", "VV"]


def test_an_encoder_of_one_band_drawn_at_random_is_shown_red(small_corpus: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", corpus=small_corpus, method="byol")
    add_checkpoint(run, small_corpus, method="byol", pair="bands")
    section = Page(write_report([run], out=tmp_path / "r.html", samples=8)).section("Views and embeddings")
    assert section.all("div", "trio")[0].all("div")[0].text == "B04"


def test_the_example_of_the_page_about_reports_runs(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (checkout / "docs" / "report.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        make_run(Path("runs") / name, corpus=small_corpus)
    exec(code, {})  # noqa: S102: our own page
    assert Page(Path("both.html")).all("h1")[0].text == "2 runs: first, second"
