"""Crop-resize, rotation and blur of a view: the geometric augmentations of BYOL and SimSiam, drawn here, carried out by `ops.warp`.

The view is cut from a window that all views of a sample share: the square of twice the view's side, or the patch where that is
smaller (crop-resize then never reduces by more than 2, where bilinear sampling is still the mean of the pixels it skips). Of
it the crop takes a share of the area at a drawn ratio of sides and a drawn place, both real numbers; a side that would be
longer than the window's is cut to it (torchvision draws again). A rotation turns the crop about its centre; beyond the
window's edge lies its mirror image. The blur follows, at the view's own scale.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine import noise, ops
from dsengine.augment.params import Augment

_BLOCK = 3 << 16  # Philox blocks of `augment.params` end before it


class Warp(NamedTuple):
    """What happens to the B windows of one view."""

    size: int  # side of the finished view, pixels
    theta: np.ndarray | None  # (B, 2, 3) float32: row and column in the window of output pixel (i, j) are theta @ (i, j, 1)
    sigma: np.ndarray | None  # (B,) float32 pixels; 0: not blurred
    radius: int  # taps of the blur on a side


def window_side(augment: Augment, *, size: int, patch_size: int) -> int:
    """Side of the window that a view of `size` px is cut from."""
    return min(2 * size, patch_size) if augment.moves_pixels else size


def draw_warp(augment: Augment, *, view: int, size: int, window: int, seed: int, epoch: int, ids: np.ndarray) -> Warp | None:
    """Draw view number `view` of samples `ids` (B,); None where nothing moves and nothing is blurred."""
    if not augment.moves_pixels and not augment.blur:
        return None
    bits = noise.words(seed=seed, site=f"augment.view.{view}", step=epoch, ids=ids, blocks=_BLOCK + np.arange(2))
    area, ratio, y, x, angle, blurred, sigma, _ = noise.to_unit(bits.reshape(len(bits), 8)).T
    theta = _theta(augment, np.stack((area, ratio, y, x, angle)), size=size, window=window) if augment.moves_pixels else None
    low, high = augment.blur_sigma
    radius = min(math.ceil(3 * high), size - 1)
    drawn = np.where(blurred < augment.blur, low + (high - low) * sigma, 0).astype(np.float32) if augment.blur else None
    return Warp(size, theta, drawn, radius)


def apply_warp(x: Tensor, warp: Warp) -> Tensor:
    """x (B, C, window, window) as the view (B, C, size, size), same dtype, channels-last."""
    if warp.theta is not None:
        x = ops.warp(x, torch.from_numpy(warp.theta).to(x.device), warp.size, warp.size, border="mirror")
    if warp.sigma is not None:
        x = ops.blur(x, torch.from_numpy(warp.sigma).to(x.device), warp.radius)
    return x


def _theta(augment: Augment, unit: np.ndarray, *, size: int, window: int) -> np.ndarray:
    """(B, 2, 3) float32 from five uniform numbers a sample, (5, B)."""
    area, ratio, y, x, angle = unit
    low, high = augment.crop_area or ((size / window) ** 2,) * 2  # rotation alone keeps the scale
    low_ratio, high_ratio = np.log(augment.crop_ratio) if augment.crop_area else (0.0, 0.0)
    share, aspect = low + (high - low) * area, np.exp(low_ratio + (high_ratio - low_ratio) * ratio)
    height, width = (np.minimum(window * np.sqrt(part), window) for part in (share / aspect, share * aspect))
    turn = np.deg2rad(augment.rotation * (2 * angle - 1))
    # One output pixel down and one to the right, in window pixels; pixel centres lie at whole numbers.
    down = np.stack((np.cos(turn), -np.sin(turn))) * height / size
    right = np.stack((np.sin(turn), np.cos(turn))) * width / size
    centre = np.stack(((window - height) * y + height / 2, (window - width) * x + width / 2)) - 0.5
    corner = centre - (down + right) * (size - 1) / 2
    return np.ascontiguousarray(np.stack((down, right, corner), axis=-1).transpose(1, 0, 2), dtype=np.float32)
