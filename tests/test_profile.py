"""`--profile`: a step's time is divided so that it sums to the step, on a timeline made by hand and in a run."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.data.plan import make_plan
from dsengine.data.sample import View
from dsengine.dist import SOLO
from dsengine.engine import bounds, profile
from dsengine.engine.timeline import ENCODER, WAIT, Event, parts_of

NODE, STEP = "autograd::engine::evaluate_function: MulBackward0", "Optimizer.step#Adam.step"
# One step of 100 s: 10 of waiting, encoder 12-40, loss to 50, backward 50-80, update 85-95.
HOST = [Event(WAIT, 0, 10), Event(ENCODER, 12, 40), Event("aten::mul", 41, 49), Event(NODE, 50, 60), Event(NODE, 61, 80), Event("aten::norm", 83, 84),
        Event(STEP, 85, 95), Event("aten::copy_", 0, 99, main=False)]


def test_every_moment_of_a_step_belongs_to_one_part() -> None:
    assert parts_of(HOST, ranks=1, seconds=100) == {
        "load": 10, "forward": 28, "loss": 10, "backward": 30, "communication": 0, "optimiser": 10, "other": 12}


def test_collectives_take_their_time_from_the_loss_and_the_wait_after_backward_is_theirs() -> None:
    parts = parts_of([*HOST, Event("c10d::_allgather_base_", 42, 46)], ranks=2, seconds=100)
    assert (parts["communication"], parts["loss"], parts["other"]) == (4 + 3, 6, 9)
    assert sum(parts.values()) == 100


def test_of_a_gpu_the_kernels_count_and_hidden_communication_is_free() -> None:
    kernels = [Event("conv", 13, 45, main=False, device=True, launched=20), Event("loss", 45, 47, main=False, device=True, launched=45),
               Event("wgrad", 50, 90, main=False, device=True, launched=55), Event("ncclDevKernel_AllReduce", 70, 93, main=False, device=True, launched=58),
               Event("adam", 93, 97, main=False, device=True, launched=90)]
    parts = parts_of([*HOST, *kernels], ranks=2, seconds=100)
    assert parts == {"load": 10, "forward": 32, "loss": 2, "backward": 40, "communication": 3, "optimiser": 4, "other": 9}


def test_two_steps_are_told_apart() -> None:
    later = [e._replace(start=e.start + 100, end=e.end + 100) for e in HOST]
    assert parts_of([*HOST, *later], ranks=1, seconds=200)["loss"] == 20


def test_a_run_leaves_a_trace_and_a_table_that_sums_to_the_step(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    argv = ["train", "--corpus", str(small_corpus), "--out", str(tmp_path / "run"), "--gpus", "0", "--batch-size", "8", "--encoder", "faults.small", "--profile",
            *(word for setting in (f"train.max_steps={profile.NEEDED}", "train.precision=fp32", "train.heldout_samples=2", "data.size=24") for word in ("--set", setting))]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("where a step goes", "forward", "TFLOP/s", "GB/s", "of the serial bound", "behind it, a batch by itself: load"))
    found = json.loads((tmp_path / "run" / "profile" / "steps.json").read_text())
    assert sum(found["parts_s"].values()) == pytest.approx(found["traced_step_s"], rel=0.02)
    assert all(found["parts_s"][part] > 0 for part in ("forward", "loss", "backward", "optimiser")) and found["step_s"] > 0
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(e.get("name") == ENCODER for e in trace) >= profile.TRACED
    assert sum(e.get("name") == STEP for e in trace) == profile.TRACED


def test_it_is_refused_where_the_run_is_too_short(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["train", "--corpus", str(small_corpus), "--out", str(tmp_path / "run"), "--gpus", "0", "--set", "train.max_steps=5", "--profile"]
    assert cli.main(argv) == 2
    assert f"train.profile: takes {profile.NEEDED} steps, this run has 5" in capsys.readouterr().err and not (tmp_path / "run").exists()


class Slow(nn.Module):
    """Sleeps where an encoder would compute, and says for how long: a busy machine wakes it late."""

    slept_s = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = time.perf_counter()
        time.sleep(0.03)
        self.slept_s += (time.perf_counter() - before,)
        return x * torch.ones((), requires_grad=True)


def test_a_part_that_is_slow_shows_as_such(tmp_path: Path) -> None:
    method = nn.Module()
    method.encoders = nn.ModuleDict({"all": Slow()})
    with profile.Profiler(tmp_path, method, device=torch.device("cpu"), world=SOLO) as profiler:
        batches = profiler.waiting(iter(range(100)))
        for _ in range(profile.NEEDED):
            next(batches)
            method.encoders["all"](torch.ones(2)).sum().backward()
            time.sleep(0.01)
            said = profiler.step_done()
    assert said.startswith("traced 5 steps")
    found, traced_s = profile.read(tmp_path), method.encoders["all"].slept_s[-profile.TRACED:]
    parts = found["parts_s"]
    # Neither sleep is in the other's part or anywhere else, nor is a moment counted twice; what a busy machine adds is not for a test to bound.
    assert sum(parts.values()) == pytest.approx(found["traced_step_s"], rel=0.02)
    assert parts["forward"] > 0.99 * sum(traced_s) / profile.TRACED and parts["other"] > 0.0099


def test_the_loader_by_itself_is_timed_in_its_parts(small_corpus: Path) -> None:
    plan = make_plan(open_corpus(small_corpus), (View(size=16), View(size=16)), global_batch=16)
    seconds = bounds.loader_seconds(plan, num_threads=1)
    assert list(seconds) == ["load", "decode", "augment"] and seconds["load"] > 0 and seconds["augment"] > 0
