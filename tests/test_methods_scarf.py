"""SCARF's corruption: how many cells, from where, and that the batch stays as it is."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import make, make_batch  # noqa: E402

from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError
from dsengine.methods.scarf import corrupt


def _batch(rows: int, *shape: int, step: int = 1) -> Batch:
    """Rows, and beside each what the loader drew from the marginals: other numbers."""
    return Batch((torch.randn(rows, *shape), 100 + torch.randn(rows, *shape)), torch.arange(rows) * 3, seed=7, step=step)


@pytest.mark.parametrize("shape", [(12,), (36,), (10, 12)])
@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_views_are_two_tensors_that_differ_in_the_rate_asked_for(shape: tuple[int, ...], rate: float) -> None:
    batch = _batch(2048, *shape)
    kept = [x.clone() for x in batch.views]
    other = corrupt(batch, rate)
    assert other.data_ptr() not in [x.data_ptr() for x in batch.views] and all(torch.equal(x, y) for x, y in zip(batch.views, kept))
    changed = other != batch.views[0]
    assert torch.equal(other[changed], batch.views[1][changed])
    assert abs(changed.double().mean().item() - rate) < 0.02
    assert (changed.flatten(1).double().mean(0) - rate).abs().max() < 0.06  # of every cell alike


def test_every_sample_has_a_mask_of_its_own() -> None:
    batch = _batch(512, 12)
    masks = {tuple(row) for row in (corrupt(batch, 0.6) != batch.views[0]).tolist()}
    assert len(masks) > 450


def test_missing_dates_stay_missing_and_none_goes_missing_and_the_rate_is_of_the_others() -> None:
    batch = _batch(2048, 10, 12)
    x, drawn = batch.views
    x[torch.rand(2048, 10) < 0.3] = torch.nan
    drawn[torch.rand(drawn.shape) < 0.01] = torch.nan  # where the loader found no donor
    other = corrupt(batch, 0.6)
    assert torch.equal(other.isnan(), x.isnan())
    there = ~x.isnan() & ~drawn.isnan()
    assert abs((other != x)[there].double().mean().item() - 0.6) < 0.01
    assert torch.equal(other[~there].nan_to_num(9), x[~there].nan_to_num(9))


def test_a_corruption_belongs_to_sample_and_step_and_not_to_the_place_in_the_batch() -> None:
    batch = _batch(64, 12)
    other = corrupt(batch, 0.5)
    flipped = batch._replace(sample_id=batch.sample_id.flip(0), views=tuple(x.flip(0) for x in batch.views))
    assert torch.equal(corrupt(flipped, 0.5).flip(0), other)
    mask = other != batch.views[0]
    assert ((corrupt(batch._replace(step=2), 0.5) != batch.views[0]) == mask).double().mean() < 0.6


def test_it_asks_for_the_marginals_of_what_it_looks_at() -> None:
    method = make("scarf", sensor="s2")
    assert method.views == (View(sensor="s2"), View(sensor="s2", of="marginals"))


def test_the_loss_is_nt_xent_of_a_row_and_its_corruption() -> None:
    method = make("scarf", temperature=0.5).double()
    batch = make_batch(method, rows=5)
    batch = batch._replace(views=tuple(view.double() for view in batch.views))
    x = torch.cat((batch.views[0], corrupt(batch, 0.6)))
    z = torch.nn.functional.normalize(method.projector(method.encoders["all"](x).pooled), dim=1).tolist()
    dot = lambda a, b: sum(p * q for p, q in zip(a, b)) / 0.5  # noqa: E731
    losses = [math.log(sum(math.exp(dot(z[i], z[j])) for j in range(10) if j != i)) - dot(z[i], z[(i + 5) % 10]) for i in range(10)]
    assert math.isclose(method(batch)["loss"].item(), sum(losses) / 10, rel_tol=1e-10)


@pytest.mark.parametrize("wrong", [dict(rate=0.0), dict(rate=1.0), dict(temperature=0.0)])
def test_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=f"method.{next(iter(wrong))}="):
        make("scarf", **wrong)
