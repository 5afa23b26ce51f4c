"""Methods: one contract for all, and what is particular to CSF."""

import pytest
import torch
from torch import nn

import dsengine
from dsengine import plugin
from dsengine.data.sample import Batch, sized
from dsengine.encoders import Features
from dsengine.errors import UsageError
from dsengine.kernels.triplet import reference
from dsengine.methods import Method
from dsengine.noise import integer

METHODS = plugin.names("dsengine.methods")


class Tiny(nn.Module):
    """An encoder small enough to compile in a second."""

    dim = 6

    def __init__(self, channels: int = 14) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, self.dim, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> Features:
        dense = self.conv(x)
        return Features(dense.mean((2, 3)), dense)


def _batch(method: Method, rows: int = 8, channels: int = 14, step: int = 3) -> Batch:
    views = tuple(torch.randn(rows, channels, view.size, view.size) for view in sized(method.views, 16))
    return Batch(views, torch.arange(rows), seed=5, step=step)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_meets_the_contract(name: str) -> None:
    method = dsengine.build_method(name, encoder=Tiny())
    assert method.views and all(view.size is None or view.size > 0 for view in method.views)
    scores = method(_batch(method))
    assert scores["loss"].shape == () and scores["loss"].dtype == torch.float32 and torch.isfinite(scores["loss"])
    assert all(value.numel() == 1 and not value.requires_grad for key, value in scores.items() if key != "loss")
    scores["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    method.after_step(0.5)
    again = dsengine.build_method(name, encoder=Tiny())
    again.load_state_dict(method.state_dict(), strict=True)
    batch = _batch(method)
    assert torch.equal(again(batch)["loss"], method(batch)["loss"])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_overfits_one_batch(name: str) -> None:
    method = dsengine.build_method(name, encoder=Tiny())
    batch, optimizer = _batch(method), torch.optim.Adam(method.parameters(), 0.02)
    first = last = method(batch)["loss"].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = method(batch)["loss"]
        loss.backward()
        optimizer.step()
        last = loss.item()
    assert last < 0.5 * first


def test_csf_compares_the_views_with_rolled_negatives_of_the_step() -> None:
    method = dsengine.build_method("csf", encoder=Tiny(), margin=0.7, normalize=False)
    batch = _batch(method)
    shift = 1 + integer(7, seed=5, step=3, site="csf.shift")
    a, p = (method.encoders["all"](view).pooled for view in batch.views)
    expected = reference.triplet(a, p, torch.roll(p, shift, 0), 0.7, "euclidean")
    assert torch.allclose(method(batch)["loss"], expected, rtol=1e-5)


def test_csf_shift_covers_every_legal_value_and_never_zero() -> None:
    from dsengine.methods.csf import _shift

    batch = Batch((), torch.arange(5), seed=0)
    shifts = {_shift(batch._replace(step=step)) for step in range(200)}
    assert shifts == {1, 2, 3, 4}


def test_csf_per_cell_compares_relu_maps_by_l1() -> None:
    method = dsengine.build_method("csf", encoder=Tiny(), per_cell=True, distance="l1", margin=0.1, normalize=False)
    batch = _batch(method)
    a, p = (torch.relu(method.encoders["all"](view).dense) for view in batch.views)
    shift = 1 + integer(7, seed=5, step=3, site="csf.shift")
    expected = reference.triplet(a, p, torch.roll(p, shift, 0), 0.1, "l1")
    assert torch.allclose(method(batch)["loss"], expected, rtol=1e-5)


def test_csf_normalised_does_not_depend_on_the_scale_of_the_features() -> None:
    class Scaled(Tiny):
        scale = 1.0

        def forward(self, x: torch.Tensor) -> Features:
            features = super().forward(x)
            return Features(features.pooled * self.scale, features.dense)

    method = dsengine.build_method("csf", encoder=Scaled(), normalize=True)
    batch = _batch(method)
    first = method(batch)["loss"]
    method.encoders["all"].scale = 100.0
    assert torch.allclose(method(batch)["loss"], first, rtol=1e-4) and 0 < first < 3


def test_csf_reports_collapse_as_a_feature_std_near_zero() -> None:
    class Constant(Tiny):
        def forward(self, x: torch.Tensor) -> Features:
            features = super().forward(x)
            return Features(features.pooled * 0 + 1, features.dense)

    collapsed = dsengine.build_method("csf", encoder=Constant())
    healthy = dsengine.build_method("csf", encoder=Tiny())
    assert collapsed(_batch(collapsed))["feature_std"] < 1e-6
    assert healthy(_batch(healthy))["feature_std"] > 0.2


def test_csf_views_carry_the_papers_curriculum() -> None:
    first, second = dsengine.build_method("csf", encoder=Tiny()).views
    assert first.augment.shift_px == (0, 0) and second.augment.shift_px == (1, 16)
    assert first.augment.jitters == (1, 10) and first.augment.band_dropout == (0.01, 0.3)
    levels = [first.augment.curriculum.level(epoch) for epoch in (0, 5, 10, 15, 16, 19, 100)]
    assert levels == [0, 0, 0.5, 1, 1, 1, 1]


def test_wrong_encoders_are_refused() -> None:
    with pytest.raises(UsageError, match="either encoder .* or encoders"):
        dsengine.build_method("csf")
    with pytest.raises(UsageError, match="one encoder for all bands, got 2: s1, s2"):
        dsengine.build_method("csf", encoders={"s1": Tiny(2), "s2": Tiny(12)})
    with pytest.raises(UsageError, match="method 'cfs' is unknown; did you mean csf"):
        dsengine.build_method("cfs", encoder=Tiny())
    with pytest.raises(UsageError, match="method.marign is not a setting; did you mean margin"):
        dsengine.build_method("csf", encoder=Tiny(), marign=1)
