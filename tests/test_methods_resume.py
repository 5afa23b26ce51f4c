"""A checkpoint holds all of every method: going on from it is not having stopped, bit for bit."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import CASES, encoder_for, make, make_batch  # noqa: E402

from dsengine.corpus.schema import Band, Contract
from dsengine.dist import SOLO
from dsengine.engine import checkpoint
from dsengine.engine.optim import make_optimizer
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step
from dsengine.methods import Method
from dsengine.nn.norm import set_groups

TOTAL = 5
CONTRACT = Contract(bands=(Band("B02", "s2", "s2", 0, 1),), units=("reflectance",), scale=(1e-4,), offset=(0.0,), mean=(0.1,), std=(0.1,),
                    nodata=-32768, patch_size=16, resolution_m=10.0)


def _fresh(name: str, optimizer: str, seed: int) -> tuple[Method, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    settings = {"tau_schedule": "cosine"} if name == "byol" else {}
    method = make(name, encoder_for(name, normed=True), **settings)
    set_groups(method, 4, 8)
    return method, make_optimizer(method, TrainConfig(optimizer=optimizer, weight_decay=0.01))


def _steps(method: Method, optimizer: torch.optim.Optimizer, start: int, stop: int) -> list[float]:
    step, losses = Step(method, optimizer, precision="fp32", world=SOLO), []
    for k in range(start, stop):
        losses.append(step(make_batch(method, step=k, seed=k), lr=1e-2 / (k + 1))["loss"].item())
        method.after_step((k + 1) / TOTAL)
    return losses


@pytest.mark.parametrize("name, optimizer", [*((name, "adam") for name in CASES), ("byol", "lars"), ("simsiam", "sgd")])
def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_that_did_not_stop(name: str, optimizer: str, tmp_path: Path) -> None:
    whole = _fresh(name, optimizer, seed=1)
    expected = _steps(*whole, 0, TOTAL)
    first = _fresh(name, optimizer, seed=1)
    _steps(*first, 0, 2)
    checkpoint.save(tmp_path, step=2, method=first[0], optimizer=first[1], loader={}, config={}, contract=CONTRACT, keep=2)
    again = _fresh(name, optimizer, seed=99)  # other weights, all of which must be replaced
    checkpoint.restore(checkpoint.latest(tmp_path)[0], *again, torch.device("cpu"))
    assert _steps(*again, 2, TOTAL) == expected[2:]
    for key, value in whole[0].state_dict().items():
        assert torch.equal(again[0].state_dict()[key], value), key
    ours, theirs = again[1].state_dict(), whole[1].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert all(torch.equal(ours["state"][p][k], theirs["state"][p][k]) for p in theirs["state"] for k in theirs["state"][p])
