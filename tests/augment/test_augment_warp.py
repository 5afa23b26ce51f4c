"""Crop-resize, rotation, blur and drawn bands: against the float64 oracle, and against plainer truths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dsengine.augment.apply import Request, augment, band_plan
from dsengine.augment.params import Augment, draw, draw_bands
from dsengine.augment.reference import augment_reference
from dsengine.augment.warp import _theta, apply_warp, draw_warp, window_side
from dsengine.errors import UsageError

PATCH, SIZE = 60, 24
STRONG = Augment(dihedral="independent", jitters=(3, 3), jitter_strength=(0.2, 0.2), crop_area=(0.2, 1.0), rotation=30.0, blur=0.5)


def request(contract, asked: Augment, *, num: int = 6, size: int = SIZE, view: int = 0, pick: int | None = None) -> Request:
    plan = band_plan(contract, None, ("s2", "s1"))
    window, key = window_side(asked, size=size, patch_size=PATCH), dict(view=view, seed=4, epoch=2, ids=np.arange(num))
    draws = draw(asked, size=window, patch_size=PATCH, num_bands=len(plan.names), level=1.0, **key)
    chosen = None if pick is None else draw_bands(pick, num_bands=len(plan.names), **key)
    return Request(plan, draws, window, asked.jitter_space, draw_warp(asked, size=size, window=window, **key), chosen)


@pytest.mark.parametrize("pick", [None, 1, 3])
@pytest.mark.parametrize("absent", [0.0, 0.1])
@pytest.mark.parametrize("asked", [STRONG, replace(STRONG, crop_area=None), replace(STRONG, rotation=0.0, blur=0.0),
                                   Augment(blur=1.0, blur_sigma=(0.5, 3.0)), Augment(rotation=180.0)])
def test_warped_views_equal_the_float64_oracle(make_contract, make_sources, asked, absent, pick):
    sources = make_sources(6, patch_size=PATCH, absent=absent)
    both = [request(make_contract(14, patch_size=PATCH), asked, view=view, pick=pick) for view in range(2)]
    for view, truth in zip(augment(sources, both), augment_reference(sources, both), strict=True):
        assert view.shape == truth.shape == (6, pick or 14, SIZE, SIZE) and view.is_contiguous(memory_format=torch.channels_last)
        # Places are computed in float32: 60 px hold 4e-6 px, and neighbouring random pixels differ by as much as there is.
        assert (view - truth).abs().max() <= 2e-5 * truth.abs().max()


def test_a_crop_of_the_whole_window_is_the_mean_of_two_by_two_pixels():
    whole = Augment(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    x = torch.randn(3, 2, 48, 48)
    warp = draw_warp(whole, view=0, size=SIZE, window=48, seed=0, epoch=0, ids=np.arange(3))
    assert torch.allclose(apply_warp(x, warp), F.avg_pool2d(x, 2), atol=1e-5)
    same = draw_warp(whole, view=0, size=48, window=48, seed=0, epoch=0, ids=np.arange(3))
    assert torch.allclose(apply_warp(x, same), x, atol=1e-5)


@pytest.mark.parametrize("degrees, turns", [(90, 1), (-90, -1), (180, 2)])
def test_a_quarter_turn_of_the_whole_window_is_rot90(degrees: int, turns: int):
    asked = Augment(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), rotation=180.0)
    unit = np.array([[0.5], [0.5], [0.5], [0.5], [(degrees / 180 + 1) / 2]])
    warp = draw_warp(asked, view=0, size=9, window=9, seed=0, epoch=0, ids=np.arange(1))._replace(theta=_theta(asked, unit, size=9, window=9))
    x = torch.randn(1, 2, 9, 9)
    assert torch.allclose(apply_warp(x, warp), torch.rot90(x, turns, dims=(2, 3)), atol=1e-5)


def test_crops_have_the_area_and_ratio_asked_for_and_stay_in_the_window():
    asked, ids = Augment(crop_area=(0.2, 0.5), crop_ratio=(0.5, 2.0)), np.arange(4000)
    theta = draw_warp(asked, view=1, size=SIZE, window=48, seed=9, epoch=3, ids=ids).theta.astype(np.float64)
    height, width = theta[:, 0, 0] * SIZE, theta[:, 1, 1] * SIZE
    share, ratio = height * width / 48**2, width / height
    assert 0.2 <= share.min() + 1e-6 and share.max() <= 0.5 + 1e-6 and abs(share.mean() - 0.35) < 0.01
    assert 0.5 <= ratio.min() + 1e-5 and ratio.max() <= 2 + 1e-5 and abs(np.log(ratio).mean()) < 0.03
    first, last = theta @ [0, 0, 1], theta @ [SIZE - 1, SIZE - 1, 1]
    half = np.stack((height, width), axis=1) / SIZE / 2
    assert (first - half >= -0.5 - 1e-4).all() and (last + half <= 47.5 + 1e-4).all()


def test_half_of_the_views_are_blurred_with_a_sigma_in_range_and_the_others_untouched():
    sigma = draw_warp(Augment(blur=0.5, blur_sigma=(0.1, 2.0)), view=0, size=32, window=32, seed=1, epoch=0, ids=np.arange(4000)).sigma
    blurred = sigma[sigma > 0]
    assert abs(len(blurred) / 4000 - 0.5) < 0.03 and 0.1 <= blurred.min() and blurred.max() < 2.0 and abs(blurred.mean() - 1.05) < 0.03


def test_a_draw_belongs_to_its_sample_and_view_and_not_to_the_batch():
    key = dict(size=SIZE, window=48, seed=1, epoch=2)
    whole = draw_warp(STRONG, view=0, ids=np.arange(8), **key)
    part = draw_warp(STRONG, view=0, ids=np.array([5, 2]), **key)
    assert np.array_equal(part.theta, whole.theta[[5, 2]]) and np.array_equal(part.sigma, whole.sigma[[5, 2]])
    assert not np.array_equal(whole.theta, draw_warp(STRONG, view=1, ids=np.arange(8), **key).theta)
    bands = dict(num_bands=10, seed=1, epoch=2)
    assert np.array_equal(draw_bands(1, view=0, ids=np.array([5, 2]), **bands), draw_bands(1, view=0, ids=np.arange(8), **bands)[[5, 2]])


def test_every_choice_of_bands_is_equally_likely():
    drawn = draw_bands(2, view=0, num_bands=4, seed=3, epoch=0, ids=np.arange(6000))
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert abs(counts - 1000).max() < 120  # 4 standard deviations


def test_without_geometry_nothing_is_drawn_and_the_window_is_the_view():
    assert draw_warp(Augment(), view=0, size=8, window=8, seed=0, epoch=0, ids=np.arange(2)) is None
    assert window_side(Augment(blur=1.0), size=8, patch_size=60) == 8
    assert window_side(Augment(rotation=1.0), size=8, patch_size=60) == 16 and window_side(STRONG, size=48, patch_size=60) == 60


@pytest.mark.parametrize("wrong, message", [(dict(crop_area=(0.0, 1.0)), "crop_area"), (dict(crop_area=(0.5, 1.5)), "crop_area"),
                                            (dict(crop_ratio=(2.0, 1.0)), "crop_ratio"), (dict(rotation=-1.0), "rotation"),
                                            (dict(blur=1.5), "blur"), (dict(blur_sigma=(0.0, 1.0)), "blur_sigma")])
def test_settings_without_meaning_are_refused(wrong: dict, message: str):
    with pytest.raises(UsageError, match=f"^{message}: "):
        Augment(**wrong)
