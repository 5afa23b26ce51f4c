"""Each alarm on records that it is made for and on records that it must leave alone, and in runs with a planted fault and without."""

import math
import os
import random
import sys
import time
from pathlib import Path

import pytest

import dsengine
from dsengine.data import loader
from dsengine.engine import alarms
from dsengine.engine.api import Run

HERE = Path(__file__).parent


def _records(losses: list[float], **more: object) -> list[dict]:
    return [{"step": k + 1, "loss": loss, **more} for k, loss in enumerate(losses)]


def _noisy(count: int, *, level: float = 1.0, noise: float = 0.02, seed: int = 0) -> list[float]:
    drawn = random.Random(seed)
    return [level + noise * drawn.gauss(0, 1) for _ in range(count)]


def test_a_loss_far_above_the_last_ones_is_a_spike_and_noise_is_none() -> None:
    quiet = _noisy(60)
    assert "loss spike" not in alarms.found(_records(quiet))
    found = alarms.found(_records([*quiet, 1.6]))
    assert "loss 1.6" in found["loss spike"] and "lie about" in found["loss spike"]
    assert "loss spike" not in alarms.found(_records([*quiet, 0.2]))  # a fall is no harm
    assert "loss spike" in alarms.found(_records([*(-x for x in quiet), 0.5]))  # a loss below 0


def test_a_spike_hides_neither_behind_an_earlier_one_nor_in_a_loss_that_never_varies() -> None:
    assert "loss spike" in alarms.found(_records([*_noisy(30), 90.0, 80.0, *_noisy(8), 2.0]))  # a mean and its deviation would let it pass
    assert "loss spike" not in alarms.found(_records([0.5] * 30 + [0.51]))
    assert "loss spike" in alarms.found(_records([0.5] * 30 + [0.6]))


def test_losses_that_fall_rise_slowly_or_have_just_begun_are_no_spikes() -> None:
    falling, rising = [math.exp(-k / 20) + 0.01 for k in range(200)], [0.5 + k / 400 for k in range(200)]
    for losses in (falling, rising, [1.0, 5.0, 1.0]):
        assert not any("loss spike" in alarms.found(_records(losses[:k])) for k in range(1, len(losses) + 1))


def test_features_that_shrink_to_a_point_or_a_line_collapse_and_a_single_odd_batch_does_not() -> None:
    def records(*looks: tuple[float, float]) -> list[dict]:
        return [{"step": k + 1, "loss": 1.0, "z_std": 0.7, "z_rank": rank, "z_uniformity": uniformity} for k, (rank, uniformity) in enumerate(looks)]

    assert alarms.collapsed([{"feature_std": 0.7}, {"feature_std": 0.0044, "feature_rank": 2.0}]) == "feature_std 0.0044"
    assert alarms.collapsed(records(*[(1.3, -0.4)] * 5)) == "z_rank 1.3 with z_uniformity -0.4"
    assert alarms.found(records(*[(1.3, -0.4)] * 5))["collapse"] == "z_rank 1.3 with z_uniformity -0.4"
    for looks in ([(1.3, -0.4)] * 4, [(1.3, -0.9)] * 5, [(1.8, -0.4)] * 5, [*[(1.8, -0.9)] * 3, (1.0, 0.0), (1.0, 0.0)]):
        assert alarms.collapsed(records(*looks)) == "", looks
    assert alarms.collapsed(records(*[(1.3, -0.4)] * 5), attracts=False) == ""  # what a VAE learns first, brightness, is one line
    assert "z_std" in alarms.collapsed([{"z_std": 0.01, "z_rank": 1.0}], attracts=False)
    watches = [alarms.Watch(attracts=attracts) for attracts in (True, False)]
    assert ["collapse" in [watch.look(dict(r)) for r in records(*[(1.3, -0.4)] * 5)][-1] for watch in watches] == [True, False]


def test_a_gradient_that_is_silent_at_every_look_is_dead_and_one_that_comes_back_is_not() -> None:
    assert alarms.of_gradients({"a": 3.0, "b": 0.0, "c": 4.0}) == {"gradient_norm": 5.0, "no_gradient": ["b"]}
    assert alarms.of_gradients({"a": 1.0}) == {"gradient_norm": 1.0}
    silent = _records([1.0] * 5, no_gradient=["head.weight", "head.bias"])
    assert alarms.found(silent)["dead gradients"] == "2 parameters had none at the last 5 looks: head.weight, head.bias"
    assert "dead gradients" not in alarms.found(silent[:4])
    silent[2] = {"step": 3, "loss": 1.0, "no_gradient": ["head.bias"]}
    assert "1 parameters" in alarms.found(silent)["dead gradients"]
    silent[2] = {"step": 3, "loss": 1.0}
    assert "dead gradients" not in alarms.found(silent)


def test_waiting_for_data_is_told_with_what_to_do_about_it() -> None:
    advice = alarms.advice(kept="none", kept_why="8.0 GB, more than half of the 9.0 GB free", threads=1, prefetch=2, device="cpu")
    assert "data.resident=ram" in advice and "8.0 GB" in advice and "data.prefetch=4" in advice and "--profile" in advice
    assert "resident" not in alarms.advice(kept="ram", kept_why="", threads=1, prefetch=2, device="cpu")
    assert "if it is the disk that is slow, data.prefetch=2" in alarms.advice(kept="ram", kept_why="", threads=1, prefetch=0, device="cpu")
    assert "read further ahead, data.prefetch=2 (now 0)" in alarms.advice(kept="ram", kept_why="", threads=1, prefetch=0, device="cuda")

    def records(*waits: float) -> list[dict]:
        return [{"step": k + 1, "loss": 1.0, "samples_per_s": 100.0, "data_wait": wait} for k, wait in enumerate(waits)]

    assert alarms.found(records(0.9, *[0.12] * 10), advice)["data wait"] == f"12% of the time over the last 10 records; {advice}"
    for waits in ([0.9, *[0.09] * 10], [0.9, *[0.12] * 9], [0.9, *[0.01] * 8, 0.9, 0.9], [0.9, *[0.11] * 6, *[0.0] * 4]):
        assert "data wait" not in alarms.found(records(*waits), advice), waits


def test_a_rank_is_slow_when_it_alone_is_so_at_every_look() -> None:
    def records(*looks: list[float]) -> list[dict]:
        return [{"step": k + 1, "loss": 1.0, "rank_s": look} for k, look in enumerate(looks)]

    slow = [0.010, 0.011, 0.030, 0.010]
    assert alarms.found(records(slow, slow, slow))["slow rank"] == "rank 2 takes 30.0 ms for its data and encoders, 3.0 times the others' median"
    assert "slow rank" not in alarms.found(records(slow, slow))
    assert "slow rank" not in alarms.found(records(slow, [0.03, 0.01, 0.01, 0.01], slow))  # now one, now another: that is noise
    assert "slow rank" not in alarms.found(records(*[[0.010, 0.011, 0.014, 0.010]] * 3))
    assert "rank 1" in alarms.found(records(*[[0.01, 0.02]] * 3))["slow rank"]


def test_an_alarm_begins_once_stays_in_the_records_and_begins_again_after_it_ended() -> None:
    watch = alarms.Watch()
    steps = [{"step": k, "loss": 1.0, "feature_std": std} for k, std in enumerate([0.5, 0.01, 0.01, 0.5, 0.01])]
    begun = [bool(watch.look(record)) for record in steps]
    assert begun == [False, True, False, False, True]
    assert ["alarm" in record for record in steps] == [False, True, True, False, True]
    assert steps[1]["alarm"] == "collapse: feature_std 0.01"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tests/faults importable, here and in ranks that are started."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    for name in [name for name in sys.modules if name.split(".")[0] == "faults"]:
        del sys.modules[name]


def _run(corpus: Path, out: Path, *, steps: int, batch: int = 8, prefetch: int = 8, **method: object) -> Run:
    return dsengine.train(corpus=str(corpus), out=str(out), device={"gpus": 0}, encoder="faults.small",
                          method={"name": "faults.method", **method}, data={"size": 16, "prefetch": prefetch},
                          train={"max_steps": steps, "epochs": 1000, "batch_size": batch, "precision": "fp32", "lr": 1e-3, "log_steps": 5,
                                 "checkpoint_steps": 1000, "heldout_samples": 2, "bn_group": 8})


def _kinds(run: Run) -> set[str]:
    """Of all alarms; but waiting for data is real where other processes take the cores, and then not the run's doing."""
    busy = os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2
    return _every_kind(run) - ({"data wait"} if busy else set())


def _every_kind(run: Run) -> set[str]:
    return {part.split(":")[0] for record in run.metrics for part in record.get("alarm", "").split("; ") if ":" in part}


def test_a_clean_run_of_500_steps_raises_no_alarm(planted: None, small_corpus: Path, tmp_path: Path) -> None:
    run = _run(small_corpus, tmp_path / "run", steps=500)
    assert _kinds(run) == set() and run.metrics[-1]["step"] == 500
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"] and all(r["gradient_norm"] > 0 and "no_gradient" not in r for r in run.metrics)


@pytest.mark.parametrize("fault, kind", [("spike", "loss spike"), ("collapse", "collapse"), ("dead", "dead gradients")])
def test_a_planted_fault_raises_its_alarm_and_no_other(planted: None, small_corpus: Path, tmp_path: Path, fault: str, kind: str) -> None:
    run = _run(small_corpus, tmp_path / "run", steps=120, fault=fault, at=80, until=100 if fault == "spike" else 1000)
    first = next(record["step"] for record in run.metrics if kind in record.get("alarm", ""))
    assert kind in _kinds(run) and _kinds(run) <= {kind, "loss spike"} and first >= 80


def test_a_slow_loader_raises_the_alarm_of_waiting(planted: None, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader.make
    monkeypatch.setattr(loader, "make", lambda *args, **kwargs: (time.sleep(0.05), made(*args, **kwargs))[1])
    run = _run(small_corpus, tmp_path / "run", steps=60, prefetch=0)  # however slow the steps are, none hides a wait
    assert _every_kind(run) == {"data wait"} and "--profile" in run.metrics[-1]["alarm"]
