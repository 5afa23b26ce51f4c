"""A killed run that is resumed is the run that was not killed, bit for bit (fp32, CPU, one rank)."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsengine.engine.log import read_metrics

STEPS = 14
COMPARED = ("step", "epoch", "loss", "active", "feature_std", "lr", "ids_crc", "heldout_loss")


def _command(corpus: Path, out: Path, *extra: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dsengine.cli", "train", "--corpus", str(corpus), "--out", str(out), "--gpus", "0",
            "--encoder", "resnet18_attn", "--batch-size", "16", "--set", f"train.max_steps={STEPS}", "--set", "train.log_steps=1",
            "--set", "train.checkpoint_steps=3", "--set", "train.precision=fp32", "--set", "train.schedule=cosine",
            "--set", "method.margin=20", "--set", "method.warmup=0", "--set", "method.ramp=2", *extra]


def _kill_when(command: list[str], out: Path, step: int) -> None:
    """Start a run and SIGKILL it once `step` is in its metrics."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not any(r["step"] >= step for r in read_metrics(out)):
        assert process.poll() is None and time.time() < deadline, f"the run ended before step {step}"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = ([{k: r[k] for k in COMPARED if k in r} for r in read_metrics(run)] for run in (one, other))
    assert ours == theirs
    assert [r["step"] for r in ours] == list(range(1, STEPS + 1))
    final = f"checkpoints/step-{STEPS:08d}"
    weights = [load_file(run / final / "model.safetensors") for run in (one, other)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0]) and weights[0].keys() == weights[1].keys()
    states = [torch.load(run / final / "state.pt", weights_only=True)["state"] for run in (one, other)]
    assert all(torch.equal(states[0][p][k], states[1][p][k]) for p in states[0] for k in states[0][p])


@pytest.fixture(scope="module")
def uninterrupted(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(_command(small_corpus, out), check=True, capture_output=True, timeout=300)
    return out


@pytest.mark.parametrize("step", [1, 8])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(small_corpus: Path, uninterrupted: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "run"
    _kill_when(_command(small_corpus, out), out, step)
    assert max(r["step"] for r in read_metrics(out)) < STEPS
    resumed = subprocess.run([sys.executable, "-P", "-m", "dsengine.cli", "train", "--resume", "--out", str(out)],
                             capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    _assert_same_run(uninterrupted, out)


@pytest.mark.kills
def test_a_run_killed_again_and_again_at_random_steps_equals_the_uninterrupted_one(
        small_corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    for trial in range(20):
        out = tmp_path / f"run{trial}"
        command = _command(small_corpus, out)
        while True:
            reached = max((r["step"] for r in read_metrics(out)), default=0)
            if reached >= STEPS - 3:
                break
            _kill_when(command, out, draw.randint(reached + 1, STEPS - 2))
            command = [sys.executable, "-P", "-m", "dsengine.cli", "train", "--resume", "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        _assert_same_run(uninterrupted, out)


def test_a_damaged_newest_checkpoint_costs_one_interval_and_is_named(small_corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _kill_when(_command(small_corpus, out), out, 10)
    newest = sorted((out / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    resumed = subprocess.run([sys.executable, "-P", "-m", "dsengine.cli", "train", "--resume", "--out", str(out)],
                             capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert "passed over a damaged checkpoint" in resumed.stderr and newest.parent.name in resumed.stderr
    _assert_same_run(uninterrupted, out)
