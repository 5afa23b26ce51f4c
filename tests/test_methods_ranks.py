"""Every method on two ranks is the method on one: losses, gradients, weights, statistics and targets, after some steps in float64."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import CASES  # noqa: E402

WORKER = Path(__file__).parent / "workers" / "method_ranks.py"
TOLERANCE = 1e-9


def _run(out: Path, ranks: int) -> dict:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        processes.append(subprocess.Popen([sys.executable, "-P", str(WORKER), str(out)], env=environment, stderr=subprocess.PIPE, text=True))
    errors = [p.communicate(timeout=300)[1] for p in processes]
    assert all(p.returncode == 0 for p in processes), errors
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    return _run(folder / "one", 1), _run(folder / "two", 2)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_losses_gradients_and_state_of_one(one_and_two: tuple[dict, dict], name: str) -> None:
    one, two = (found[name] for found in one_and_two)
    assert torch.allclose(two["losses"], one["losses"], rtol=TOLERANCE, atol=TOLERANCE) and one["losses"].abs().max() > 0.01
    largest = max(g.abs().max() for g in one["gradients"].values())
    for key, gradient in one["gradients"].items():
        scale = max(gradient.abs().max(), 1e-4 * largest)
        assert (two["gradients"][key] - gradient).abs().max() <= TOLERANCE * scale, key
    assert one["state"].keys() == two["state"].keys()
    for key, value in one["state"].items():
        # Adam makes a full-size update of a gradient that is rounding noise: a bias before a BatchNorm has no other.
        if key.endswith("num_batches_tracked") or _has_gradient(one["gradients"].get(key), largest):
            assert torch.allclose(two["state"][key], value, rtol=1e-7, atol=TOLERANCE), key


def _has_gradient(gradient: torch.Tensor | None, largest: torch.Tensor) -> bool:
    return gradient is None or bool(gradient.abs().max() > 1e-6 * largest)
