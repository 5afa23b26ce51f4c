"""Checkpoints written beside training: a copy of the moment, one at a time, errors that come out, and the best that is kept."""

import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dsengine
from dsengine.corpus.schema import Band, Contract
from dsengine.engine import checkpoint, train
from dsengine.engine.saver import Saver
from dsengine.errors import RunError

CONTRACT = Contract(bands=(Band("B02", "s2", "s2", 0, 1),), units=("reflectance",), scale=(1e-4,), offset=(0.0,), mean=(0.1,), std=(0.05,),
                    nodata=-32768, patch_size=32, resolution_m=10.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("")
    return tmp_path


def _saver(run: Path, keep: int = 2, *, beside: bool = True) -> Saver:
    return Saver(run, beside=beside, keep=keep, config={"a": 1}, contract=CONTRACT, inputs={})


def _parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), 0.1, fused=True)
    _step(module, optimizer)
    return module, optimizer


def _step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(torch.randn(2, 2, 5, 5)).square().sum().backward()
    optimizer.step()


def _start(saver: Saver, step: int, parts: tuple, heldout_loss: float | None = None) -> None:
    saver.start(step, method=parts[0], optimizer=parts[1], loader={"step": step}, heldout_loss=heldout_loss)


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_that_waits_has_its_checkpoint_when_it_goes_on_and_one_that_does_not_has_it_later(
        run: Path, monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    go, real = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a, **k: (go.wait(0.2 if not beside else 20), real(*a, **k)))
    with _saver(run, beside=beside) as saver:
        _start(saver, 1, _parts())
        assert _names(run) == ([] if beside else ["step-00000001"])
        go.set()
    assert _names(run) == ["step-00000001"]


def test_what_goes_wrong_in_a_checkpoint_that_is_waited_for_is_raised_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RunError("no room")

    monkeypatch.setattr(checkpoint, "write", full)
    with _saver(run, beside=False) as saver, pytest.raises(RunError, match="no room"):
        _start(saver, 1, _parts())


@pytest.mark.parametrize("asked, waits", [(None, True), (False, True), (True, False)])
def test_a_run_on_a_cpu_waits_for_its_checkpoints_unless_it_is_told_not_to(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                          asked: bool | None, waits: bool) -> None:
    made = []
    monkeypatch.setattr(train, "Saver", lambda *a, **k: made.append(k["beside"]) or Saver(*a, **k))
    dsengine.train(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, encoder="workers.tiny_encoder", data={"size": 16},
                   train={"batch_size": 8, "max_steps": 1, "heldout_samples": 2, "precision": "fp32", "async_save": asked})
    assert made == [not waits]


def test_what_is_written_is_the_state_of_the_moment_of_the_start_however_late_the_writing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, optimizer = _parts()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    moments = [{k: v.clone() for k, v in state.items()} for state in optimizer.state.values()]
    lr, go = optimizer.param_groups[0]["lr"], threading.Event()
    real = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a, **k: (go.wait(20), real(*a, **k)))
    with _saver(run) as saver:
        _start(saver, 1, (module, optimizer))
        for _ in range(3):
            _step(module, optimizer)
        optimizer.param_groups[0]["lr"] = 7.0
        go.set()
        saver.finish()
    folder = checkpoint.latest(run)[0].path
    assert all(torch.equal(value, weights[name]) for name, value in load_file(folder / "model.safetensors").items())
    state = torch.load(folder / "state.pt", weights_only=True)
    assert all(torch.equal(old[k], state["state"][n][k]) for n, old in enumerate(moments) for k in old)
    assert state["param_groups"][0]["lr"] == lr
    assert state["state"][0]["exp_avg"].stride() == module[0].weight.stride()  # as the fused update wants it


def test_a_start_waits_for_the_checkpoint_before_and_not_for_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = [], []
    real = checkpoint.write

    def slow(*args: object, **named: object) -> None:
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.3)
        real(*args, **named)
        at_once.pop()

    monkeypatch.setattr(checkpoint, "write", slow)
    parts = _parts()
    with _saver(run, keep=5) as saver:
        began = time.monotonic()
        _start(saver, 1, parts)
        assert time.monotonic() - began < 0.25
        _start(saver, 2, parts)
        assert time.monotonic() - began > 0.29
        _start(saver, 3, parts)
    assert most == [1, 1, 1] and _names(run) == ["step-00000001", "step-00000002", "step-00000003"]


@pytest.mark.parametrize("when", ["check", "start", "finish", "leaving"])
def test_what_goes_wrong_beside_training_is_raised_in_it(run: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    parts = _parts()
    monkeypatch.setattr(checkpoint.os, "replace", full)
    with pytest.raises(RunError, match="step-00000001: cannot be written .No space left on device"):
        with _saver(run) as saver:
            _start(saver, 1, parts)
            if when == "check":
                saver._thread.join()
                saver.check()
            if when == "start":
                _start(saver, 2, parts)
            if when == "finish":
                saver.finish()
            assert when == "leaving"


def test_another_error_on_its_way_out_is_not_hidden_by_the_saver(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(ZeroDivisionError):
        with _saver(run) as saver:
            _start(saver, 1, _parts())
            raise ZeroDivisionError


def test_leaving_on_an_error_still_waits_for_a_checkpoint_on_its_way(run: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        with _saver(run) as saver:
            _start(saver, 1, _parts())
            raise KeyboardInterrupt
    assert checkpoint.latest(run)[0].step == 1


def test_the_best_is_kept_beside_the_newest_and_has_a_name(run: Path) -> None:
    parts = _parts()
    losses = {1: 5.0, 2: 1.5, 3: None, 4: 2.0, 5: float("nan"), 6: 1.5}
    with _saver(run) as saver:
        for step in (1, 2, 3, 4, 5):
            _start(saver, step, parts, losses[step])
        saver.finish()
        assert _names(run) == ["step-00000002", "step-00000004", "step-00000005"]
        assert checkpoint.read(run / "checkpoints" / "best").step == 2 == checkpoint.read(checkpoint.best(run)).step
        assert not (run / "checkpoints" / "best").readlink().is_absolute()  # a copied run keeps its own
        _start(saver, 6, parts, losses[6])  # as good: the newer one
    assert _names(run) == ["step-00000005", "step-00000006"]
    assert checkpoint.read(run / "checkpoints" / "best").step == 6


def test_a_run_without_a_held_out_loss_has_no_best(run: Path) -> None:
    with _saver(run) as saver:
        _start(saver, 1, _parts())
    assert checkpoint.best(run) is None and not (run / "checkpoints" / "best").exists()


def test_what_killed_saves_and_removals_left_is_gone_after_the_next(run: Path) -> None:
    for name in (".step-00000003.part", ".step-00000001.old", ".step-00000009.part"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    with _saver(run) as saver:
        _start(saver, 4, _parts())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004"]


def test_a_kill_between_the_last_rename_and_the_removals_is_made_good_by_a_resume(run: Path) -> None:
    parts = _parts()
    with _saver(run, keep=5) as saver:
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 0.5)):
            _start(saver, step, parts, loss)
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "best").symlink_to("step-00000002")
    (run / "checkpoints" / "step-00000001").rename(run / "checkpoints" / ".step-00000001.old")
    checkpoint.tidy(run, keep=2)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "step-00000003", "step-00000004"]
    assert checkpoint.read(run / "checkpoints" / "best").step == 4
