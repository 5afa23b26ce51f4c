"""Any number of ranks computes what one rank computes: losses, gradients, statistics, and whole runs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsengine.dist import SOLO, gather_rows, mean_over_ranks_
from dsengine.engine.log import read_metrics

WORKER = Path(__file__).parent / "workers" / "gradients.py"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _run(corpus: Path, out: Path, *, ranks: int, precision: str) -> dict:
    """The worker's results on `ranks` gloo ranks."""
    port = _free_port()
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        command = [sys.executable, "-P", str(WORKER), str(corpus), str(out), precision]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [p.communicate(timeout=300)[1] for p in processes]
    assert all(p.returncode == 0 for p in processes), errors
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def one_rank(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """One rank's results, by precision."""
    folder = tmp_path_factory.mktemp("one")
    return {precision: _run(small_corpus, folder / precision, ranks=1, precision=precision) for precision in ("fp64", "fp32")}


# fp32: gradients are compared to their own largest entry; sums in another order differ by some 1e-6 of it.
@pytest.mark.parametrize("ranks, precision, tolerance", [(2, "fp64", 1e-9), (4, "fp64", 1e-9), (2, "fp32", 2e-4), (4, "fp32", 2e-4)])
def test_ranks_give_the_losses_and_gradients_of_one_rank(small_corpus: Path, tmp_path: Path, one_rank: dict, ranks: int,
                                                        precision: str, tolerance: float) -> None:
    one, many = one_rank[precision], _run(small_corpus, tmp_path / "out", ranks=ranks, precision=precision)
    assert one["losses"].min() > 0.1
    assert torch.allclose(many["losses"], one["losses"], rtol=tolerance, atol=0)
    largest = max(g.abs().max() for g in one["gradients"].values())
    assert largest > 0.01
    for name, gradient in one["gradients"].items():
        # Some gradients are 0 but for rounding (a key bias moves all logits alike, a last bias cancels in distances):
        # none is held to less than 1e-4 of the largest.
        scale = max(gradient.abs().max(), 1e-4 * largest)
        assert (many["gradients"][name] - gradient).abs().max() <= tolerance * scale, name
    for ours, theirs in zip(many["running"], one["running"]):
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def _train(corpus: Path, out: Path, *extra: str) -> list[dict]:
    # A small learning rate: Adam makes full-size updates of gradients that are rounding noise, and those differ.
    command = [sys.executable, "-P", "-m", "dsengine.cli", "train", "--corpus", str(corpus), "--out", str(out), "--gpus", "0",
               "--batch-size", "16", "--set", "train.precision=fp64", "--set", "train.max_steps=5", "--set", "train.bn_group=4",
               "--set", "train.log_steps=1", "--set", "train.lr=1e-6", *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return read_metrics(out)


def test_a_run_on_two_processes_logs_the_losses_of_a_run_on_one(small_corpus: Path, tmp_path: Path) -> None:
    one = _train(small_corpus, tmp_path / "one")
    two = _train(small_corpus, tmp_path / "two", "--procs", "2")
    assert [r["step"] for r in one] == [r["step"] for r in two] == [1, 2, 3, 4, 5]
    for a, b in zip(one, two):
        assert a["ids_crc"] == b["ids_crc"]
        for key in ("loss", "active", "heldout_loss"):
            assert (key in a) == (key in b)
            if key in a:
                assert abs(a[key] - b[key]) <= 1e-9 * max(1.0, abs(a[key])), key


def test_a_failing_rank_ends_the_run_with_one_line_and_code_1(small_corpus: Path, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(small_corpus, damaged)
    for shard in (damaged / "s2" / "c").rglob("0"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:1000])
    command = [sys.executable, "-P", "-m", "dsengine.cli", "train", "--corpus", str(damaged), "--out", str(tmp_path / "run"),
               "--gpus", "0", "--procs", "2", "--batch-size", "16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("dsengine: rank ") and "s2" in last and "Traceback" not in last


def test_alone_nothing_is_communicated() -> None:
    x = torch.randn(3, 2)
    assert gather_rows(x, None) is x
    kept = x.clone()
    mean_over_ranks_([x], SOLO)
    assert torch.equal(x, kept)
