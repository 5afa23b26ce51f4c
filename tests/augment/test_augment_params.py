"""Draws: what they may be, how they are distributed, and that a row depends on its own id alone."""

import numpy as np
import pytest

from dsengine.augment.params import HELDOUT_EPOCH, Augment, Curriculum, Draws, draw
from dsengine.errors import UsageError

FULL = Augment(shift_px=(1, 16), dihedral="independent", jitters=(1, 10), jitter_strength=(0.01, 0.1),
               band_dropout=(0.01, 0.3))
COMMON = dict(view=0, size=128, patch_size=160, num_bands=14, seed=0, epoch=0, level=1.0)


def drawn(augment: Augment = FULL, num: int = 4000, **changes) -> Draws:
    return draw(augment, **({"ids": np.arange(num)} | COMMON | changes))


def assert_same(a: Draws, b: Draws) -> None:
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


def test_a_sample_draws_the_same_in_any_batch_and_order():
    rng = np.random.default_rng(0)
    whole = drawn(num=300)
    some = rng.permutation(300)[:70]
    assert_same(drawn(ids=some), Draws(*(field[some] for field in whole)))


@pytest.mark.parametrize("change", [{"view": 1}, {"seed": 1}, {"epoch": 1}, {"epoch": HELDOUT_EPOCH}])
def test_views_seeds_and_epochs_draw_differently(change):
    a, b = drawn(num=50), drawn(num=50, **change)
    assert all((x != y).any() for x, y in zip(a, b))


def test_more_jitters_keep_the_earlier_ones():
    few, many = (drawn(Augment(jitters=(n, n), jitter_strength=(0.1, 0.1)), num=9) for n in (3, 10))
    np.testing.assert_array_equal(few.triple, many.triple[:, :3])
    np.testing.assert_array_equal(few.factor, many.factor[:, :3])


def test_views_without_shift_share_their_crop_and_shared_dihedral_their_turn():
    still = Augment(dihedral="shared")
    a, b = drawn(still), drawn(still, view=1)
    np.testing.assert_array_equal(a.offset, b.offset)
    np.testing.assert_array_equal(a.code, b.code)
    assert len(np.unique(a.code)) == 8


def test_a_shift_is_at_most_d_and_even_and_stays_inside_the_patch():
    base, moved = drawn(Augment(), patch_size=1000), drawn(Augment(shift_px=(0, 5)), patch_size=1000)
    steps = moved.offset - base.offset
    inside = (base.offset >= 5).all(axis=1) & (base.offset <= 1000 - 128 - 5).all(axis=1)
    assert np.abs(steps).max() == 5
    counts = np.bincount(steps[inside].ravel() + 5)
    assert counts.min() > 0.8 * counts.mean()
    for offset in (moved.offset, drawn().offset, drawn(patch_size=128).offset):
        assert offset.min() >= 0
    assert drawn().offset.max() <= 160 - 128
    assert not drawn(patch_size=128).offset.any()


def test_crops_cover_all_places_evenly():
    counts = np.bincount(drawn(Augment(), num=33 * 1000).offset[:, 0], minlength=33)
    assert len(counts) == 33 and counts.min() > 850 and counts.max() < 1150


def test_triples_are_distinct_and_all_equally_likely():
    triple = drawn(Augment(jitters=(10, 10)), num=3000, num_bands=4).triple.reshape(-1, 3)
    assert all(len(set(row)) == 3 for row in triple.tolist())
    counts = np.bincount(triple @ np.array([16, 4, 1]))
    counts = counts[counts > 0]
    assert len(counts) == 4 * 3 * 2 and counts.min() > 0.9 * counts.mean()


@pytest.mark.parametrize("num_bands, expected", [(1, {(0, 0, 0)}), (2, {(0, 1, 0)})])
def test_fewer_than_three_bands_are_all_jittered(num_bands, expected):
    triple = drawn(Augment(jitters=(2, 2)), num=5, num_bands=num_bands).triple
    assert {tuple(row) for row in triple.reshape(-1, 3).tolist()} == expected


def test_factors_fill_their_ranges_evenly():
    factor = drawn(Augment(jitters=(10, 10), jitter_strength=(0.0, 0.2))).factor.reshape(-1, 4)
    for column, (low, high) in enumerate([(0.8, 1.2)] * 3 + [(-0.2, 0.2)]):
        values = factor[:, column]
        assert low <= values.min() < low + 0.001 and high - 0.001 < values.max() <= high
        counts = np.histogram(values, bins=20, range=(low, high))[0]
        assert counts.min() > 0.9 * counts.mean()
    strong = drawn(Augment(jitters=(1, 1), jitter_strength=(1.0, 1.0))).factor
    assert np.abs(strong[..., 3]).max() <= 0.5 and strong[..., :3].min() >= 0


@pytest.mark.parametrize("probability", [0.3, 0.99, 1.0])
def test_bands_drop_with_their_probability_and_one_always_stays(probability):
    keep = drawn(Augment(band_dropout=(0.0, probability)), num=20000).keep
    assert keep.any(axis=1).all()
    alone = (1 - probability) ** 13  # by how little the band that must stay can raise a band's rate
    expected = 1 - probability + probability**14 / 14
    assert np.allclose(keep.mean(axis=0), expected, atol=0.02 + alone * 1e-3)


def test_levels_between_the_ends_are_rounded_to_whole_jitters_and_pixels():
    assert drawn(level=0.0).triple.shape[1] == 1 and drawn(level=0.5).triple.shape[1] == 6
    assert np.ptp(drawn(level=0.0).factor[..., 0]) == pytest.approx(0.02, abs=1e-3)


def test_the_curriculum_waits_then_ramps_then_stays():
    curriculum = Curriculum(warmup=5, ramp=10)
    assert [curriculum.level(epoch) for epoch in (0, 4, 5, 10, 15, 20)] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert Curriculum().level(0) == 1.0


@pytest.mark.parametrize("field, value, message", [
    ("dihedral", "indep", r"dihedral: 'indep' is unknown, did you mean independent"),
    ("jitter_space", "lab", r"jitter_space: 'lab' is unknown, .*physical, zscore"),
    ("band_dropout", (0.0, 1.5), r"band_dropout: \(0.0, 1.5\) is not legal"),
    ("jitter_strength", (-0.1, 0.1), r"jitter_strength: \(-0.1, 0.1\)"),
    ("shift_px", (0, -1), r"shift_px: \(0, -1\)"),
    ("jitters", (1,), r"jitters: \(1,\)"),
])
def test_an_illegal_setting_is_named(field, value, message):
    with pytest.raises(UsageError, match=message):
        Augment(**{field: value})


@pytest.mark.parametrize("field", ["warmup", "ramp"])
def test_a_negative_curriculum_is_named(field):
    with pytest.raises(UsageError, match=f"curriculum.{field}: -1"):
        Curriculum(**{field: -1})


@pytest.mark.parametrize("size", [0, 161])
def test_a_crop_that_does_not_fit_is_named(size):
    with pytest.raises(UsageError, match=f"size: {size} px .*legal: 1 to 160 px"):
        drawn(size=size)
