"""Every method on 2 and 4 ranks, and in several passes, is the method on one rank in one: losses, gradients, weights, statistics, targets in float64."""

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
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """{ranks: {form: {case: results}}}."""
    folder = tmp_path_factory.mktemp("ranks")
    return {ranks: _run(folder / str(ranks), ranks) for ranks in (1, 2, 4)}


# What it is computed by, and what that must equal: (ranks, form) each.
@pytest.mark.parametrize("of, like", [((2, "whole"), (1, "whole")), ((4, "whole"), (1, "whole")),
                                      ((1, "passes"), (1, "whole")), ((2, "passes"), (1, "whole")),
                                      ((2, "global"), (1, "global")), ((4, "global"), (1, "global"))], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_ranks_and_passes_give_the_losses_gradients_and_state_of_one(found: dict, name: str, of: tuple, like: tuple) -> None:
    ours, one = (found[ranks][form][name] for ranks, form in (of, like))
    assert torch.allclose(ours["losses"], one["losses"], rtol=TOLERANCE, atol=TOLERANCE) and one["losses"].abs().max() > 0.01
    largest = max(g.abs().max() for g in one["gradients"].values())
    for key, gradient in one["gradients"].items():
        scale = max(gradient.abs().max(), 1e-4 * largest)
        assert (ours["gradients"][key] - gradient).abs().max() <= TOLERANCE * scale, key
    assert one["state"].keys() == ours["state"].keys()
    for key, value in one["state"].items():
        # Adam makes a full-size update of a gradient that is rounding noise: a bias before a BatchNorm has no other.
        if key.endswith("num_batches_tracked") or _has_gradient(one["gradients"].get(key), largest):
            assert torch.allclose(ours["state"][key], value, rtol=1e-7, atol=TOLERANCE), key


@pytest.mark.parametrize("name", CASES)
def test_several_passes_give_every_scalar_and_picture_of_one(found: dict, name: str) -> None:
    for ranks in (1, 2):
        ours, one = (found[ranks][form][name]["scores"] for form in ("passes", "whole"))
        assert ours.keys() == one.keys() and len(one) > 1
        # Features may hold a bias that a head's BatchNorm takes off again: Adam has moved it along rounding noise.
        assert all(torch.allclose(ours[key], value, rtol=1e-6, atol=1e-7) for key, value in one.items())


@pytest.mark.parametrize("name", CASES)
def test_groups_matter_where_there_are_norms(found: dict, name: str) -> None:
    losses = [found[1][form][name]["losses"] for form in ("whole", "global")]
    has_norms = any("running_mean" in key for key in found[1]["whole"][name]["state"])
    assert has_norms != torch.allclose(*losses, rtol=1e-6)


def _has_gradient(gradient: torch.Tensor | None, largest: torch.Tensor) -> bool:
    return gradient is None or bool(gradient.abs().max() > 1e-6 * largest)
