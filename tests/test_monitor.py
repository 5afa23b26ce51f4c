"""What a run tells beside its loss: nearest neighbours' accuracy, memory, and an optional service that must never cost the run."""

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

import dsengine
from dsengine.engine import figures, knn_probe, monitor
from dsengine.engine.api import Run
from dsengine.engine.usage import usage
from dsengine.errors import UsageError

HERE = Path(__file__).parent
WANDB = '''
import json, os
TOLD = os.environ["TOLD"]
def tell(*what):
    with open(TOLD, "a") as file:
        file.write(json.dumps(what) + "\\n")
class Settings:
    def __init__(self, **given):
        self.given = given
class Run:
    id = "abc"
    def log(self, values, step):
        if os.environ.get("DOWN"):
            raise ConnectionError("server is down")
        tell("log", values, step)
    def finish(self, exit_code):
        tell("finish", exit_code)
def init(**given):
    settings = given.pop("settings").given
    tell("init", given, settings)
    return Run()
'''
MLFLOW = '''
import json, os, types
def tell(*what):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps(what) + "\\n")
def set_experiment(name): tell("experiment", name)
def start_run(run_id=None, run_name=None):
    tell("start", run_id, run_name)
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))
def log_params(params): tell("params", params)
def log_metrics(values, step): tell("log", values, step)
def end_run(status): tell("end", status)
'''


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of both services on the path; they write what they are told into this file."""
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "wandb.py").write_text(WANDB)
    (tmp_path / "services" / "mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(str(tmp_path / "services"))
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "mlflow", raising=False)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return tmp_path / "told"


def _run(corpus: Path, out: Path, *, resume: bool = False, **train: object) -> Run:
    return dsengine.train(resume=resume, corpus=str(corpus), out=str(out), device={"gpus": 0}, encoder="faults.small", method="faults.method", data={"size": 16},
                          train={"max_steps": 4, "batch_size": 16, "precision": "fp32", "log_steps": 2, "heldout_samples": 2, **train})


def _lines(told: Path) -> list[list]:
    return [json.loads(line) for line in told.read_text().splitlines()]


def test_wandb_is_told_settings_and_numbers_and_nothing_else_and_a_resumed_run_goes_on_in_its_own(told: Path, small_corpus: Path, tmp_path: Path) -> None:
    run = _run(small_corpus, tmp_path / "run", monitor="wandb")
    (_, given, settings), *logged, finish = _lines(told)
    assert given["name"] == "run" and given["id"] is None and given["config"]["train.monitor"] == "wandb" and given["config"]["method.name"] == "faults.method"
    assert settings["console"] == "off" and settings["disable_code"] and settings["disable_git"] and not settings["save_code"]
    assert [step for _, _, step in logged] == [record["step"] for record in run.metrics] and finish == ["finish", 0]
    assert logged[-1][1]["loss"] == run.metrics[-1]["loss"] and "step" not in logged[-1][1]
    told.unlink()
    _run(small_corpus, tmp_path / "run", resume=True, monitor="wandb", max_steps=6)
    assert _lines(told)[0][1]["id"] == "abc" and _lines(told)[0][1]["resume"] == "allow"


def test_mlflow_is_told_the_same(told: Path, small_corpus: Path, tmp_path: Path) -> None:
    run = _run(small_corpus, tmp_path / "run", monitor="mlflow")
    experiment, start, params, *logged, end = _lines(told)
    assert experiment == ["experiment", "dsengine"] and start == ["start", None, "run"] and params[1]["train.batch_size"] == 16
    assert [step for _, _, step in logged] == [record["step"] for record in run.metrics] and end == ["end", "FINISHED"]


def test_a_service_that_fails_is_said_once_and_the_run_goes_on(
        told: Path, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("DOWN", "1")
    run = _run(small_corpus, tmp_path / "run", monitor="wandb")
    assert run.metrics[-1]["step"] == 4
    assert capfd.readouterr().err.count("wandb is told nothing more: ConnectionError: server is down") == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_refused_before_anything_is_written(
        small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.syspath_prepend(str(HERE))
    with pytest.raises(UsageError, match=f"train.monitor={name}: the package is not installed .*pip install {name}"):
        _run(small_corpus, tmp_path / "run", monitor=name)
    assert not (tmp_path / "run").exists()


def test_a_record_becomes_its_numbers() -> None:
    assert monitor.numbers({"step": 3, "loss": 1, "alarm": "x", "rank_s": [1.0], "ids_crc": 9, "lr": 0.1}) == {"loss": 1.0, "lr": 0.1}


def test_neighbours_vote_by_cosine_as_a_plain_loop_over_them_does() -> None:
    generator = torch.Generator().manual_seed(1)
    bank, classes, asked = torch.randn(70, 5, generator=generator), torch.randint(0, 4, (70,), generator=generator), torch.randn(30, 5, generator=generator)
    expected = []
    for x in asked.double().numpy():
        cosine = np.array([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in bank.double().numpy()])
        votes = np.zeros(4)
        for k in np.argsort(-cosine)[:20]:
            votes[classes[k]] += np.exp(cosine[k] / 0.07)
        expected.append(int(votes.argmax()))
    assert knn_probe.vote(bank, classes, asked, num_classes=4).tolist() == expected
    assert knn_probe.vote(bank[:3], classes[:3], bank[:3], num_classes=4).tolist() == classes[:3].tolist()


def test_the_probe_runs_every_so_many_epochs_and_at_the_end_and_leaves_training_as_it_was(
        small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    plain, probed = _run(small_corpus, tmp_path / "plain", max_steps=14), _run(small_corpus, tmp_path / "probed", max_steps=14, knn_epochs=2)
    found = {record["step"]: record["knn_accuracy"] for record in probed.metrics if "knn_accuracy" in record}
    per_epoch = next(record["step"] for record in probed.metrics if "heldout_loss" in record)
    assert sorted(found) == [*range(2 * per_epoch, 14, 2 * per_epoch), 14] and all(0 <= share <= 1 for share in found.values())
    assert [r["loss"] for r in plain.metrics] == [r["loss"] for r in probed.metrics]
    assert figures.draw_losses(probed.dir).read_bytes() != figures.draw_losses(plain.dir).read_bytes()


@pytest.mark.parametrize("train, words", [({"knn_epochs": 1, "knn_label": "landcovre"}, "train.knn_label='landcovre'.*did you mean landcover"),
                                          ({"knn_epochs": 0}, "knn_epochs=0: must be at least 1"), ({"monitor": "wandbb"}, "train.monitor='wandbb'.*wandb")])
def test_what_cannot_be_told_is_refused(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict, words: str) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    with pytest.raises(UsageError, match=words):
        _run(small_corpus, tmp_path / "run", **train)


def test_memory_is_told_in_gigabytes_of_this_process() -> None:
    before = usage(torch.device("cpu"))["memory_gb"]
    with mmap.mmap(-1, 400_000_000) as held:  # pages that the allocator cannot have had before
        held[::4096] = bytes(len(range(0, 400_000_000, 4096)))
        assert usage(torch.device("cpu"))["memory_gb"] - before == pytest.approx(0.4, rel=0.2)
