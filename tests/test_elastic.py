"""Several ranks: stopped together and saved, ended together with a name, found where they hang; what SLURM says, read right."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ranks import TRAIN, gone, is_free, listening, naming, rank_pids, reached, settings, shared_memory, start, wait_for_step  # noqa: E402

from dsengine.data import order
from dsengine.dist import SOLO
from dsengine.engine import checkpoint, elastic_slurm, launch
from dsengine.engine.elastic_beat import DATA, REST, STEP, Batches, Beat, Heartbeat, read_beats, standstill
from dsengine.engine.signals import ASKED, Stop, before_the_first_step
from dsengine.errors import Stopped, UsageError

BATCHES = Batches(np.arange(100), 3, 16, 4)


def _beat(rank: int, step: int = 7, part: str = STEP, alive: float = 1.0, waits: bool = True) -> Beat:
    return Beat(rank, step, part, 100 + rank, alive, "host", f"in f{rank} (x.py, line 1)", waits)


@pytest.mark.parametrize("odd", [_beat(2, alive=0.5), _beat(2, step=6), _beat(2, part=DATA), _beat(2, part=REST), _beat(2, waits=False)])
def test_the_rank_that_differs_from_those_that_wait_is_the_missing_one(odd: Beat) -> None:
    beats = [_beat(0), _beat(1), odd, _beat(3)]
    message, missing = standstill(beats, {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}, BATCHES, 9)
    ids = order.batch_ids(BATCHES.rows, seed=3, step=odd.step, global_batch=16)[1][8:12]
    assert missing == [odd] and "rank 2 is missing" in message and "\n" not in message
    assert f"at step {odd.step + 1}, {odd.part}" in message and f"samples {', '.join(map(str, ids))}" in message
    assert "the others wait at step 8" in message and "9 s (device.collective_timeout_s)" in message
    assert ("without a sign of life" in message) == (odd.alive == 0.5)


def test_where_all_wait_alike_nobody_is_accused_and_a_rank_without_a_file_is() -> None:
    before = dict.fromkeys(range(4), 0.5)
    message, missing = standstill([_beat(k) for k in range(4)], before, BATCHES, 9)
    assert missing == [] and "missing" not in message and "all ranks wait for each other" in message
    assert "rank 3 is missing: it has no file" in standstill([_beat(k) for k in range(3)], before, BATCHES, 9)[0]


def test_a_rank_alone_leaves_no_file_and_starts_no_thread(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, SOLO, BATCHES, timeout_s=9) as heart:
        heart.at(3, DATA)
        assert heart._thread is None
    assert list(tmp_path.iterdir()) == [] and read_beats(tmp_path, 4) == []


@pytest.mark.parametrize("nodes, first", [("gpu03", "gpu03"), ("gpu[03-05,09],login1", "gpu03"), ("a1,b2", "a1"), ("r[1-2]n[07-09]-ib", "r1n07-ib")])
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert elastic_slurm.first_host(nodes) == first


def test_what_srun_says_becomes_what_torch_understands_and_only_then() -> None:
    srun = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_PROCID": "5",
            "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "4,3"}
    found = dict(srun)
    elastic_slurm.adopt(found)
    assert {k: found[k] for k in found.keys() - srun.keys()} == {
        "RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "gpu03", "MASTER_PORT": found["MASTER_PORT"]}
    assert 10000 <= int(found["MASTER_PORT"]) < 30000
    other = {**srun, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    elastic_slurm.adopt(other)
    assert (other["MASTER_ADDR"], other["MASTER_PORT"], other["LOCAL_WORLD_SIZE"]) == ("gpu03", found["MASTER_PORT"], "4")
    script = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "7", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "gpu[03-04]"}  # a batch script itself
    for alone in (script, {**srun, "SLURM_STEP_NUM_TASKS": "1"}, {**srun, "RANK": "0"}, {}):
        before = dict(alone)
        elastic_slurm.adopt(alone)
        assert alone == before
    assert elastic_slurm.endpoint({}) is None and elastic_slurm.task_counts("4(x2),3") == [4, 4, 3]


@pytest.mark.parametrize("wrong, words", [
    ({"nodes": 2}, ["device.nodes=2", "device.rendezvous=HOST:PORT"]), ({"nodes": 2, "rendezvous": "a:1"}, ["--out"]),
    ({"procs": 2, "restart_ranks": 3, "max_restarts": 1}, ["restart_ranks=3", "2 ranks"]), ({"procs": 2, "restart_ranks": 1}, ["max_restarts=0"]),
    ({"procs": 4, "max_restarts": 1, "restart_ranks": 3}, ["does not divide among 3 ranks"]), ({"collective_timeout_s": 0}, ["collective_timeout_s=0"])])
def test_settings_of_ranks_that_cannot_be_met_are_refused(small_corpus: Path, wrong: dict, words: list[str]) -> None:
    import dsengine

    with pytest.raises(UsageError) as error:
        dsengine.train(corpus=str(small_corpus), train={"batch_size": 16}, device={"gpus": 0, **wrong})
    assert all(word in str(error.value) for word in words), error.value


def test_one_process_learns_of_a_signal_once_a_step_and_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in ASKED]
    for number in ASKED:
        with Stop(SOLO, timeout_s=9) as stop:
            assert stop.asked() == ""
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
            assert stop.asked() == stop.asked() == signal.Signals(number).name
    assert [signal.getsignal(number) for number in ASKED] == before


@pytest.mark.parametrize("number", ASKED)
def test_outside_of_training_a_signal_ends_things_at_once_and_is_not_taken_for_an_error(number: int) -> None:
    went_on = False
    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name} outside of training"):
        with before_the_first_step():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except Exception:
                went_on = True
    assert not went_on


def test_auto_resumes_where_there_is_a_run(tmp_path: Path) -> None:
    assert not launch.begun({}) and not launch.begun({"out": str(tmp_path / "none")}) and not launch.begun({"out": str(tmp_path)})
    (tmp_path / "config.yaml").write_text("")
    assert launch.begun({"out": str(tmp_path)})


def test_a_signal_to_one_rank_stops_all_after_the_same_step_saved_with_code_75(small_corpus: Path, tmp_path: Path) -> None:
    out, memory = tmp_path / "run", shared_memory()
    process = start([*TRAIN, *settings(small_corpus, out, "--procs", "2", "--set", "train.checkpoint_steps=100000")])
    wait_for_step(process, out, 3)
    ports = listening([process.pid, *rank_pids(out, process.pid)])
    os.kill(rank_pids(out, process.pid)[1], signal.SIGUSR1)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 75, err
    step = int(re.search(r"dsengine: stopped by SIGUSR1 after step (\d+) of \d+, which is saved; `--resume`", err.splitlines()[-1])[1])
    assert checkpoint.latest(out)[0].step == step == reached(out)
    assert gone(out) and shared_memory() == memory and ports and all(map(is_free, ports))


def test_a_killed_rank_ends_the_run_at_once_with_its_number_step_and_samples_and_leaves_nothing(small_corpus: Path, tmp_path: Path) -> None:
    out, memory = tmp_path / "run", shared_memory()
    process = start([*TRAIN, *settings(small_corpus, out, "--procs", "2")])
    wait_for_step(process, out, 2)
    pids = rank_pids(out, process.pid)
    ports = listening([process.pid, *pids])
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    assert gone(out, timeout_s=15) and time.monotonic() - began < 15, naming(out)
    _, err = process.communicate(timeout=60)
    found = re.search(r"dsengine: rank 1 was killed by SIGKILL at step (\d+), .*pid (\d+) .*samples ([\d, ]+)", err.splitlines()[-1])
    assert process.returncode == 1 and found and "Traceback" not in err, err
    assert abs(int(found[1]) - reached(out)) <= 1 and int(found[2]) == pids[1]
    from dsengine.corpus import open_corpus

    ids = order.batch_ids(open_corpus(small_corpus).rows("train"), seed=0, step=int(found[1]) - 1, global_batch=16)[1]
    assert found[3] == ", ".join(map(str, ids[8:]))
    assert shared_memory() == memory and all(map(is_free, ports))
