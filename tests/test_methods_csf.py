"""What is particular to CSF: rolled negatives, cells, the curriculum, the NCE form."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import Tiny, make, make_batch  # noqa: E402

from dsengine.data.sample import Batch
from dsengine.encoders import Features
from dsengine.errors import UsageError
from dsengine.kernels.triplet import reference
from dsengine.noise import integer


def test_compares_the_views_with_rolled_negatives_of_the_step() -> None:
    method = make("csf", margin=0.7, normalize=False)
    batch = make_batch(method)
    shift = 1 + integer(7, seed=5, step=3, site="csf.shift")
    a, p = (method.encoders["all"](view).pooled for view in batch.views)
    expected = reference.triplet(a, p, torch.roll(p, shift, 0), 0.7, "euclidean")
    assert torch.allclose(method(batch)["loss"], expected, rtol=1e-5)


def test_shift_covers_every_legal_value_and_never_zero() -> None:
    from dsengine.methods.csf import _shift

    batch = Batch((), torch.arange(5), seed=0)
    shifts = {_shift(batch._replace(step=step)) for step in range(200)}
    assert shifts == {1, 2, 3, 4}


def test_per_cell_compares_relu_maps_by_l1() -> None:
    method = make("csf", per_cell=True, distance="l1", margin=0.1, normalize=False)
    batch = make_batch(method)
    a, p = (torch.relu(method.encoders["all"](view).dense) for view in batch.views)
    shift = 1 + integer(7, seed=5, step=3, site="csf.shift")
    expected = reference.triplet(a, p, torch.roll(p, shift, 0), 0.1, "l1")
    assert torch.allclose(method(batch)["loss"], expected, rtol=1e-5)


def test_normalised_does_not_depend_on_the_scale_of_the_features() -> None:
    class Scaled(Tiny):
        scale = 1.0

        def forward(self, x: torch.Tensor) -> Features:
            features = super().forward(x)
            return Features(features.pooled * self.scale, features.dense)

    method = make("csf", Scaled())
    batch = make_batch(method)
    first = method(batch)["loss"]
    method.encoders["all"].scale = 100.0
    assert torch.allclose(method(batch)["loss"], first, rtol=1e-4) and 0 < first < 3


def test_views_carry_the_papers_curriculum() -> None:
    first, second = make("csf").views
    assert first.augment.shift_px == (0, 0) and second.augment.shift_px == (1, 16)
    assert first.augment.jitters == (1, 10) and first.augment.band_dropout == (0.01, 0.3)
    levels = [first.augment.curriculum.level(epoch) for epoch in (0, 5, 10, 15, 16, 19, 100)]
    assert levels == [0, 0, 0.5, 1, 1, 1, 1]


def test_nce_is_cross_entropy_of_cosines_in_both_directions() -> None:
    method = make("csf", loss="nce", temperature=0.2)
    batch = make_batch(method)
    z, other = (F.normalize(method.encoders["all"](view).pooled, dim=1) for view in batch.views)
    logits, target = z @ other.T / 0.2, torch.arange(8)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    scores = method(batch)
    assert torch.allclose(scores["loss"], expected, rtol=1e-5) and "active" not in scores


def test_presets_are_the_originals() -> None:
    parity, swope = make("csf", preset="parity").config, make("csf", preset="swope")
    assert (parity.per_cell, parity.distance, parity.margin, parity.normalize) == (True, "l1", 0.1, False)
    assert [swope.views[0].augment.curriculum.level(epoch) * 0.66 for epoch in (0, 4, 8)] == [0, 0.33, 0.66]
    assert swope.views[1].augment.band_dropout == (0.0, 0.66) and swope.config.loss == "nce"


def test_nce_of_cells_or_of_features_as_they_are_is_refused() -> None:
    for wrong in ({"per_cell": True}, {"normalize": False}):
        with pytest.raises(UsageError, match="method.loss=nce: compares pooled, normalised features"):
            make("csf", loss="nce", **wrong)
