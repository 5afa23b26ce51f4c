"""`dsengine evaluate`: every command end to end on a planted corpus, what it leaves, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from evaluate_cases import planted, untrained_run  # noqa: E402

from dsengine import cli

FLAGS = {"--help", "--run", "--corpus", "--out", "--label", "--split", "--fractions", "--label-fractions", "--size", "--floors", "--encoder",
         "--features", "--seed", "--device", "--set"}
OWN = {"linear": set(), "knn": {"--k"}, "scene": {"--bands", "--imagenet"}, "landcover": {"--finetune", "--epochs", "--class-weight"},
       "patches": {"--things"}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "corpus")


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("run") / "run", corpus)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def command(name: str, *argv: object) -> int:
    try:
        return cli.main(["evaluate", name, *map(str, argv)])
    except SystemExit as stop:
        return stop.code


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_flags_do_not_grow() -> None:
    evaluate = next(a for a in cli.build_parser([])._actions if hasattr(a, "choices") and a.choices).choices["evaluate"]
    commands = next(a for a in evaluate._actions if hasattr(a, "choices") and a.choices).choices
    assert {name: set(parser.all_flags()) for name, parser in commands.items() if name in OWN} == {
        name: FLAGS | own for name, own in OWN.items()}


@pytest.mark.parametrize("name, argv, figure", [
    ("linear", ["--label", "scene"], "accuracy"),
    ("scene", ["--label", "scene", "--set", "epochs=5"], "f1_weighted"),
    ("landcover", ["--epochs", "1"], "iou_weighted"),
    ("landcover", ["--epochs", "1", "--finetune", "--class-weight", "inverse"], "iou_weighted"),
])
def test_a_command_leaves_numbers_with_their_protocol_a_table_and_figures(
        corpus: Path, run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, argv: list, figure: str) -> None:
    assert command(name, "--run", f"mine={run}", "--corpus", corpus, "--out", tmp_path, "--features", features, "--set", "num_draws=50", *argv) == 0
    found, said = results(tmp_path), capsys.readouterr().out
    assert found["evaluation"] == name and found["figure"] == figure and len(found["corpus"]["sha256"]) == 64 and found["setting"]["seed"] == 0
    assert found["folds"][0]["train"] > found["folds"][0]["test"] > 0 and found["versions"]["torch"]
    assert {"pretrained", "untrained", "floor"} == {row["kind"] for row in found["rows"]}
    for row in found["rows"]:
        value, low, high = row["figures"][figure].values()
        assert 0 <= low <= value <= high <= 1 and row["protocol"]["chosen"][0]["train_rows"] == found["folds"][0]["train"]
        assert (name, row["name"], row["protocol"]["size"]) == (name, row["name"], 16) and len(row["protocol"]["bands"]) == 4
    assert any(row["name"] == "mine" and row["over_best_floor"]["floor"] for row in found["rows"])
    assert (tmp_path / "table.md").read_text() in said and "| mine | pretrained |" in said
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"scores.png", "classes.png", "confusion.png"} <= pictures
    if name == "landcover":
        assert {"learning.png", "maps-mine-1.png"} <= pictures


def test_an_image_statistic_finds_what_was_planted_and_all_figures_agree(corpus: Path, run: Path, features: Path, tmp_path: Path) -> None:
    common = ["--run", run, "--corpus", corpus, "--features", features, "--floors", "statistics", "--set", "num_draws=20"]
    for name, argv in (("linear", ["--label", "scene"]), ("knn", ["--label", "cover", "--k", "1,5"]), ("patches", ["--label", "there"])):
        assert command(name, *common, *argv, "--out", tmp_path / name) == 0
        found = results(tmp_path / name)
        (row,) = [row for row in found["rows"] if row["kind"] == "floor"]
        assert row["name"] == "image statistics" and row["figures"][found["figure"]]["value"] == 1.0
        assert np.trace(row["confusion"]) == found["folds"][0]["test"]


def test_a_second_call_reads_its_rows_and_a_changed_one_does_not(
        corpus: Path, run: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsengine.evaluate import linear

    calls, fit = [], linear.fit
    monkeypatch.setattr(linear, "fit", lambda *parts, **settings: calls.append(1) or fit(*parts, **settings))
    argv = ["linear", "--run", run, "--corpus", corpus, "--label", "scene", "--features", features, "--out", tmp_path, "--floors", "none"]
    assert command(*argv) == 0 and len(calls) == 1
    first = (tmp_path / "results.json").read_bytes()
    assert command(*argv) == 0 and len(calls) == 1 and (tmp_path / "results.json").read_bytes() == first
    assert command(*argv, "--set", "num_draws=7") == 0 and len(calls) == 1 and (tmp_path / "results.json").read_bytes() != first
    assert command(*argv, "--seed", 1) == 0 and len(calls) == 2


def test_shares_of_labels_are_rows_and_smaller_ones_are_parts_of_larger(corpus: Path, run: Path, features: Path, tmp_path: Path) -> None:
    assert command("linear", "--run", run, "--corpus", corpus, "--label", "scene", "--features", features, "--out", tmp_path, "--floors", "none",
                   "--label-fractions", "0.1,1") == 0
    counts = {row["label_fraction"]: row["protocol"]["chosen"][0]["train_rows"] for row in results(tmp_path)["rows"]}
    assert counts[1.0] > 60 and 3 <= counts[0.1] <= 0.1 * counts[1.0] + 3
    assert (tmp_path / "figures" / "label_fractions.png").exists()


def test_leave_out_makes_a_fold_of_each_site_and_tests_each_patch_once(corpus: Path, run: Path, features: Path, tmp_path: Path) -> None:
    assert command("linear", "--run", run, "none", "--corpus", corpus, "--label", "scene", "--features", features, "--out", tmp_path, "--split",
                   "leave-out:source", "--floors", "none") == 0
    found = results(tmp_path)
    assert [fold["name"] for fold in found["folds"]] == [f"site {k}" for k in range(6)]
    assert all(np.sum(row["confusion"]) == 120 and len(row["protocol"]["chosen"]) == 6 for row in found["rows"])


@pytest.mark.parametrize("name, argv, words", [
    ("linear", ["--label", "scen"], ["label='scen'", "did you mean scene"]),
    ("linear", [], ["scene (class)", "cover (classmap)", "name one"]),
    ("landcover", ["--label", "scene"], ["label=scene", "a class is unfit for landcover", "classmap"]),
    ("knn", ["--label", "many"], ["label=many", "multilabel is unfit", "class or classmap"]),
    ("patches", ["--label", "scene"], ["3 classes", "a label of two"]),
    ("patches", ["--things", "raster:x.tif"], ["things=raster:x.tif", "points:FILE or vector:FILE"]),
    ("linear", ["--label", "scene", "--split", "rondom"], ["split='rondom'", "random"]),
    ("linear", ["--label", "scene", "--split", "leave-out:sourc"], ["leave-out:sourc", "source"]),
    ("linear", ["--label", "scene", "--split", "random", "--fractions", "1,0,0"], ["no labelled patch in val", "train 120"]),
    ("linear", ["--label", "scene", "--floors", "statistic"], ["floors", "statistics"]),
    ("linear", ["--label", "scene", "--size", "17"], ["17 px", "1 to 16 px"]),
    ("linear", ["--label", "scene", "--set", "strength=1"], ["evaluate.strength", "strengths"]),
    ("linear", ["--label", "scene", "--label-fractions", "0"], ["label_fractions", "above 0"]),
    ("linear", ["--label", "scene", "--device", "tpu9"], ["device", "cpu, cuda"]),
    ("landcover", ["--set", "channels=2"], ["channels=2", "3 classes"]),
    ("landcover", ["--set", "crop=8"], ["crop=8", "finetune"]),
    ("scene", ["--label", "scene", "--bands", "B12", "--set", "by_band=all"], ["B12", "B01, B02, B03, B04"]),
    ("scene", ["--label", "scene", "--imagenet", "/nowhere.pth"], ["/nowhere.pth", "no such file"]),
])
def test_a_wrong_request_is_refused_in_one_line_that_says_what_is_legal(
        corpus: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, argv: list, words: list[str]) -> None:
    assert command(name, "--run", run, "--corpus", corpus, "--out", tmp_path / "out", *argv) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and all(word in err for word in words), err


def test_an_encoder_of_other_bands_is_refused_with_both_lists_or_shown_zeros(
        corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = untrained_run(tmp_path / "other", planted(tmp_path / "wide", ("B02", "B03", "B04", "B08")))
    argv = ["linear", "--run", other, "--corpus", corpus, "--out", tmp_path / "out", "--label", "scene", "--floors", "none"]
    assert command(*argv) == 2
    err = capsys.readouterr().err
    assert "B02, B03, B04, B08" in err and "B01, B02, B03, B04" in err and "lacks B08" in err
    assert command(*argv, "--set", "missing=zero") == 0
    assert results(tmp_path / "out")["rows"][0]["protocol"]["bands"] == ["B02", "B03", "B04"]


def test_a_path_that_holds_no_corpus_or_run_and_two_rows_of_one_name_are_refused(corpus: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for argv, words in (([run, "--corpus", tmp_path / "no"], "is not a corpus"), ([tmp_path / "no", "--corpus", corpus], "no checkpoint"),
                        ([run, run, "--corpus", corpus], "NAME=DIR")):
        assert command("linear", "--run", *argv, "--out", tmp_path / "out") == 2
        assert words in capsys.readouterr().err
