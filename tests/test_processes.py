"""Several ranks end together: by Ctrl-C, by a killed launcher, by one rank's failure. Nothing goes on writing alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dsengine.engine.log import read_metrics


def _start(corpus: Path, out: Path, *extra: str) -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "dsengine.cli", "train", "--corpus", str(corpus), "--out", str(out), "--gpus", "0", "--procs", "2",
               "--batch-size", "16", "--epochs", "1000", "--set", "train.log_steps=1", *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    deadline = time.time() + 120
    while not any(record["step"] >= step for record in read_metrics(out)):
        assert process.poll() is None and time.time() < deadline, process.communicate()[1]
        time.sleep(0.05)


def _ranks(out: Path) -> list[int]:
    """Living processes whose command line names the run folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(out).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _gone(out: Path) -> bool:
    deadline = time.time() + 20
    while _ranks(out) and time.time() < deadline:
        time.sleep(0.1)
    return not _ranks(out)


def test_an_interrupted_run_says_so_in_one_line_and_leaves_no_rank(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = _start(small_corpus, out)
    _wait_for_step(process, out, 1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err and "interrupted" in err.strip().splitlines()[-1]
    assert _gone(out)


def test_ranks_die_with_a_killed_launcher(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = _start(small_corpus, out)
    _wait_for_step(process, out, 1)
    assert len(_ranks(out)) == 3
    process.kill()
    process.wait()
    assert _gone(out)


def test_one_failing_rank_is_reported_in_one_line_and_its_peers_keep_quiet(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = _start(small_corpus, out, "--set", "train.checkpoint_steps=3")
    _wait_for_step(process, out, 1)
    (out / "checkpoints").write_text("in the way of rank 0, which writes checkpoints; rank 1 does not")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("dsengine: rank 0: checkpoint ")
    assert _gone(out)
