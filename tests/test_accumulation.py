"""`train.micro_batch`: which methods and numbers it takes, and what it leaves as it was. That passes equal the whole batch: test_methods_ranks.py."""

from pathlib import Path

import pytest
import torch
from torch import nn

import dsengine
from dsengine import config as configuration
from dsengine.data.sample import Batch, View
from dsengine.dist import SOLO
from dsengine.engine import plan
from dsengine.engine.log import read_metrics
from dsengine.engine.micro import InPasses, split
from dsengine.engine.optim import make_optimizer
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step
from dsengine.errors import UsageError
from dsengine.methods import Method
from dsengine.nn.norm import GroupedBatchNorm2d, running_statistics, set_groups


class Whole(Method):
    """Written by a user in one piece: mean((w x)^2), besides a scalar and a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.views, self.encoders, self.layer = (View(),), nn.ModuleDict(), nn.Conv2d(2, 3, 1)
        self.norm = GroupedBatchNorm2d(3)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        (x,) = batch.views
        # Twice, so that one pass makes two updates of the running statistics.
        y = self.norm(self.norm(self.layer(x), relu=True))
        return {"loss": (y.square().mean((1, 2, 3)) * (1 + batch.sample_id)).mean(), "level": y.detach().mean(), "picture": x.detach()[:2]}


class Mean(Whole):
    mean_over_samples = True


def _batch(rows: int = 12, label: bool = False) -> Batch:
    g = torch.Generator().manual_seed(1)
    return Batch((torch.randn(rows, 2, 4, 4, generator=g, dtype=torch.float64),), torch.arange(rows), torch.arange(rows) if label else None)


def _step(method: nn.Module, micro_batch: int | None) -> Step:
    set_groups(method, 2, micro_batch or 12)
    return Step(method, make_optimizer(method, TrainConfig(optimizer="sgd")), precision="fp64", world=SOLO, micro_batch=micro_batch)


@pytest.mark.parametrize("micro_batch", [2, 4, 6, 12])
def test_a_users_mean_over_samples_is_summed_over_passes(micro_batch: int) -> None:
    torch.manual_seed(0)
    whole, parts = Mean().double(), Mean().double()
    parts.load_state_dict(whole.state_dict())
    with torch.no_grad():  # statistics that are not those of a fresh norm
        for method in (whole, parts):
            method.norm.running_mean.fill_(0.3)
    for _ in range(2):
        one, many = (_step(method, size)(_batch(), lr=0.1) for method, size in ((whole, None), (parts, micro_batch)))
    assert one.keys() == many.keys() and all(torch.allclose(one[key], many[key], rtol=1e-12) for key in one)
    for key, value in whole.state_dict().items():
        assert torch.allclose(value.double(), parts.state_dict()[key].double(), rtol=1e-12), key
    assert whole.norm.num_batches_tracked == 4  # two a step
    assert not torch.allclose(running_statistics(parts)[0], torch.full((3,), 0.3, dtype=torch.float64))


def test_a_method_in_one_piece_is_told_what_to_add() -> None:
    with pytest.raises(UsageError, match=r"train.micro_batch=4: Whole defines forward alone; legal: leave it out, define embed and score instead, "
                                         r"or mean_over_samples = True where the loss is a mean over samples"):
        _step(Whole().double(), 4)


def test_a_method_with_embed_and_no_score_says_so() -> None:
    class Half(Method):
        def embed(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {}

    with pytest.raises(NotImplementedError, match="Half must define score"):
        Half()(_batch())


def test_parts_are_in_order_and_hold_views_ids_and_labels() -> None:
    batch = _batch(label=True)
    parts = split(batch, 4)
    assert [len(part.sample_id) for part in parts] == [4, 4, 4]
    for name in ("sample_id", "label"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([part.views[0] for part in parts]), batch.views[0])


@pytest.mark.parametrize("poisoned", [0, 5])
def test_a_pass_that_is_not_finite_withholds_the_step(poisoned: int) -> None:
    torch.manual_seed(0)
    method = Mean().double()
    step = _step(method, 4)
    step(_batch(), lr=0.1)
    before = {key: value.clone() for key, value in method.state_dict().items() if "running" not in key}
    batch = _batch()
    batch.views[0][poisoned, 0, 0, 0] = float("nan")
    step(batch._replace(step=7), lr=0.1)
    assert step.withheld() == [7]
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items() if key in before and "num_batches" not in key)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


def test_memory_of_activations_is_that_of_a_part() -> None:
    class Watched(nn.Module):
        """Counts the samples whose activations are held for a backward pass."""

        dim = 3

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.held, self.most = nn.Conv2d(14, 3, 1), 0, 0

        def forward(self, x: torch.Tensor) -> "dsengine.encoders.Features":
            from dsengine.encoders import Features

            y = self.conv(x)
            if y.requires_grad:
                self.held += len(x)
                self.most = max(self.most, self.held)
                y.register_hook(lambda grad: setattr(self, "held", self.held - len(x)))
            return Features(y.mean((2, 3)), y)

    encoder = Watched()
    method = dsengine.build_method("csf", encoder=encoder)
    passes = InPasses(method, size=3, precision="fp32", world=SOLO)
    views = tuple(torch.randn(12, 14, 4, 4) for _ in range(2))
    passes(Batch(views, torch.arange(12)), backward=lambda loss: loss.backward())
    assert encoder.most == 2 * 3 and encoder.held == 0


def _complete(small_corpus: Path, ranks: int = 1, **train: object) -> TrainConfig:
    config = configuration.resolve({"corpus": str(small_corpus), "train": {"batch_size": 24, **train}})
    return plan.complete(config, dsengine.open_corpus(small_corpus), ranks=ranks, device=torch.device("cpu")).train


@pytest.mark.parametrize("ranks, train, message", [
    (1, dict(micro_batch=5), r"train.micro_batch=5: each rank's 24 samples must be whole micro-batches; legal: 1, 2, 3, 4, 6, 8, 12, 24"),
    (2, dict(micro_batch=24), r"train.micro_batch=24: each rank's 12 samples .* legal: 1, 2, 3, 4, 6, 12"),
    (1, dict(micro_batch=6, bn_group=4), r"train.bn_group=4: a micro-batch of 6 .* legal: 1, 2, 3, 6, or, with 4, train.micro_batch=4 or 8 or 12 or 24"),
    (1, dict(micro_batch=6, bn_group="global"), r"micro_batch=6: bn_group=global needs every sample in one pass"),
    (1, dict(bn_group="globe"), r"train.bn_group must be int, got 'globe'; or global"),
    (1, dict(micro_batch=0), r"train.micro_batch=0: must be at least 1")])
def test_numbers_that_do_not_fit_are_refused_with_those_that_do(small_corpus: Path, ranks: int, train: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _complete(small_corpus, ranks, **train)


def test_groups_follow_the_micro_batch_unless_they_are_given(small_corpus: Path) -> None:
    assert _complete(small_corpus, micro_batch=6).bn_group == 6
    assert _complete(small_corpus, micro_batch=6, bn_group=3).bn_group == 3
    assert _complete(small_corpus, bn_group="global").bn_group == "global"


def test_a_run_in_passes_logs_what_a_run_in_one_logs(small_corpus: Path, tmp_path: Path) -> None:
    common = {"corpus": str(small_corpus), "device": {"gpus": 0}, "encoder": {"name": "resnet18"}, "data": {"size": 16}}
    train = {"precision": "fp64", "batch_size": 24, "bn_group": 6, "max_steps": 2, "log_steps": 1, "lr": 1e-6}
    for name, extra in (("whole", {}), ("passes", {"micro_batch": 6})):
        dsengine.train(**common, out=str(tmp_path / name), train={**train, **extra})
    whole, passes = (read_metrics(tmp_path / name) for name in ("whole", "passes"))
    assert len(whole) == 2
    for one, many in zip(whole, passes):
        for key in ("loss", "active", "feature_std", "feature_rank"):
            assert many[key] == pytest.approx(one[key], rel=1e-9)
    assert passes[-1]["heldout_loss"] == pytest.approx(whole[-1]["heldout_loss"], rel=1e-7)
