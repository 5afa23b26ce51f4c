"""Noise on the device of the ids: the words of `dsengine.noise`, and what is made of them."""

import numpy as np
import pytest
import torch

from dsengine import noise as host
from dsengine.nn import noise

IDS = torch.tensor([0, 5, 2**32 - 1, 2**40 + 3])
SITE = noise.key("a site")


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_words_are_those_of_the_host(seed: int, count: int) -> None:
    ours = noise.words(IDS, count, seed=seed, site=SITE, step=2**32 - 2)
    theirs = host.words(seed=seed, site="a site", step=2**32 - 2, ids=IDS.numpy(), blocks=np.arange(3)).reshape(4, -1)[:, :count]
    assert np.array_equal(ours.numpy(), theirs)


def test_uniform_numbers_and_a_steps_integer_are_those_of_the_host() -> None:
    ours = noise.uniform(IDS, 6, seed=3, site=SITE, step=9)
    assert np.array_equal(ours.numpy(), host.uniform(seed=3, site="a site", step=9, ids=IDS.numpy(), count=6))
    steps = range(50)
    assert [noise.integer(13, seed=3, site=SITE, step=k) for k in steps] == [host.integer(13, seed=3, site="a site", step=k) for k in steps]


def test_numbers_below_a_bound_cover_it_evenly() -> None:
    drawn = noise.below(torch.arange(1000), 60, 6, seed=1, site=SITE, step=0)
    counts = torch.bincount(drawn.flatten(), minlength=6)
    assert len(counts) == 6 and (counts - 10000).abs().max() < 500  # 5 standard deviations


def test_normal_numbers_are_normal_and_independent_of_each_other() -> None:
    x = noise.normal(torch.arange(500), 401, seed=1, site=SITE, step=0).double()
    assert x.shape == (500, 401) and abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    grid = torch.linspace(-3, 3, 25, dtype=torch.float64)
    found = (x.flatten()[:, None] < grid).double().mean(0)
    assert (found - torch.distributions.Normal(0.0, 1.0).cdf(grid)).abs().max() < 0.005
    pairs = torch.corrcoef(torch.stack((x[:, 0:400:2].flatten(), x[:, 1:400:2].flatten())))
    assert abs(pairs[0, 1]) < 0.015


def test_compiled_by_inductor_the_words_are_the_same() -> None:
    def draw(ids: torch.Tensor) -> torch.Tensor:
        return noise.words(ids, 16, seed=5, site=SITE, step=3) + 1

    ids = torch.arange(3) * 7 + 2
    assert torch.equal(torch.compile(draw, fullgraph=True)(ids), draw(ids))
    torch.library.opcheck(torch.ops.dsengine.noise_words.default, (ids, 6, 5, SITE, torch.tensor(3)))
