"""What test_kills*.py have in common: a small run, the process that starts it over and over, and what must hold after a kill and in the end."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from dsengine.engine import checkpoint
from dsengine.engine.log import read_metrics

WORKERS = Path(__file__).parent / "workers"
STEPS, INTERVAL = 60, 5
COMPARED = ("step", "epoch", "loss", "active", "feature_std", "lr", "ids_crc", "heldout_loss")
BEFORE, MIDDLE, AFTER, NEVER = range(4)  # faults.c


class Ended(NamedTuple):
    """How a start ended."""

    code: int
    seconds: float
    fault: str
    said: str


class Zygote:
    """The process that has everything imported. A context manager."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler for tests/workers/faults.c")
        library = folder / "faults.so"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(WORKERS / "faults.c"), "-ldl"], check=True)
        self._log = folder / "said"
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen([sys.executable, "-P", str(WORKERS / "zygote.py"), str(library)], env=environment, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert json.loads(self._process.stdout.readline()) == {"ready": True}

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)

    def run(self, argv: list[str], **how: object) -> Ended:
        """One start of `dsengine ARGV`; see workers/zygote.py for `how`."""
        self._log.write_text("")
        self._process.stdin.write(json.dumps({"argv": argv, "log": str(self._log), **how}) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()), said=self._log.read_text())


def command(corpus: Path, out: Path, *, beside: bool = False) -> list[str]:
    """The run, begun or gone on with; beside: steps go on while a checkpoint is written."""
    return ["train", "--resume", "auto", "--corpus", str(corpus), "--out", str(out), "--gpus", "0", "--encoder", "workers.tiny_encoder", "--batch-size", "16",
            "--set", f"train.max_steps={STEPS}", "--set", "train.log_steps=1", "--set", f"train.checkpoint_steps={INTERVAL}", "--set", "train.precision=fp32",
            "--set", "train.schedule=cosine", "--set", "train.heldout_samples=16", "--set", "method.margin=20", "--set", "data.threads=1", "--set", "data.size=16",
            "--set", f"train.async_save={str(beside).lower()}"]


def reached(out: Path) -> int:
    """The last step whose record is whole."""
    return max((record["step"] for record in read_metrics(out)), default=0)


def saved(out: Path) -> int:
    """The step that a resume would start from; fails where a checkpoint under its final name is not whole."""
    found, passed = checkpoint.latest(out)
    assert not passed, passed
    return 0 if found is None else found.step


def saving(out: Path) -> bool:
    """Whether a checkpoint was on its way when the process ended."""
    return any((out / "checkpoints").glob(".step-*"))


def assert_same_run(one: Path, other: Path, *, same_saves: bool = True) -> None:
    """Metrics, weights, optimiser state and the loader's position, bitwise; and the same checkpoints kept, where the same steps were saved."""
    ours, theirs = ([{k: r[k] for k in COMPARED if k in r} for r in read_metrics(run)] for run in (one, other))
    assert ours == theirs and [r["step"] for r in ours] == list(range(1, STEPS + 1))
    assert saved(one) == saved(other) == STEPS
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    assert (names[0] == names[1] or not same_saves) and not any(name.startswith(".") for name in names[0] + names[1])
    folders = [run / f"checkpoints/step-{STEPS:08d}" for run in (one, other)]
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in folders]
    assert states[0]["param_groups"] == states[1]["param_groups"] and states[0]["state"].keys() == states[1]["state"].keys()
    assert all(torch.equal(states[0]["state"][p][k], states[1]["state"][p][k]) for p in states[0]["state"] for k in states[0]["state"][p])
    assert checkpoint.read(folders[0]).loader == checkpoint.read(folders[1]).loader


def spread(draw: random.Random, calls: list[str], count: int) -> list[tuple[str, int, int]]:
    """`count` fault points (kind, number of the call, when) that take turns among the kinds of calls and before, in the middle and after."""
    kinds = {kind: [n for n, other in enumerate(calls) if other == kind] for kind in dict.fromkeys(calls)}
    cases = [(kind, when) for kind in kinds for when in ((BEFORE, MIDDLE, AFTER) if kind == "write" else (BEFORE, AFTER))]
    return [(kind, draw.choice(kinds[kind]), when) for kind, when in (cases[k % len(cases)] for k in range(count))]
