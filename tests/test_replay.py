"""Captured steps: a failing one is written down as it was found, replays elsewhere without corpus or run, and names what broke it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dsengine
from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.data import order
from dsengine.data.sample import Batch
from dsengine.dist import SOLO, World
from dsengine.engine import capture, failure, replay
from dsengine.engine.optim import make_optimizer
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step
from dsengine.errors import RunError, UsageError

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tests/faults importable, here and in processes that are started."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def _train(corpus: Path, out: Path, *, device: dict | None = None, method: dict | None = None, encoder: dict | None = None,
           **train: object) -> None:
    dsengine.train(corpus=str(corpus), out=str(out), device={"gpus": 0, **(device or {})}, encoder={"name": "faults.small", **(encoder or {})},
                   method={"name": "faults.method", **(method or {})}, data={"size": 16},
                   train={"max_steps": 6, "batch_size": 16, "precision": "fp32", "log_steps": 2, "heldout_samples": 2, "bn_group": 8, **train})


def _failed(corpus: Path, out: Path, **more: dict) -> tuple[str, Path]:
    """The message with which a run ends that goes wrong at step 3, and its capture."""
    with pytest.raises(RunError) as caught:
        _train(corpus, out, **more)
    return str(caught.value), out / "captures" / "step-00000003"


@pytest.fixture(scope="module")
def whole(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose step 3 was captured on request."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        _train(small_corpus, out, capture_step=3, log_steps=1)
    return out


def test_a_captured_step_replays_to_the_bit_and_the_record_of_the_run_says_the_same(whole: Path) -> None:
    replayed = replay.replay(whole / "captures" / "step-00000003")
    same, told = replay.verdict(replayed)
    assert same and told == "equal to the captured one, bit for bit"
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert records[2]["step"] == 3 and records[2]["loss"] == replayed.scores["loss"]
    norm = math.sqrt(sum(value**2 for value in replayed.gradient_norms.values()))
    assert norm == pytest.approx(records[2]["gradient_norm"], rel=1e-6)
    assert replayed.origin.forward == replayed.origin.backward == replayed.bad_input == ""


def test_a_capture_is_plain_files_and_holds_all_that_a_step_needs(whole: Path, small_corpus: Path) -> None:
    folder = whole / "captures" / "step-00000003"
    assert sorted(path.name for path in folder.iterdir()) == ["batch.safetensors", "capture.json", "weights.safetensors"]
    assert folder.stat().st_mode & 0o077 == 0  # a batch is the user's data
    captured = capture.read(folder)
    epoch, ids = order.batch_ids(open_corpus(small_corpus).rows("train"), seed=0, step=2, global_batch=16)
    assert captured.batch.sample_id.tolist() == ids.tolist() and captured.about["epoch"] == epoch == 0
    assert captured.batch.step == 2 and [tuple(x.shape) for x in captured.batch.views] == [(16, 14, 16, 16)] * 2
    assert captured.about["versions"]["torch"] and captured.about["config"]["method"]["name"] == "faults.method"


@pytest.mark.parametrize("precision", ["bf16"])
def test_it_replays_in_other_precisions_too(small_corpus: Path, tmp_path: Path, precision: str) -> None:
    _train(small_corpus, tmp_path / "run", capture_step=2, max_steps=2, precision=precision)
    assert replay.verdict(replay.replay(tmp_path / "run" / "captures" / "step-00000002")) == (True, "equal to the captured one, bit for bit")


def test_a_loss_that_is_not_finite_ends_the_run_with_term_step_and_samples_and_the_weights_of_that_step_are_captured(
        small_corpus: Path, tmp_path: Path, whole: Path) -> None:
    message, folder = _failed(small_corpus, tmp_path / "run", method={"fault": "loss", "at": 3})
    ids = order.batch_ids(open_corpus(small_corpus).rows("train"), seed=0, step=2, global_batch=16)[1]
    assert "the loss is not finite (loss on rank 0 of 1)" in message and "not finite at step 3, epoch 1" in message
    assert f"sample ids: {', '.join(map(str, ids[:8]))}, ..." in message and f"`dsengine replay {folder}`" in message
    ours, sound = (load_file(path / "weights.safetensors") for path in (folder, whole / "captures" / "step-00000003"))
    trained = [name for name in ours if "running" not in name and "num_batches" not in name]
    assert trained and all(torch.equal(ours[name], sound[name]) for name in trained)
    replayed = replay.replay(folder)
    assert replay.verdict(replayed)[0] and math.isnan(replayed.scores["loss"])
    assert "no module's output: what the method computes of them gives loss" in "\n".join(replay.lines(replayed))


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_found_and_the_loss_is_equal_to_the_bit(small_corpus: Path, tmp_path: Path) -> None:
    message, folder = _failed(small_corpus, tmp_path / "run", method={"fault": "gradient", "at": 3})
    assert "a gradient is not finite, though the loss is" in message
    replayed = replay.replay(folder)
    assert math.isfinite(replayed.scores["loss"]) and replay.verdict(replayed) == (True, "equal to the captured one, bit for bit")
    assert replayed.origin.forward == "" and replayed.origin.backward == "in the backward pass of sound (Sound)"
    assert not math.isfinite(replayed.gradient_norms["encoders.all.first.weight"]) and math.isfinite(replayed.gradient_norms["head.weight"])


def test_a_batch_or_weight_that_is_not_finite_itself_is_said_first(whole: Path) -> None:
    captured = capture.read(whole / "captures" / "step-00000003")
    captured.batch.views[1][5, 0, 0, 0] = math.nan
    captured.weights["head.bias"][0] = math.inf
    assert replay._bad_input(captured) == f"weights before the step: head.bias; view 2 of samples {captured.batch.sample_id[5]}"


@pytest.fixture(scope="module")
def ranks(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The last words and the folder of a run of two ranks: rank 1 is slow, step 2 is captured on request, and step 4 is not finite on rank 1."""
    out = tmp_path_factory.mktemp("ranks") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(RunError) as caught:
            _train(small_corpus, out, device={"procs": 2}, method={"fault": "loss", "at": 4, "rank": 1}, encoder={"slow_rank": 1, "sleep_s": 0.3},
                   capture_step=2, log_steps=1, precision="fp64")
    return str(caught.value), out


def test_two_ranks_leave_one_capture_of_all_rows_and_the_rank_is_named(small_corpus: Path, ranks: tuple[str, Path]) -> None:
    message, run = ranks
    ids = order.batch_ids(open_corpus(small_corpus).rows("train"), seed=0, step=3, global_batch=16)[1]
    assert "loss on rank 1 of 2" in message and f"sample ids: {', '.join(map(str, ids[8:]))};" in message
    captured = capture.read(run / "captures" / "step-00000004")
    assert captured.batch.sample_id.tolist() == ids.tolist() and captured.about["ranks"] == 2
    assert [math.isnan(scores["loss"]) for scores in captured.about["scores_by_rank"]] == [False, True]


@pytest.mark.parametrize("lies", [True, False])
def test_every_rank_tells_where_the_capture_lies_because_the_launcher_shows_whichever_ends_first(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies: bool) -> None:
    monkeypatch.setattr(failure, "gather_rows", lambda x, group: torch.tensor([float(lies), 1.0]))
    monkeypatch.setattr(capture, "scored", lambda scores, world: [{"loss": 1.0}, {"loss": math.nan}])
    second = World(rank=1, size=2, group=None)
    at = order.Step(step=3, epoch=0, ids=np.arange(16))
    captures = failure.Captures(run=tmp_path, config=None, corpus=None, views=(), loading={}, world=second, device=torch.device("cpu"))
    message = str(captures.failed([3], [(at, {"loss": torch.tensor(math.nan)})], None, method=torch.nn.Linear(1, 1)))
    assert "sample ids: 8, 9, 10, 11, 12, 13, 14, 15; " in message
    assert (f"`dsengine replay {tmp_path / 'captures' / 'step-00000004'}`" if lies else "no capture: rank 0 could not write it") in message


def test_a_step_of_two_ranks_replays_on_one_to_rounding(ranks: tuple[str, Path]) -> None:
    replayed = replay.replay(ranks[1] / "captures" / "step-00000002")
    assert replay.verdict(replayed)[0] and replayed.scores["loss"] == pytest.approx(replayed.captured.about["scores"]["loss"], rel=1e-9)


def test_a_slow_rank_is_named_in_the_records(ranks: tuple[str, Path]) -> None:
    records = [json.loads(line) for line in (ranks[1] / "metrics.jsonl").read_text().splitlines()]
    assert [len(record["rank_s"]) for record in records] == [2, 2, 2]
    assert "alarm" not in records[1] and "slow rank: rank 1 takes" in records[2]["alarm"]


def test_after_a_withheld_step_all_are_until_somebody_looks() -> None:
    torch.manual_seed(0)
    method = torch.nn.Linear(3, 1)
    method.forward = lambda batch: {"loss": torch.nn.functional.linear(batch.views[0], method.weight, method.bias).square().mean()}
    step = Step(method, make_optimizer(method, TrainConfig(lr=0.1)), precision="fp32", world=SOLO)
    before = method.weight.detach().clone()
    for k, value in enumerate((math.nan, 1.0, 1.0)):
        step(Batch((torch.full((2, 3), value),), torch.arange(2), step=k), lr=0.1)
    assert torch.equal(method.weight, before) and step.withheld()[0] == 0
    step(Batch((torch.ones(2, 3),), torch.arange(2), step=3), lr=0.1)
    assert not torch.equal(method.weight, before) and set(step.gradient_norms()) == {"weight", "bias"} and step.gradient_norms()["weight"] > 0


def test_the_step_after_an_alarm_is_captured_where_that_is_asked_for(small_corpus: Path, tmp_path: Path) -> None:
    _train(small_corpus, tmp_path / "run", method={"fault": "collapse", "at": 3}, capture_alarms=True, log_steps=1)
    replayed = replay.replay(tmp_path / "run" / "captures" / "step-00000004")
    assert replayed.captured.about["why"] == "the step after an alarm at step 3 (collapse)"
    assert replay.verdict(replayed)[1] == "equal to the captured one, bit for bit"


def test_it_replays_without_corpus_and_run(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    corpus = shutil.copytree(small_corpus, tmp_path / "corpus")
    _, folder = _failed(corpus, tmp_path / "run", method={"fault": "module", "at": 3})
    moved = shutil.move(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(corpus)
    assert cli.main(["replay", str(moved)]) == 0
    said = capsys.readouterr().out
    assert "first in the output of breaking (Breaking), though its input is finite" in said
    assert "equal to the captured one (both are not a number)" in said and "encoders.all.first.weight" in said


@pytest.mark.parametrize("name", ["capture.json", "weights.safetensors", "batch.safetensors"])
def test_a_damaged_capture_is_refused_in_one_line(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    folder = shutil.copytree(whole / "captures" / "step-00000003", tmp_path / "copy")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert cli.main(["replay", str(folder)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"capture {folder}" in line and name in line if name != "capture.json" else f"capture {folder}" in line


def test_what_is_no_capture_is_refused_and_a_capture_cut_short_too(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no capture"):
        capture.read(tmp_path)
    with pytest.raises(UsageError, match="is no capture"):
        capture.read(whole)
    folder = shutil.copytree(whole / "captures" / "step-00000003", tmp_path / "copy")
    (folder / "batch.safetensors").unlink()
    with pytest.raises(RunError, match="not readable"):
        capture.read(folder)
    (folder / "capture.json").write_text("{")
    with pytest.raises(RunError, match="not readable"):
        capture.read(folder)


def test_a_loss_that_differs_is_told_with_how_far_and_fails_beyond_the_tolerance(whole: Path) -> None:
    replayed = replay.replay(whole / "captures" / "step-00000003")
    loss = replayed.scores["loss"]
    for factor, within in ((1 + 1e-5, True), (1.01, False)):
        same, told = replay.verdict(replayed._replace(scores={"loss": loss * factor}))
        assert same == within and "allowed 0.001" in told and "differs" in told
    assert not replay.verdict(replayed._replace(scores={"loss": math.nan}))[0]
