"""One training step: precision, gating of non-finite updates, learning rate."""

import math

import pytest
import torch
from torch import nn

from dsengine.data.sample import Batch
from dsengine.dist import SOLO
from dsengine.engine.optim import learning_rate, make_optimizer
from dsengine.engine.precision import place
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step


class Linear(nn.Module):
    """loss = mean((w x)^2), one view."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1, bias=False)
        self.seen: list[torch.dtype] = []

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        y = self.layer(batch.views[0])
        self.seen.append(y.dtype)
        return {"loss": y.float().square().mean() if y.dtype != torch.float64 else y.square().mean()}


def _step(precision: str = "fp32") -> tuple[Linear, Step]:
    method = place(Linear(), precision, torch.device("cpu"))
    return method, Step(method, make_optimizer(method, TrainConfig(lr=0.1)), precision=precision, world=SOLO)


def _batch(value: float = 1.0, step: int = 0) -> Batch:
    return Batch((torch.full((2, 4), value),), torch.arange(2), step=step)


def test_a_step_is_adam_at_the_given_learning_rate() -> None:
    method, step = _step()
    before = method.layer.weight.detach().clone()
    step(_batch(), lr=0.01)
    # Adam's first update is lr times the gradient's sign, up to eps.
    assert torch.allclose((before - method.layer.weight).abs(), torch.full((1, 4), 0.01), rtol=1e-4)


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp64", torch.float64)])
def test_forward_runs_in_the_precision_and_parameters_stay_at_least_fp32(precision: str, dtype: torch.dtype) -> None:
    method, step = _step(precision)
    loss = step(_batch(), lr=0.1)["loss"]
    assert method.seen == [dtype]
    assert method.layer.weight.dtype == (torch.float64 if precision == "fp64" else torch.float32)
    assert loss.dtype == method.layer.weight.dtype and not loss.requires_grad


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_step_leaves_weights_and_optimiser_as_they_were_and_is_remembered(poison: float) -> None:
    method, step = _step()
    step(_batch(step=0), lr=0.1)
    weight = method.layer.weight.detach().clone()
    state = {k: v.clone() for k, v in step.optimizer.state[method.layer.weight].items()}
    step(_batch(poison, step=1), lr=0.1)
    assert torch.equal(method.layer.weight, weight)
    assert all(torch.equal(v, state[k]) for k, v in step.optimizer.state[method.layer.weight].items())
    step(_batch(poison, step=2), lr=0.1)
    assert step.withheld() == [1, 2] and step.withheld() == []
    step(_batch(step=3), lr=0.1)
    assert not torch.equal(method.layer.weight, weight)


def test_an_infinite_loss_with_finite_gradients_is_withheld_too() -> None:
    class Hidden(Linear):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(batch)["loss"] + float("inf")}

    method = Hidden()
    step = Step(method, make_optimizer(method, TrainConfig(lr=0.1)), precision="fp32", world=SOLO)
    weight = method.layer.weight.detach().clone()
    step(_batch(step=4), lr=0.1)
    assert torch.equal(method.layer.weight, weight) and step.withheld() == [4]


def test_learning_rate_is_a_pure_function_of_the_step() -> None:
    constant = TrainConfig(lr=1.0)
    assert {learning_rate(constant, step=s, total=10) for s in range(10)} == {1.0}
    cosine = TrainConfig(lr=1.0, schedule="cosine", warmup_steps=2)
    got = [learning_rate(cosine, step=s, total=10) for s in range(10)]
    assert got[:2] == [0.5, 1.0]
    assert got[2:] == [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
