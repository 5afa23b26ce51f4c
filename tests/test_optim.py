"""Optimisers against literal loops and torch's own, their groups, and schedules against torch's."""

import math

import pytest
import torch
from torch import nn

from dsengine.data.sample import Batch
from dsengine.dist import SOLO
from dsengine.engine.optim import LARS_TRUST, groups, learning_rate, make_optimizer, set_learning_rate
from dsengine.engine.settings import TrainConfig
from dsengine.engine.sgd import SGD
from dsengine.engine.step import Step
from dsengine.errors import UsageError
from dsengine.methods import Group


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()


def _steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int = 6) -> list[torch.Tensor]:
    """Parameters after `count` updates on gradients that come with the step, not from the network."""
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
        optimizer.step()
    return [p.detach().clone() for p in network.parameters()]


def _pair() -> tuple[nn.Module, nn.Module]:
    ours, theirs = _network(), _network()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov: bool) -> None:
    ours, theirs = _pair()
    settings = dict(lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=nesterov)
    got = _steps(ours, SGD(ours.parameters(), **settings))
    for a, b in zip(got, _steps(theirs, torch.optim.SGD(theirs.parameters(), **settings))):
        assert torch.allclose(a, b, rtol=1e-12)


def test_lars_is_the_loop_of_its_formula_and_leaves_vectors_plain() -> None:
    network = _network()
    network[0].weight.data[:] = 0.0  # a zero norm is not adapted
    start = [[v.item() for v in p.flatten()] for p in network.parameters()]
    shapes = [p.ndim for p in network.parameters()]
    train = TrainConfig(optimizer="lars", lr=0.5, momentum=0.9, weight_decay=0.02)
    got = _steps(network, make_optimizer(network, train))
    g = torch.Generator().manual_seed(1)
    momenta = [[0.0] * len(values) for values in start]
    for _ in range(6):
        for k, p in enumerate(network.parameters()):
            gradient = torch.randn(p.shape, generator=g, dtype=torch.float64).flatten().tolist()
            if shapes[k] > 1:
                gradient = [d + 0.02 * w for d, w in zip(gradient, start[k])]
                size, length = math.sqrt(sum(w * w for w in start[k])), math.sqrt(sum(d * d for d in gradient))
                trust = LARS_TRUST * size / length if size > 0 and length > 0 else 1.0
                gradient = [trust * d for d in gradient]
            momenta[k] = [0.9 * m + d for m, d in zip(momenta[k], gradient)]
            start[k] = [w - 0.5 * m for w, m in zip(start[k], momenta[k])]
    for p, expected in zip(got, start):
        assert torch.allclose(p.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10)


@pytest.mark.parametrize("name, reference", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_decays_matrices_and_no_vectors(name: str, reference: type) -> None:
    ours, theirs = _pair()
    train = TrainConfig(optimizer=name, lr=0.01, weight_decay=0.1, betas=(0.5, 0.99))
    split = [{"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
             {"params": [p for p in theirs.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    expected = _steps(theirs, reference(split, lr=0.01, betas=(0.5, 0.99)))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(_steps(ours, make_optimizer(ours, train)), expected))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
@pytest.mark.parametrize("good_steps_before", [0, 2])
def test_a_withheld_update_leaves_weights_and_state_bitwise(name: str, good_steps_before: int) -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(batch.views[0]).square().mean()}

    torch.manual_seed(3)
    whole, cut = Squares(), Squares()
    cut.load_state_dict(whole.state_dict())
    train = TrainConfig(optimizer=name, lr=0.1, weight_decay=0.01)
    runs = [Step(method, make_optimizer(method, train), precision="fp32", world=SOLO) for method in (whole, cut)]
    batches = [Batch((torch.randn(2, 4),), torch.arange(2), step=k) for k in range(4)]
    for k, batch in enumerate(batches):
        if k == good_steps_before:
            runs[1](batch._replace(views=(torch.full((2, 4), torch.nan),)), lr=0.1)
            assert runs[1].withheld() == [good_steps_before]
        for run in runs:
            run(batch, lr=0.1)
    assert runs[1].withheld() == []
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters()))


class Headed(nn.Module):
    """A method with a head of its own rate."""

    def __init__(self, params: object = None) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)
        self._params = params or (lambda m: [Group(list(m.body.parameters()), lr_scale=0.1),
                                             Group(list(m.head.parameters()), scheduled=False, decay=False)])

    def param_groups(self) -> list[Group]:
        return self._params(self)


def test_a_methods_groups_have_their_own_rate_schedule_and_decay() -> None:
    method = Headed()
    train = TrainConfig(lr=1.0, weight_decay=0.3, optimizer="lars")
    optimizer = make_optimizer(method, train)
    set_learning_rate(optimizer, 0.5, base=1.0)
    by_name = {name: group for group in optimizer.param_groups for p in group["params"] for name, q in method.named_parameters() if p is q}
    assert [by_name[name]["lr"] for name in ("body.weight", "body.bias", "head.weight", "head.bias")] == [0.05, 0.05, 1.0, 1.0]
    assert [by_name[name]["weight_decay"] for name in ("body.weight", "body.bias", "head.weight")] == [0.3, 0.0, 0.0]
    assert [by_name[name]["eta"] for name in ("body.weight", "body.bias", "head.weight")] == [LARS_TRUST, 0.0, 0.0]
    assert {g["weight_decay"] for g in groups(method, TrainConfig(weight_decay=0.3, decay_vectors=True))} == {0.3, 0.0}


@pytest.mark.parametrize("params, message", [
    (lambda m: [Group(list(m.body.parameters()))], "leaves out trainable parameters: head.weight, head.bias"),
    (lambda m: [Group(list(m.parameters())), Group(list(m.head.parameters()))], "names a parameter twice")])
def test_groups_that_do_not_hold_each_parameter_once_are_refused(params: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        groups(Headed(params), TrainConfig())


@pytest.mark.parametrize("first, mult", [(2, 1), (2, 3), (5, 100)])
def test_restarts_are_those_of_torch(first: int, mult: int) -> None:
    train = TrainConfig(lr=1e-3, min_lr=5e-5, schedule="restarts", restart_epochs=first, restart_mult=mult)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=mult, eta_min=5e-5)
    for step in range(80):  # 8 steps an epoch, followed within the epoch
        if step:
            theirs.step(step / 8)
        assert learning_rate(train, step=step, total=1000, per_epoch=8) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


@pytest.mark.parametrize("settings, message", [(dict(min_lr=1.0), "min_lr=1.0: must be at most lr"), (dict(momentum=1.0), "momentum=1.0"),
                                               (dict(betas=(0.9, 1.0)), r"betas=\(0.9, 1.0\)"), (dict(restart_epochs=0), "restart_epochs=0")])
def test_settings_without_meaning_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**settings)
