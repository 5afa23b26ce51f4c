"""Carrying a study out: what is begun when, what fails alone, what is not done twice. Children are stand-ins (tests/workers/study_stand_in.py)."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dsengine.errors import UsageError
from dsengine.study import command, processes, spec
from dsengine.study.processes import Slot

STAND_IN = Path(__file__).parent / "workers" / "study_stand_in.py"
STUDY = {"title": "small", "corpus": {"synth": {"patches": 32, "size": 32}}, "encoders": ["resnet18", "resnet34"], "methods": ["none", "vae"],
         "evaluations": ["linear"]}


def written(folder: Path, **changes: object) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return folder / "study.yaml"


class Bench:
    """One study's folder and what was called for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.out, self.log = folder, folder / "out", folder / "calls"
        monkeypatch.setattr(processes, "command_line", lambda argv: [sys.executable, "-S", str(STAND_IN), str(self.log), *argv])

    def run(self, slots: int = 1, **changes: object) -> int:
        return command.carry_out(spec.load(written(self.folder, **changes)), self.out, [Slot(None, 1)] * slots)

    def calls(self) -> list[str]:
        """Verb and folder of each, in order."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [f"{line[0]} {(line[2] if line[0] == 'corpus' else line[line.index('--out') + 1]).split('/')[-1].rsplit('-', 1)[0]}" for line in lines]

    def tables(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.out)): path.read_bytes() for path in sorted(self.out.glob("tables/*"))} | {
            "tables.md": (self.out / "tables.md").read_bytes(), "scores.csv": (self.out / "scores.csv").read_bytes()}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_each_cell_is_done_once_after_what_it_needs(bench: Bench) -> None:
    assert bench.run() == 0
    calls = bench.calls()
    assert calls[:2] == ["corpus synth-32-patches-of-32-px-seed-0"] * 2  # made, then its neighbours
    assert sorted(calls[2:]) == sorted(["train resnet18-vae-s0", "train resnet34-vae-s0", *(
        f"evaluate {encoder}-{method}-s0" for encoder in ("resnet18", "resnet34") for method in ("none", "vae"))])
    for encoder in ("resnet18", "resnet34"):
        assert calls.index(f"train {encoder}-vae-s0") < calls.index(f"evaluate {encoder}-vae-s0")


def test_a_finished_study_calls_nothing_and_writes_the_same_tables(bench: Bench) -> None:
    assert bench.run() == 0
    first, before = bench.calls(), bench.tables()
    assert bench.run() == 0
    assert bench.calls() == first and bench.tables() == before


def test_a_study_that_grew_does_what_is_new_alone(bench: Bench) -> None:
    assert bench.run() == 0
    first = bench.calls()
    assert bench.run(methods=["none", "vae", "csf"], title="new title") == 0
    assert sorted(bench.calls()[len(first):]) == sorted(f"{verb} {encoder}-csf-s0" for encoder in ("resnet18", "resnet34") for verb in ("train", "evaluate"))


def test_equal_cells_are_one(bench: Bench) -> None:
    assert bench.run(methods={"vae": {}, "again": {"name": "vae", "title": "the same"}}) == 0
    assert [call for call in bench.calls() if call.startswith("train")] == ["train resnet18-vae-s0", "train resnet34-vae-s0"]
    assert len([call for call in bench.calls() if call.startswith("evaluate")]) == 4


def test_a_changed_setting_is_another_cell_and_what_builds_on_it_too(bench: Bench) -> None:
    assert bench.run() == 0
    first = bench.calls()
    assert bench.run(overrides=[{"encoder": "resnet18", "method": "vae", "set": {"train.lr": 1e-4}}]) == 0
    assert bench.calls()[len(first):] == ["train resnet18-vae-s0", "evaluate resnet18-vae-s0"]
    assert bench.run(train={"log_steps": 3}, data={"threads": 1}) == 0  # of which no figure depends
    assert len(bench.calls()) == len(first) + 2


def test_a_failing_cell_leaves_its_line_and_stops_nothing_but_what_builds_on_it(bench: Bench, capsys: pytest.CaptureFixture) -> None:
    methods = {"none": {}, "bad": {"name": "vae", "latent": 16}, "vae": {}}
    assert bench.run(methods=methods) == 1
    calls = bench.calls()
    assert "evaluate resnet34-vae-s0" in calls and "train resnet34-bad-s0" in calls and "evaluate resnet34-bad-s0" not in calls
    table = (bench.out / "tables" / "linear.md").read_text()
    assert "| bad | failed[^1] | failed[^2] |" in table and "[^1]: resnet18, bad, seed 0: not done, because resnet18 bad s0 failed: it is bad, 100 % & more" in table
    assert r"it is bad, 100 \% \& more" in (bench.out / "tables" / "linear.tex").read_text()
    assert "train resnet18 bad s0: it is bad" in (bench.out / "tables.md").read_text()
    assert re.search(r"failed +train resnet34 bad s0: it is bad", capsys.readouterr().err)
    assert bench.run(methods=methods) == 1  # tried again, and only that
    assert bench.calls()[len(calls):] == ["train resnet18-bad-s0", "train resnet34-bad-s0"]


def test_cells_run_at_once_as_far_as_there_are_slots(bench: Bench) -> None:
    methods = {"slow": {"name": "vae"}}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, str(STAND_IN), "study", str(written(bench.folder, methods=methods)), str(bench.out), str(bench.log)])
    _wait(lambda: bench.log.exists() and "train resnet18-slow-s0" in bench.calls())
    time.sleep(0.5)
    assert "train resnet34-slow-s0" not in bench.calls()  # one slot
    with pytest.raises(UsageError, match="another process carries out a study"):
        bench.run(methods=methods)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) != 0 and time.monotonic() - started < 60
    assert not _alive(bench.out)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_study_goes_on_where_it_was_and_ends_with_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    changes = {"methods": {"none": {}, "vae": {}, "slow": {"name": "vae", "latent": 32}, "bad": {"name": "vae", "latent": 16}}}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    stopped, undisturbed = Bench(tmp_path / "a", monkeypatch), tmp_path / "a" / "calls"
    process = subprocess.Popen([sys.executable, str(STAND_IN), "study", str(written(stopped.folder, **changes)), str(stopped.out), str(undisturbed)])
    _wait(lambda: undisturbed.exists() and "train resnet18-slow-s0" in stopped.calls())
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    before = stopped.calls()
    finished = [name for name in before if "slow" not in name]
    assert "train resnet34-vae-s0" in finished
    assert stopped.run(**changes) == 1
    again = stopped.calls()[len(before):]
    assert not set(again) & set(finished) and again[0] == "train resnet18-slow-s0"
    assert "--resume" in stopped.log.read_text().splitlines()[len(before)]
    whole = Bench(tmp_path / "b", monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))
    _quick(whole, monkeypatch)
    assert whole.run(**changes) == 1
    assert whole.tables() == stopped.tables()


def _quick(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in as if everything were resumed."""
    monkeypatch.setattr(processes, "command_line", lambda argv: [sys.executable, "-S", str(STAND_IN), str(bench.log), *argv, "--resume"])


def _wait(for_what: object) -> None:
    deadline = time.monotonic() + 90
    while not for_what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(out: Path) -> list[str]:
    """Command lines of processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
            found += [line] if str(out) in line else []
    return found
