"""What may happen to a view (`Augment`, data) and what happens to it (`Draws`, counter-based)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dsengine import noise
from dsengine.errors import UsageError, nearest

HELDOUT_EPOCH = 0xFFFFFFFF  # the epoch of fixed held-out views; a training run never gets there

# Philox blocks of one view (see noise.words): where each kind of draw starts, so that none moves when another grows.
_PLACE_BLOCK = 0
_JITTER_BLOCK = 1 << 16
_DROPOUT_BLOCK = 2 << 16


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Strength as a function of the epoch: level 0 for `warmup` epochs, linear to 1 over `ramp`, then 1."""

    warmup: int = 0  # epochs
    ramp: int = 0  # epochs; 0 is full strength at once after the warm-up

    def __post_init__(self) -> None:
        for name, value in (("warmup", self.warmup), ("ramp", self.ramp)):
            if value < 0:
                raise UsageError(f"curriculum.{name}: {value} is not legal, it must be 0 or more epochs")

    def level(self, epoch: int) -> float:
        """Level in [0, 1] of `epoch`, counted from 0."""
        if epoch < self.warmup:
            return 0.0
        return 1.0 if self.ramp == 0 else min(1.0, (epoch - self.warmup) / self.ramp)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """One view's augmentation. Each pair is (value at curriculum level 0, value at level 1)."""

    shift_px: tuple[int, int] = (0, 0)  # uniform in [-d, d] per axis, against the sample's shared crop
    dihedral: str = "none"  # none | shared (one of 8 for all views of the sample) | independent
    jitters: tuple[int, int] = (0, 0)  # number of colour jitters, each on a random triple of bands
    jitter_strength: tuple[float, float] = (0.0, 0.0)  # brightness, contrast, saturation, hue alike
    band_dropout: tuple[float, float] = (0.0, 0.0)  # probability per band; at least one band stays
    jitter_space: str = "zscore"  # zscore | physical
    # What follows is no pair of levels and takes no part in the curriculum (`augment.warp`).
    crop_area: tuple[float, float] | None = None  # crop-resize: the crop's share of the window; None: no crop-resize
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width to height of that crop, uniform in the logarithm
    rotation: float = 0.0  # degrees, uniform in [-rotation, rotation]
    blur: float = 0.0  # probability of a Gaussian blur
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the finished view, uniform
    curriculum: Curriculum = Curriculum()

    def __post_init__(self) -> None:
        _check_pair("shift_px", self.shift_px, 2**15)
        _check_pair("jitters", self.jitters, 2**14)
        _check_pair("jitter_strength", self.jitter_strength, 1.0)
        _check_pair("band_dropout", self.band_dropout, 1.0)
        _check_name("dihedral", self.dihedral, ("none", "shared", "independent"))
        _check_name("jitter_space", self.jitter_space, ("zscore", "physical"))
        _check_range("crop_area", self.crop_area or (1.0, 1.0), 1.0)
        _check_range("crop_ratio", self.crop_ratio, 100.0)
        _check_range("blur_sigma", self.blur_sigma, 20.0)
        for name, value, largest in (("rotation", self.rotation, 180.0), ("blur", self.blur, 1.0)):
            if not 0 <= value <= largest:
                raise UsageError(f"{name}: {value} is not legal, it must be in [0, {largest}]")

    @property
    def moves_pixels(self) -> bool:
        """Whether the view is resampled, so that it has to be cut from a larger window."""
        return self.crop_area is not None or self.rotation > 0


class Draws(NamedTuple):
    """What happens to the B samples of one view; K jitters, C bands.

    There is no order of the four adjustments of a jitter: without clamping they commute (see augment.apply).
    """

    offset: np.ndarray  # (B, 2) int32 y, x of the crop's upper-left corner on the finest grid
    code: np.ndarray  # (B,) int32 0..7: code & 3 quarter turns (torch.rot90), then code & 4: mirrored in x
    triple: np.ndarray  # (B, K, 3) int64 bands; distinct when there are at least 3
    factor: np.ndarray  # (B, K, 4) float64 brightness, contrast, saturation in [1-s, 1+s], hue in cycles
    keep: np.ndarray  # (B, C) bool


def draw(augment: Augment, *, view: int, size: int, patch_size: int, num_bands: int, seed: int, epoch: int,
         ids: np.ndarray, level: float) -> Draws:
    """Draw view number `view` of the samples `ids` (B,) at curriculum `level`; each row depends on its own id alone.

    size, patch_size: pixels of the finest grid. epoch: in [0, 2**32). Raises UsageError when the crop does not fit.
    """
    if not 1 <= size <= patch_size:
        raise UsageError(f"size: {size} px does not fit the corpus, legal: 1 to {patch_size} px")
    num_jitters = _whole(augment.jitters, level)
    blocks = _blocks(num_jitters, num_bands)
    shared = noise.words(seed=seed, site="augment.sample", step=epoch, ids=ids, blocks=np.zeros(1))[:, 0]
    own = noise.words(seed=seed, site=f"augment.view.{view}", step=epoch, ids=ids, blocks=blocks)
    jitter_bits = own[:, 1:1 + 2 * num_jitters].reshape(len(own), num_jitters, 8)
    dropout_bits = own[:, 1 + 2 * num_jitters:].reshape(len(own), -1)[:, :num_bands]
    return Draws(
        offset=_offset(shared, own[:, 0], room=patch_size - size, shift=_whole(augment.shift_px, level)),
        code=_code(augment.dihedral, shared, own[:, 0]),
        triple=_triple(jitter_bits[..., :3], num_bands),
        factor=_factor(jitter_bits[..., 3:7], _between(augment.jitter_strength, level)),
        keep=_keep(dropout_bits, _between(augment.band_dropout, level)))


def draw_bands(count: int, *, view: int, num_bands: int, seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """(B, count) int64, ascending: which of `num_bands` bands view number `view` of each sample shows; all choices equally likely."""
    bits = noise.words(seed=seed, site=f"augment.bands.{view}", step=epoch, ids=ids, blocks=np.arange(-(-num_bands // 4)))
    lots = bits.reshape(len(bits), -1)[:, :num_bands]
    return np.sort(np.argsort(lots, axis=1, kind="stable")[:, :count], axis=1)


def _blocks(num_jitters: int, num_bands: int) -> np.ndarray:
    """One block of place, two of each jitter (8 words, 7 used), one of each four bands."""
    return np.concatenate((np.array([_PLACE_BLOCK]), _JITTER_BLOCK + np.arange(2 * num_jitters),
                           _DROPOUT_BLOCK + np.arange(-(-num_bands // 4))))


def _offset(shared: np.ndarray, own: np.ndarray, *, room: int, shift: int) -> np.ndarray:
    """The sample's crop plus this view's shift, kept inside the patch."""
    base = noise.to_range(shared[:, :2], room + 1)
    moved = base + noise.to_range(own[:, :2], 2 * shift + 1) - shift
    return np.clip(moved, 0, room).astype(np.int32)


def _code(dihedral: str, shared: np.ndarray, own: np.ndarray) -> np.ndarray:
    if dihedral == "none":
        return np.zeros(len(own), dtype=np.int32)
    return noise.to_range((shared if dihedral == "shared" else own)[:, 2], 8).astype(np.int32)


def _triple(bits: np.ndarray, num_bands: int) -> np.ndarray:
    """Ordered triples without repetition, each equally likely; bands 0, 1, 2 modulo C when there are fewer than 3."""
    if num_bands < 3:
        return np.broadcast_to(np.arange(3) % num_bands, bits.shape).copy()
    first, second, third = np.moveaxis(noise.to_range(bits, np.array([num_bands, num_bands - 1, num_bands - 2])), -1, 0)
    second += second >= first
    third += third >= np.minimum(first, second)
    third += third >= np.maximum(first, second)
    return np.stack((first, second, third), axis=-1)


def _factor(bits: np.ndarray, strength: float) -> np.ndarray:
    """Brightness, contrast, saturation in [1-s, 1+s); hue in [-s, s) cycles, half a cycle at most."""
    signed = 2.0 * noise.to_unit(bits) - 1.0
    return signed * np.array([strength] * 3 + [min(strength, 0.5)]) + np.array([1.0, 1.0, 1.0, 0.0])


def _keep(bits: np.ndarray, probability: float) -> np.ndarray:
    """Each band stays with 1 - probability; where all would go, the one with the highest number stays."""
    keep = noise.to_unit(bits) >= probability
    keep[np.arange(len(keep)), np.argmax(bits, axis=1)] |= ~keep.any(axis=1)
    return keep


def _between(pair: tuple[float, float], level: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * level


def _whole(pair: tuple[int, int], level: float) -> int:
    return int(_between(pair, level) + 0.5)


def _check_pair(name: str, pair: tuple[float, float], largest: float) -> None:
    if len(pair) != 2 or not all(0 <= value <= largest for value in pair):
        raise UsageError(f"{name}: {tuple(pair)} is not legal, it must be two numbers in [0, {largest}]")


def _check_range(name: str, pair: tuple[float, float], largest: float) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= largest:
        raise UsageError(f"{name}: {tuple(pair)} is not legal, it must be two ascending numbers above 0, at most {largest}")


def _check_name(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise UsageError(f"{name}: {value!r} is unknown, {nearest(value, legal)}")
