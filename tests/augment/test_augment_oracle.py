"""The fused augmentation against the float64 step-by-step oracle, and the oracle against plainer truths."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsengine.augment.apply import Request, affine, augment, band_plan
from dsengine.augment.params import Augment, draw
from dsengine.augment.reference import augment_reference
from dsengine.errors import UsageError

BOUND = 2e-6  # of max |y|, fp32 against float64
PATCH = 60
STRONG = Augment(shift_px=(0, 9), dihedral="independent", jitters=(10, 10), jitter_strength=(0.0, 0.5), band_dropout=(0.0, 0.2))


def requests(contract, *, size: int = 45, augment: Augment = STRONG, num: int = 6, views: int = 2, bands=None) -> list[Request]:
    plan = band_plan(contract, bands, ("s2", "s1"))
    return [Request(plan, draw(augment, view=view, size=size, patch_size=PATCH, num_bands=len(plan.names), seed=4, epoch=2,
                               ids=np.arange(num), level=1.0), size, augment.jitter_space) for view in range(views)]


def assert_within(views, expected, bound: float = BOUND) -> None:
    for view, truth in zip(views, expected, strict=True):
        assert view.shape == truth.shape
        assert (view - truth).abs().max() <= bound * truth.abs().max()


@pytest.mark.parametrize("absent", [0.0, 0.1])
@pytest.mark.parametrize("space", ["zscore", "physical"])
@pytest.mark.parametrize("num_bands, factor", [(1, 1), (2, 1), (5, 1), (14, 1), (14, 2), (5, 3)])
@pytest.mark.parametrize("size", [1, 16, 45])
def test_views_equal_the_oracle(make_contract, make_sources, num_bands, factor, space, absent, size):
    contract = make_contract(num_bands, patch_size=PATCH, factor=factor)
    asked = requests(contract, size=size, augment=replace(STRONG, jitter_space=space))
    sources = make_sources(6, patch_size=PATCH, factor=factor, absent=absent)
    assert_within(augment(sources, asked), augment_reference(sources, asked))


def test_views_equal_the_oracle_for_every_dihedral_code(make_contract, make_sources):
    sources = make_sources(8, patch_size=PATCH)
    plan = band_plan(make_contract(5, patch_size=PATCH), None, ("s2", "s1"))
    draws = draw(STRONG, view=0, size=37, patch_size=PATCH, num_bands=5, seed=0, epoch=0, ids=np.arange(8), level=1.0)
    asked = [Request(plan, draws._replace(code=np.arange(8, dtype=np.int32)), 37)]
    assert_within(augment(sources, asked), augment_reference(sources, asked))


def test_without_augmentation_a_view_is_the_z_scored_crop(make_contract, make_sources):
    contract = make_contract(14, patch_size=PATCH)
    sources = make_sources(2, patch_size=PATCH)
    (request,) = requests(contract, augment=Augment(), num=2, views=1)
    (view,) = augment(sources, [request])
    for row, (y, x) in enumerate(request.draws.offset):
        for band, (name, scale, mean, std) in enumerate(zip(contract.bands, contract.scale, contract.mean, contract.std)):
            raw = sources[0 if name.array == "s2" else 1][row, name.channel, y:y + 45, x:x + 45].double()
            torch.testing.assert_close(view[row, band].double(), (raw * scale - mean) / std, rtol=0, atol=2e-5)


def test_one_jitter_is_torchvisions_arithmetic_without_clamping(make_contract, make_sources):
    """Brightness, contrast and saturation as torchvision defines them, on three bands in physical units."""
    contract = make_contract(3, patch_size=PATCH)
    sources = make_sources(1, patch_size=PATCH)
    (request,) = requests(contract, augment=Augment(jitters=(1, 1), jitter_strength=(0, 0.5), jitter_space="physical"), num=1, views=1)
    brightness, contrast, saturation, _ = request.draws.factor[0, 0]
    request.draws.factor[0, 0, 3] = 0.0
    order, (y, x) = request.draws.triple[0, 0], request.draws.offset[0]
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    p = sources[0][0, order, y:y + 45, x:x + 45].double() * 1e-4 * brightness
    p = contrast * p + (1 - contrast) * (luma * p).sum(0).mean()
    p = saturation * p + (1 - saturation) * (luma * p).sum(0)
    mean, std = (torch.tensor(values, dtype=torch.float64)[order, None, None] for values in (contract.mean, contract.std))
    torch.testing.assert_close(augment(sources, [request])[0][0, order].double(), (p - mean) / std, rtol=0, atol=1e-5)


def test_a_full_turn_of_hue_changes_nothing_and_half_turns_cancel(make_contract, make_sources):
    sources = make_sources(1, patch_size=PATCH)
    (request,) = requests(make_contract(3, patch_size=PATCH), augment=Augment(jitters=(2, 2)), num=1, views=1)
    plain = augment(sources, [request])[0]
    request.draws.triple[0] = (0, 1, 2)
    request.draws.factor[0, :, 3] = 0.5
    torch.testing.assert_close(augment(sources, [request])[0], plain, rtol=0, atol=1e-5)
    request.draws.factor[0, :, 3] = (0.5, 0.0)
    assert not torch.allclose(augment(sources, [request])[0], plain, atol=0.1)


def test_adjustments_commute_so_their_order_need_not_be_drawn():
    """Without clamping; the four adjustments as separate float64 matrices on (pixel, mean)."""
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    grey, cos, sin = np.tile(yiq[0], (3, 1)), np.cos(0.7), np.sin(0.7)
    turn = np.linalg.inv(yiq) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ yiq
    adjustments = [lambda p, m: (1.3 * p, 1.3 * m), lambda p, m: (0.6 * p + 0.4 * grey @ m, 0.6 * m + 0.4 * grey @ m),
                   lambda p, m: (1.4 * p - 0.4 * grey @ p, 1.4 * m - 0.4 * grey @ m), lambda p, m: (turn @ p, turn @ m)]
    outcomes = []
    for order in itertools.permutations(adjustments):
        p, m = np.array([0.3, -1.0, 2.0]), np.array([0.1, 0.5, -0.2])
        for adjust in order:
            p, m = adjust(p, m)
        outcomes.append(p)
    np.testing.assert_allclose(outcomes, [outcomes[0]] * 24, atol=1e-12)


def test_propagated_means_equal_means_measured_after_each_jitter(make_contract, make_sources):
    """Each jitter as a call of its own: the mean that its contrast uses is then measured on its own input."""
    sources = make_sources(1, patch_size=PATCH)
    contract = make_contract(5, patch_size=PATCH)
    (request,) = requests(contract, augment=replace(STRONG, band_dropout=(0.0, 0.0)), num=1, views=1)
    (y, x), plan = request.draws.offset[0], request.plan
    raw = sources[0][0, :5, y:y + 45, x:x + 45].double().numpy()
    value = (raw - plan.raw_mean[:, None, None]) * (plan.scale / plan.std)[:, None, None]
    identity = replace(plan, scale=np.ones(5), offset=np.zeros(5), mean=np.zeros(5), std=np.ones(5))
    for k in range(10):
        one = request.draws._replace(triple=request.draws.triple[:, k:k + 1], factor=request.draws.factor[:, k:k + 1])
        A, T, b = (part[0].double().numpy() for part in affine(identity, one, "zscore"))
        value = np.einsum("ij,jyx->iyx", A, value) + (T @ value.mean((1, 2)) + b)[:, None, None]
    upright = request._replace(draws=request.draws._replace(code=np.zeros(1, dtype=np.int32)))
    np.testing.assert_allclose(augment(sources, [upright])[0][0], value, rtol=0, atol=3e-6 * np.abs(value).max())


def test_dropped_bands_and_pixels_without_data_are_zero(make_contract, make_sources):
    asked = requests(make_contract(14, patch_size=PATCH), augment=replace(STRONG, band_dropout=(0.0, 0.5), dihedral="none"))
    sources = make_sources(6, patch_size=PATCH, absent=0.2)
    for request, view in zip(asked, augment(sources, asked)):
        zero = (view == 0).flatten(2).all(2).numpy()
        np.testing.assert_array_equal(zero, ~request.draws.keep)
        y, x = request.draws.offset[0]
        absent = torch.cat(sources, dim=1)[0, :, y:y + 45, x:x + 45] == -32768
        assert not view[0][absent].any()


def test_a_band_without_any_data_leaves_the_others_finite(make_contract, make_sources):
    asked = requests(make_contract(14, patch_size=PATCH))
    sources = make_sources(6, patch_size=PATCH)
    sources[0][:, 3] = -32768
    views = augment(sources, asked)
    assert all(view.isfinite().all() for view in views)
    assert_within(views, augment_reference(sources, asked))


def test_views_of_other_bands_and_sizes_come_back_in_the_order_asked(make_contract, make_sources):
    contract = make_contract(14, patch_size=PATCH)
    asked = [*requests(contract, views=1), *requests(contract, size=20, views=1, bands=("B1", "B4", "V1")), *requests(contract, views=1)]
    sources = make_sources(6, patch_size=PATCH)
    views = augment(sources, asked)
    assert [tuple(view.shape) for view in views] == [(6, 14, 45, 45), (6, 3, 20, 20), (6, 14, 45, 45)]
    assert_within(views, augment_reference(sources, asked))


@pytest.mark.parametrize("bands, message", [
    (("B1", "B99"), r"bands: 'B99' is not in the corpus, .*legal: B0"), (("B4", "B1"), "must be in corpus order"),
    ((), "must be in corpus order"), (("B1", "B1"), "must be in corpus order")])
def test_a_wrong_choice_of_bands_is_named(make_contract, bands, message):
    with pytest.raises(UsageError, match=message):
        band_plan(make_contract(5, patch_size=PATCH), bands, ("s2",))


def test_a_constant_band_and_an_array_that_is_not_read_are_named(make_contract):
    contract = make_contract(14, patch_size=PATCH)
    with pytest.raises(UsageError, match="V0 lies in array 's1', which is not read: s2"):
        band_plan(contract, None, ("s2",))
    with pytest.raises(UsageError, match="B0 has standard deviation 0.0"):
        band_plan(replace(contract, std=(0.0,) * 14), None, ("s2", "s1"))
