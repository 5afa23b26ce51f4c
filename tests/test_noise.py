"""Philox noise: known answers, and that a draw depends on its own key alone."""

import numpy as np
import pytest

from dsengine import noise
from dsengine.errors import UsageError

# Random123's published known answers for philox4x32-10: (counter, key, result).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert noise.uint32(key, np.array([counter]))[0].tolist() == list(expected)


def test_all_sixty_four_bits_of_an_id_and_all_of_the_key_count():
    base = dict(seed=1, site="a", step=2, ids=np.array([3]), count=4)
    variants = [base, base | {"seed": 2}, base | {"site": "b"}, base | {"step": 3},
                base | {"ids": np.array([4])}, base | {"ids": np.array([3 + (1 << 40)])}]
    rows = {tuple(noise.uniform(**variant)[0]) for variant in variants}
    assert len(rows) == len(variants)


def test_a_sample_draws_the_same_in_any_company():
    ids = np.array([7, 5, 1 << 35, 0])
    together = noise.uniform(seed=9, site="x", step=1, ids=ids, count=11)
    alone = [noise.uniform(seed=9, site="x", step=1, ids=ids[k:k + 1], count=11)[0] for k in range(4)]
    np.testing.assert_array_equal(together, alone)


def test_asking_for_more_numbers_keeps_the_first():
    few, many = (noise.uniform(seed=0, site="x", step=0, ids=np.arange(3), count=count) for count in (5, 50))
    np.testing.assert_array_equal(few, many[:, :5])


def test_uniform_numbers_fill_the_unit_interval_evenly():
    u = noise.uniform(seed=0, site="x", step=0, ids=np.arange(1000), count=100).ravel()
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    # Chi-square with 49 degrees of freedom: 99.9 % quantile 85.4.
    assert ((counts - 2000) ** 2 / 2000).sum() < 85.4


def test_whole_numbers_cover_their_range_and_nothing_else():
    words = noise.words(seed=0, site="x", step=0, ids=np.arange(500), blocks=np.arange(4))
    values = noise.to_range(words, 7)
    assert set(np.unique(values)) == set(range(7))
    assert noise.to_range(np.array([0, 0xFFFFFFFF], dtype=np.uint32), 1 << 32).tolist() == [0, 0xFFFFFFFF]
    assert {noise.integer(3, seed=0, site="x", step=step) for step in range(50)} == {0, 1, 2}


@pytest.mark.parametrize("name, value", [("seed", -1), ("seed", 1 << 32), ("step", -1), ("step", 1 << 32)])
def test_a_seed_or_step_out_of_range_is_named(name, value):
    arguments = dict(seed=0, site="x", step=0, ids=np.arange(1), count=1) | {name: value}
    with pytest.raises(UsageError, match=rf"^{name}: {value} is not legal"):
        noise.uniform(**arguments)
