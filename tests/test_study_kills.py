"""A study of real trainings and evaluations: one cell that fails, SIGKILL on the way, and the same tables in the end; children die with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

STUDY = {
    "title": "two by two", "corpus": {"synth": {"patches": 32, "size": 32}}, "encoders": ["resnet18", "resnet34"], "methods": ["none", "vae"],
    "train": {"epochs": 3, "batch_size": 8, "precision": "fp32"}, "data": {"size": 32, "threads": 1},
    "overrides": [{"encoder": "resnet34", "method": "vae", "set": {"train.lr": 1e30}}],  # its loss does not stay finite
    "evaluations": {"landcover": {"finetune": True, "epochs": 2, "crop": 16, "train_batch": 4, "split": "random", "num_draws": 20}}}


def _start(file: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-P", "-m", "dsengine.cli", "study", str(file), "--out", str(out), "--procs", "1"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _states(out: Path) -> dict[str, dict]:
    return {json.loads(path.read_text())["name"]: json.loads(path.read_text()) for path in out.glob("cells/*.json")}


def _tables(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in (*out.glob("tables/*"), out / "scores.csv", out / "tables.md")}


def _wait(process: subprocess.Popen, until: Callable[[], bool], timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while not until():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)


def _naming(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found += [int(entry.name)] if str(folder).encode() in (entry / "cmdline").read_bytes() else []
            except OSError:
                continue
    return found


@pytest.mark.kills
def test_a_killed_study_ends_as_an_undisturbed_one_and_does_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = _start(file, killed)
    _wait(process, lambda: any(killed.glob("runs/resnet18-vae-*/checkpoints/step-*/manifest.json")))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while _naming(killed) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _naming(killed)
    before = _states(killed)
    assert {"resnet18-none s0", "resnet34-none s0"} <= set(before) and "resnet18 vae s0" not in before
    stamps = {path: path.stat().st_mtime_ns for path in killed.glob("evaluations/*/*none*/results.json")}
    _, err = (process := _start(file, killed)).communicate(timeout=1200)
    assert process.returncode == 1 and "failed  train resnet34 vae s0: loss or gradients are not finite" in err, err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert all(_states(killed)[name] == outcome for name, outcome in before.items())
    assert "resuming at step" in next(killed.glob("logs/resnet18-vae-s0-*.log")).read_text()
    assert _start(file, whole).wait(timeout=1200) == 1
    assert _tables(whole) == _tables(killed)
    table = (whole / "tables" / "landcover.md").read_text()
    assert "failed[^1]" in table and table.count("[^1]") == 2


def test_a_child_dies_with_its_study_even_if_that_is_killed(tmp_path: Path) -> None:
    child = [sys.executable, "-P", "-m", "dsengine.study.child"]
    work = ["corpus", "synth", str(tmp_path / "big"), "--patches", "1000000", "--size", "64"]
    code = f"import os, subprocess; subprocess.Popen([*{child}, str(os.getpid()), *{work}]).wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait(parent, (tmp_path / "big").exists, timeout_s=120)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while _naming(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _naming(tmp_path)


def test_a_child_whose_study_is_gone_already_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "dsengine.study.child", "1" if os.getpid() != 1 else "2", "corpus", "synth", str(tmp_path / "c"),
                           "--patches", "4", "--size", "16"], capture_output=True)
    assert done.returncode == 1 and not (tmp_path / "c").exists()
