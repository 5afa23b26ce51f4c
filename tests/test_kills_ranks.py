"""Ranks killed, stopped, hung and started anew, on one machine and on two (two launchers on this one); what goes on is the same run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ranks import (TRAIN, environment, free_port, gone, is_free, listening, naming, rank_pids, reached, settings, shared_memory, start,  # noqa: E402
                   wait_for_step)

from dsengine.engine import checkpoint
from dsengine.engine.history import read_history
from dsengine.engine.log import read_metrics

pytestmark = pytest.mark.kills
STEPS = 9
# A small learning rate: Adam makes full-size updates of gradients that are rounding noise, and those differ between numbers of ranks.
EXACT = ("--set", "train.precision=fp64", "--set", "train.lr=1e-6", "--set", "train.checkpoint_steps=3")
LONG = 120


def _whole(corpus: Path, out: Path, *extra: str, steps: int = STEPS) -> list[dict]:
    done = subprocess.run([*TRAIN, *settings(corpus, out, *EXACT, *extra, steps=steps)], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return read_metrics(out)


def _assert_same(one: list[dict], other: list[dict], steps: int = STEPS) -> None:
    """The same samples, and losses to 1e-9."""
    assert any("heldout_loss" in a and "heldout_loss" in b for a, b in zip(one, other))
    assert [r["step"] for r in one] == [r["step"] for r in other] == list(range(1, steps + 1))
    for a, b in zip(one, other):
        assert a["ids_crc"] == b["ids_crc"]
        for key in ("loss", "heldout_loss"):
            # A part of a run that ends has a held-out loss where the whole may have none.
            assert not (key in a and key in b) or abs(a[key] - b[key]) <= 1e-9 * max(1.0, abs(a[key])), (a, b)


@pytest.fixture(scope="module")
def alone(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The metrics of one rank, undisturbed."""
    return _whole(small_corpus, tmp_path_factory.mktemp("alone") / "run")


def test_a_run_begun_on_four_ranks_goes_on_on_one_and_then_on_two(small_corpus: Path, tmp_path: Path, alone: list[dict]) -> None:
    out = tmp_path / "run"
    for ranks, steps in ((4, 3), (1, 6), (2, 9)):
        _whole(small_corpus, out, "--procs", str(ranks), "--resume", "auto", steps=steps)
    _assert_same(read_metrics(out), alone)
    assert [record["ranks"] for record in read_history(out) if record["event"] == "start"] == [4, 1, 2]


def _kill_rank(process: subprocess.Popen, out: Path, number: int) -> None:
    os.kill(rank_pids(out, process.pid)[number], signal.SIGKILL)


@pytest.mark.parametrize("extra, ranks", [((), [2, 2, 2]), (("--set", "device.restart_ranks=1"), [2, 1])])
def test_the_launcher_starts_killed_ranks_again_from_the_last_checkpoint_also_fewer(
        small_corpus: Path, tmp_path: Path, extra: tuple, ranks: list[int]) -> None:
    out, memory = tmp_path / "run", shared_memory()
    process = start([*TRAIN, *settings(small_corpus, out, *EXACT, "--procs", "2", "--set", "device.max_restarts=2", *extra, steps=LONG)])
    for number in range(len(ranks) - 1):
        wait_for_step(process, out, reached(out) + 5)
        _kill_rank(process, out, number)
        deadline = time.time() + 60
        while sum(record["event"] == "start" for record in read_history(out)) < number + 2 and time.time() < deadline:
            time.sleep(0.05)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.count("was killed by SIGKILL") == len(ranks) - 1 and "restart 1 of 2" in err and "resuming at step" in err
    _assert_same(read_metrics(out), _whole(small_corpus, tmp_path / "whole", steps=LONG), LONG)
    assert [record["ranks"] for record in read_history(out) if record["event"] == "start"] == ranks
    assert gone(out) and shared_memory() == memory


def test_after_the_last_restart_the_loss_of_a_rank_ends_the_run(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start([*TRAIN, *settings(small_corpus, out, "--procs", "2", "--set", "device.max_restarts=1")])
    for _ in range(2):
        wait_for_step(process, out, reached(out) + 3)
        _kill_rank(process, out, 1)
        time.sleep(1.0)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.count("restart 1 of 1") == 1 and err.strip().splitlines()[-1].startswith("dsengine: rank 1 was killed"), err
    assert gone(out)


def test_a_rank_that_hangs_ends_the_run_after_the_timeout_and_is_named(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start([*TRAIN, *settings(small_corpus, out, "--procs", "3", "--batch-size", "24", "--set", "device.collective_timeout_s=8")])
    wait_for_step(process, out, 3)
    hung = rank_pids(out, process.pid)[2]
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    last = err.strip().splitlines()[-1]
    assert process.returncode == 1 and time.monotonic() - began < 40, err
    assert re.search(rf"no rank got further for 8 s .*: rank 2 is missing: at step \d+, .*\(pid {hung} on .*\), samples .*without a sign of life; the others", last)
    assert "rank 0 is missing" not in last and "rank 1 is missing" not in last and gone(out)


@pytest.mark.parametrize("trial", range(3))
def test_nothing_is_left_of_ranks_however_they_are_killed(small_corpus: Path, tmp_path: Path, trial: int) -> None:
    out, memory = tmp_path / "run", shared_memory()
    process = start([*TRAIN, *settings(small_corpus, out, "--procs", "2", "--set", "train.checkpoint_steps=2", "--resume", "auto")])
    wait_for_step(process, out, 3 + trial)
    pids = [process.pid, *rank_pids(out, process.pid)]
    assert len(pids) == 3
    ports = listening(pids)
    os.kill(pids[trial], signal.SIGKILL)
    assert gone(out), naming(out)
    process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if trial == 0 else 1)
    assert ports and all(map(is_free, ports)) and shared_memory() == memory
    found, passed = checkpoint.latest(out)
    assert not passed and 0 <= reached(out) - (found.step if found else 0) <= 4


def test_a_signal_to_the_launcher_reaches_the_ranks_and_auto_goes_on(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*TRAIN, *settings(small_corpus, out, "--procs", "2", "--resume", "auto", "--set", "train.checkpoint_steps=100000")]
    saved = 0
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = start(command)
        wait_for_step(process, out, saved + 2)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 75 and (f"resuming at step {saved} " in err) == (saved > 0) and "Traceback" not in err, err
        assert checkpoint.latest(out)[0].step == reached(out) > saved
        saved = reached(out)


def _on_two_nodes(corpus: Path, out: Path, *extra: str, steps: int | None) -> list[subprocess.Popen]:
    meet = f"localhost:{free_port()}"
    return [start([*TRAIN, *settings(corpus, out, "--nodes", "2", "--procs", "1", "--resume", "auto", "--set", f"device.rendezvous={meet}", *EXACT, *extra,
                                     steps=steps)]) for _ in range(2)]


def test_two_launchers_that_meet_train_what_one_rank_trains(small_corpus: Path, tmp_path: Path, alone: list[dict]) -> None:
    out = tmp_path / "run"
    processes = _on_two_nodes(small_corpus, out, steps=STEPS)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    _assert_same(read_metrics(out), alone)
    assert sum("done: loss" in text for text, _ in said) == 1  # one of them speaks
    assert gone(out)


def test_a_signal_to_one_of_two_machines_stops_both_with_code_75(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = _on_two_nodes(small_corpus, out, steps=None)
    wait_for_step(processes[0], out, 3)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], said
    assert checkpoint.latest(out)[0].step == reached(out) and gone(out)


def test_two_machines_start_again_together_when_a_rank_of_one_is_killed(small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = _on_two_nodes(small_corpus, out, "--set", "device.max_restarts=1", steps=LONG)
    wait_for_step(processes[0], out, 5)
    victim = next(pid for pid, line in naming(out).items() if "engine.launch" in line)
    os.kill(victim, signal.SIGKILL)
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert any("resuming at step" in text for text in said)
    _assert_same(read_metrics(out), _whole(small_corpus, tmp_path / "whole", steps=LONG), LONG)


def test_torchrun_on_two_machines_trains_what_one_rank_trains(small_corpus: Path, tmp_path: Path, alone: list[dict]) -> None:
    out, meet = tmp_path / "run", f"localhost:{free_port()}"
    torchrun = [sys.executable, "-m", "torch.distributed.run"]  # wherever the environment's programs lie
    command = [*torchrun, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", meet, "--rdzv-id", "job", "-m", "dsengine.cli",
               "train", *settings(small_corpus, out, *EXACT, steps=STEPS)]
    processes = [start(command) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    _assert_same(read_metrics(out), alone)


def test_tasks_of_srun_are_ranks_and_stop_with_code_75(small_corpus: Path, tmp_path: Path, alone: list[dict]) -> None:
    out = tmp_path / "run"
    job = str(int.from_bytes(os.urandom(2)))
    srun = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "2"}

    def tasks(*extra: str, steps: int | None) -> list[subprocess.Popen]:
        command = [*TRAIN, *settings(small_corpus, out, *EXACT, "--resume", "auto", *extra, steps=steps)]
        return [start(command, **srun, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in range(2)]

    processes = tasks(steps=100000)
    wait_for_step(processes[0], out, 3)
    processes[1].send_signal(signal.SIGUSR1)  # the other learns of it from this one
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], said
    assert "stopped by SIGUSR1 after step" in said[0].splitlines()[-1] and "stopped by" not in said[1]
    assert checkpoint.latest(out)[0].step == reached(out)
    for process in (processes := tasks(steps=max(reached(out) + 3, STEPS))):
        assert process.communicate(timeout=120) and process.returncode == 0
    _assert_same(read_metrics(out)[:STEPS], alone)


def test_tasks_of_srun_with_settings_of_their_own_are_refused_as_one_run(small_corpus: Path, tmp_path: Path) -> None:
    srun = {"SLURM_JOB_ID": "99", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "2"}
    processes = [start([*TRAIN, *settings(small_corpus, tmp_path / f"run{rank}", "--seed", str(rank), steps=4)], **srun, SLURM_PROCID=rank, SLURM_LOCALID=rank)
                 for rank in range(2)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert all("ranks have different settings" in text for text in said)
