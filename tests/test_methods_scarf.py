"""SCARF's corruption: how many cells, from where, and that the batch stays as it is."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import make, make_batch  # noqa: E402

from dsengine.data.sample import Batch
from dsengine.errors import UsageError
from dsengine.methods.scarf import corrupt


def _batch(rows: int, *shape: int, step: int = 1) -> Batch:
    return Batch((torch.randn(rows, *shape),), torch.arange(rows) * 3, seed=7, step=step)


@pytest.mark.parametrize("shape", [(12,), (36,), (10, 12)])
@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_views_are_two_tensors_that_differ_in_the_rate_asked_for(shape: tuple[int, ...], rate: float) -> None:
    batch = _batch(2048, *shape)
    kept = batch.views[0].clone()
    other = corrupt(batch, rate)
    assert other.data_ptr() != batch.views[0].data_ptr() and torch.equal(batch.views[0], kept)
    # A cell that draws its own row stays as it was: one in 2048.
    assert abs((other != batch.views[0]).double().mean().item() - rate * (1 - 1 / 2048)) < 0.02
    shares = (other != batch.views[0]).flatten(1).double().mean(0)
    assert (shares - rate).abs().max() < 0.06  # of every cell alike


def test_every_sample_has_a_mask_of_its_own_and_every_cell_a_row_of_its_own() -> None:
    batch = _batch(512, 12)
    other = corrupt(batch, 0.6)
    masks = {tuple(row) for row in (other != batch.views[0]).tolist()}
    assert len(masks) > 450
    column = {value: row for row, value in enumerate(batch.views[0][:, 3].tolist())}
    sources = [column[value] for value in other[:, 3].tolist()]  # each value is one of its own column
    moved = [source for row, source in enumerate(sources) if source != row]
    assert len(set(moved)) > 150


def test_a_corruption_belongs_to_sample_and_step_and_not_to_the_place_in_the_batch() -> None:
    batch = _batch(64, 12)
    mask = corrupt(batch, 0.5) != batch.views[0]
    flipped = batch._replace(sample_id=batch.sample_id.flip(0), views=(batch.views[0].flip(0),))
    other = corrupt(flipped, 0.5) != flipped.views[0]
    assert (other.flip(0) == mask).double().mean() > 0.95  # rows drawn by number may be the row itself in one order
    assert ((corrupt(batch._replace(step=2), 0.5) != batch.views[0]) == mask).double().mean() < 0.6


def test_the_loss_is_nt_xent_of_a_row_and_its_corruption() -> None:
    method = make("scarf", temperature=0.5).double()
    batch = make_batch(method, rows=5)
    batch = batch._replace(views=(batch.views[0].double(),))
    x = torch.cat((batch.views[0], corrupt(batch, 0.6)))
    z = torch.nn.functional.normalize(method.projector(method.encoders["all"](x).pooled), dim=1).tolist()
    dot = lambda a, b: sum(p * q for p, q in zip(a, b)) / 0.5  # noqa: E731
    losses = [math.log(sum(math.exp(dot(z[i], z[j])) for j in range(10) if j != i)) - dot(z[i], z[(i + 5) % 10]) for i in range(10)]
    assert math.isclose(method(batch)["loss"].item(), sum(losses) / 10, rel_tol=1e-10)


@pytest.mark.parametrize("wrong", [dict(rate=0.0), dict(rate=1.0), dict(temperature=0.0)])
def test_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=f"method.{next(iter(wrong))}="):
        make("scarf", **wrong)
