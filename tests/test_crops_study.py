"""`dsengine evaluate crops` from start to end: figures against scikit-learn, stops that continue, task 2, each mistake in one line."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optuna", reason="the extra `evaluate` is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from crops_cases import columns, planted, run_of  # noqa: E402

import dsengine  # noqa: E402
from dsengine import cli  # noqa: E402
from dsengine.corpus.synth.series import synthesize_series  # noqa: E402
from dsengine.evaluate.crops import study  # noqa: E402
from dsengine.evaluate.crops.settings import Setting  # noqa: E402

SMALL = {"configs": 3, "epochs": 2, "shrink": 4, "batch_size": 64, "num_draws": 50}
FLAGS = ["--configs", "2", "--epochs", "2", "--shrink", "4", "--set", "num_draws=20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crops")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> dsengine.corpus.SeriesCorpus:
    return dsengine.open_corpus(planted(folder / "corpus"))


@pytest.fixture(scope="module")
def run(folder: Path, corpus: dsengine.corpus.SeriesCorpus) -> Path:
    return run_of(folder / "pixels", corpus, "resmlp", width=8, blocks=1)


@pytest.fixture(scope="module")
def out(folder: Path, corpus: dsengine.corpus.SeriesCorpus, run: Path) -> Path:
    """A whole study with task 2."""
    study.evaluate([f"mine={run}"], corpus.path, folder / "out", Setting(**SMALL, test_where="year == 2019"))
    return folder / "out"


def command(*argv: object) -> int:
    return cli.main(["evaluate", "crops", *map(str, argv)])


def sheet(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_figures_of_every_fit_are_scikit_learns_on_its_stored_predictions(out: Path, corpus: dsengine.corpus.SeriesCorpus) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    stored = {(r["network"], r["configuration"], r["input"]): r for r in (json.loads(path.read_text()) for path in (out / "runs").iterdir())}
    lines = sheet(out / "configurations.csv")
    assert len(stored) == 3 * 3 * 3 and len(lines) == 27 * 3
    truth = {name: part.classes for name, part in study.make_task(corpus, Setting(test_where="year == 2019")).parts.items()}
    for line in lines:
        predicted = stored[line["network"], int(line["number"]), line["input"]]["predicted"][line["part"]]
        assert float(line["accuracy"]) == pytest.approx(accuracy_score(truth[line["part"]], predicted), abs=1e-12)
        assert float(line["f1_macro"]) == pytest.approx(f1_score(truth[line["part"]], predicted, average="macro", zero_division=0), abs=1e-12)


def test_win_matrices_and_gains_are_those_of_the_accuracies_in_the_sheet(out: Path) -> None:
    results, lines = json.loads((out / "results.json").read_text()), sheet(out / "configurations.csv")
    names = [given["name"] for given in results["inputs"]]
    assert names == ["raw", "mine", "untrained resmlp"]
    for network in ("bilstm", "inception", "transformer"):
        for part in ("test", "elsewhere"):
            accuracy = {(line["input"], line["number"]): float(line["accuracy"]) for line in lines
                        if (line["network"], line["part"]) == (network, part)}
            found = results["networks"][network][part]
            for i, a in enumerate(names):
                gain = [100 * (accuracy[a, k] - accuracy["raw", k]) / accuracy["raw", k] if accuracy["raw", k] else None for k in "012"]
                assert a == "raw" or found["gain_percent"][a] == pytest.approx(gain)
                for j, b in enumerate(names):
                    won, lost = (sum(accuracy[p, k] > accuracy[q, k] for k in "012") for p, q in ((a, b), (b, a)))
                    assert found["wins"]["share"][i][j] == (pytest.approx(won / (won + lost)) if won + lost else None)


def test_every_input_is_given_the_same_configurations(out: Path) -> None:
    lines = [line for line in sheet(out / "configurations.csv") if line["part"] == "test"]
    keys = ("network", "number", "lr", "hidden", "layers", "dropout", "width", "kernel", "heads")
    by_input = {name: [tuple(line[key] for key in keys) for line in lines if line["input"] == name] for name in ("raw", "mine", "untrained resmlp")}
    assert by_input["raw"] == by_input["mine"] == by_input["untrained resmlp"] and len(set(by_input["raw"])) == 9


def test_results_say_what_the_numbers_rest_on(out: Path, corpus: dsengine.corpus.SeriesCorpus) -> None:
    results, table, c = json.loads((out / "results.json").read_text()), (out / "table.md").read_text(), columns()
    assert results["parts"]["elsewhere"]["rows"] == np.isin(c["crop"][c["year"] == 2019], (10, 20, 30)).sum() and results["field"] == "field"
    assert results["recipe"]["keep"] == "best" and results["versions"]["optuna"] and results["setting"]["shrink"] == 4
    (mine,) = [given["about"] for given in results["inputs"] if given["name"] == "mine"]
    in_train = set(corpus.rows("train").tolist())
    for part, seen in mine["judged_rows_in_its_train_split"].items():
        rows = study.make_task(corpus, Setting(test_where="year == 2019")).parts[part].rows.tolist()
        assert seen == len(in_train.intersection(rows)) > 0
    for text in ("was pretrained, without labels, on the train split of this corpus", "task 1: the test fields", "task 2: elsewhere", "divided by 4",
                 "hops 9", "Always the commonest class", "are few"):
        assert text in table
    assert {p.name for p in (out / "figures").iterdir()} == {"learning.png", *(f"{kind}-{part}.png" for kind in ("accuracy", "wins", "gains")
                                                                              for part in ("test", "elsewhere"))}


def test_every_panel_of_every_figure_has_labels_on_its_axes(out: Path, corpus: dsengine.corpus.SeriesCorpus, run: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    from dsengine.evaluate.crops import figures

    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure) or path)
    study.evaluate([f"mine={run}"], corpus.path, out, Setting(**SMALL, test_where="year == 2019"))
    assert len(drawn) == 7
    for figure in drawn:
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert len(panels) == 3 and panels[0].get_ylabel() and all(axes.get_xlabel() and axes.get_title() for axes in panels)
    matrix = next(figure for figure in drawn if "over this input" in figure.axes[0].get_xlabel())
    assert [text.get_text() for text in matrix.axes[0].get_yticklabels()] == ["raw", "mine", "untrained resmlp"]
    units = " ".join(figure.axes[0].get_ylabel() for figure in drawn)
    assert "accuracy relative to raw input, %" in units and "accuracy, %" in units and "nats" in units


def test_a_study_that_was_stopped_goes_on_and_ends_as_one_that_was_not(out: Path, corpus: dsengine.corpus.SeriesCorpus, run: Path, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    setting, whole, fits = Setting(**SMALL, test_where="year == 2019"), study._fit, []

    def stopping(*args: object) -> study.Run:
        fits.append(args)
        if len(fits) == 11:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(study, "_fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        study.evaluate([f"mine={run}"], corpus.path, tmp_path, setting)
    assert len(list((tmp_path / "runs").iterdir())) == 10 and not (tmp_path / "results.json").exists()
    study.evaluate([f"mine={run}"], corpus.path, tmp_path, setting)
    assert len(fits) == 11 + 17
    study.evaluate([f"mine={run}"], corpus.path, tmp_path, setting)
    assert len(fits) == 11 + 17
    assert (tmp_path / "wins.csv").read_text() == (out / "wins.csv").read_text()
    drop = ("seconds",)
    ours, theirs = ([{k: v for k, v in line.items() if k not in drop} for line in sheet(path / "configurations.csv")] for path in (tmp_path, out))
    assert ours == theirs


def test_more_configurations_keep_those_that_are_there(corpus: dsengine.corpus.SeriesCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**SMALL, "networks": ("inception",), "epochs": 1}
    study.evaluate([], corpus.path, tmp_path, Setting(**{**small, "configs": 2}))
    fitted, whole = [], study._fit
    monkeypatch.setattr(study, "_fit", lambda *args: fitted.append(args[3].number) or whole(*args))
    study.evaluate([], corpus.path, tmp_path, Setting(**small))
    assert fitted == [2]
    study.evaluate([], corpus.path, tmp_path, Setting(**{**small, "weight_decay": 0.1}))  # decides each of them
    assert fitted == [2, 0, 1, 2]


def test_planted_crops_are_learned_from_raw_series(corpus: dsengine.corpus.SeriesCorpus, tmp_path: Path) -> None:
    """Their peaks are 10 standard deviations high: InceptionTime must tell them, in the better of two configurations."""
    path = study.evaluate([], corpus.path, tmp_path, Setting(configs=2, epochs=12, shrink=4, batch_size=16, networks=("inception",)))
    assert max(json.loads(path.read_text())["networks"]["inception"]["test"]["accuracy"]["raw"]) > 0.8


def test_the_command_runs_on_synthetic_series_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = synthesize_series(tmp_path / "corpus", kind="series", num_rows=96, seed=3)
    sets = ["--set", "min_fields=5", "--set", "class_weight=inverse", "--set", "seeds=2"]
    assert command("--corpus", made, "--out", tmp_path / "out", *FLAGS, "--parity", *sets) == 0
    said = capsys.readouterr().out
    assert "a field is a row, as the corpus has no column of fields" in said and "results.json" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["recipe"]["keep"] == "last" and results["field"] == "row" and len(list((tmp_path / "out" / "runs").iterdir())) == 12


def test_an_encoder_of_series_is_judged_per_series_too(corpus: dsengine.corpus.SeriesCorpus, folder: Path, tmp_path: Path) -> None:
    run = run_of(folder / "series", corpus, "temporal", width=8, heads=2, blocks=1, out=4, dates=10)
    argv = ["--run", f"mine={run}", "--per", "series", "--floors", "none", "--networks", "bilstm"]
    assert command("--corpus", corpus.path, "--out", tmp_path, *FLAGS, *argv) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(given["name"], given["dates"], given["channels"]) for given in results["inputs"]] == [("raw", 6, 3), ("mine", 1, 4)]


@pytest.mark.parametrize("argv, message", [
    (["--networks", "lstm"], "networks=lstm: legal: one or more of bilstm, inception, transformer"),
    (["--set", "epoch=3"], "evaluate.epoch is not a setting"),
    (["--where", "yeer == 2018"], "yeer"), (["--set", "sensor=s3"], "sensor=s3 is not in"), (["--device", "cuda:9"], "device="),
    (["--run", "nowhere"], "no checkpoint under nowhere"), (["--set", "epochs"], "must be KEY=VALUE")])
def test_what_is_not_legal_ends_with_2_and_one_line(corpus: dsengine.corpus.SeriesCorpus, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                   argv: list[str], message: str) -> None:
    assert command("--corpus", corpus.path, "--out", tmp_path, *FLAGS, *argv) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_patches_and_a_folder_of_another_evaluation_are_refused(corpus: dsengine.corpus.SeriesCorpus, small_corpus: Path, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture) -> None:
    assert command("--corpus", small_corpus, "--out", tmp_path / "a", *FLAGS) == 2
    assert "holds patches; legal here: a corpus of series" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text('{"evaluation": "linear"}')
    assert command("--corpus", corpus.path, "--out", tmp_path / "b", *FLAGS) == 2
    assert "holds the evaluation linear" in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(corpus: dsengine.corpus.SeriesCorpus, tmp_path: Path, capsys: pytest.CaptureFixture,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert command("--corpus", corpus.path, "--out", tmp_path, *FLAGS) == 2
    assert "pip install 'dsengine[evaluate]'" in capsys.readouterr().err
