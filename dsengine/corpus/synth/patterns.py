"""The pattern that each class has on the ground, however bright it is: what a network can tell classes by where the levels of bands cannot.

Over its class's pixels in a patch every pattern has mean 0 and variance 1, so that neither says which it is. Bands of 20 and 60 m smooth a fine
pattern away and keep a coarse one: how strong it is in each band is drawn for each patch, so that the bands' deviations together do not say it either.
"""

import numpy as np
from numba import njit

from dsengine.corpus.synth.lattice import add_octave, draw, key, unit
from dsengine.corpus.synth.sensors import NUM_BANDS, NUM_POLS
from dsengine.corpus.synth.spectra import BARE, BROADLEAF, BUILT, CLASSES, CROP, GRASS, NEEDLELEAF, WATER, WETLAND

F = np.float32
_NUM_CLASSES = len(CLASSES)
_SPREAD = np.float32(2.5)  # standard deviations, beyond which a pattern is cut


def lit(light: np.ndarray, classes: np.ndarray, seed: int, salt: int, row: int, corner: tuple[int, int], strength: tuple[float, float]) -> np.ndarray:
    """(14, H, W) float32 illumination of each band, radar last; in a world without patterns (1, H, W), one for all bands.

    It is light (H, W) times 1 + s pattern, with s drawn from strength (the least and what a draw adds to it) for each band of patch `row`.
    classes: (H, W) uint8. salt: the ground's. corner: x0, y0 on the global pixel grid.
    """
    if not any(strength):
        return light[None]
    least, more = F(strength[0]), F(strength[1])
    *by_band, turn, slope = [F(draw(seed, 121, row, k)) for k in range(NUM_BANDS + NUM_POLS + 2)]
    pattern = pattern_map(classes, seed, salt, *corner, int(slope * 17) - 8, bool(turn < F(0.5)))
    return np.stack([light * np.maximum(F(1) + (least + more * own) * pattern, F(0.1)) for own in by_band])


@njit(cache=True, nogil=True)
def pattern_map(classes: np.ndarray, seed: int, salt: int, x0: int, y0: int, slope: int, turned: bool) -> np.ndarray:
    """(H, W) float32: at each pixel of classes (H, W) uint8 the pattern of its class, which runs along the direction (8, slope), or across it."""
    out = np.empty(classes.shape, np.float32)
    noise = np.zeros((4, *classes.shape), np.float32)
    for k in range(4):  # 4, 8, 16 and 32 px
        add_octave(noise[k], seed, 101 + k + salt, x0, y0, 4 << k, 1.0)
    for i in range(classes.shape[0]):
        for j in range(classes.shape[1]):
            u, v = 8 * (x0 + j) + slope * (y0 + i), 8 * (y0 + i) - slope * (x0 + j)
            if turned:
                u, v = v, u
            out[i, j] = _value(classes[i, j], u, v, noise[:, i, j], seed, salt)
    for k in range(_NUM_CLASSES):
        _standardise(out, classes, k)
    return out


@njit(inline="always", cache=True, nogil=True)
def _value(k: int, u: int, v: int, noise: np.ndarray, seed: int, salt: int) -> float:
    """Pattern of class k at (u, v), in eighths of a pixel along and across its direction; noise (4,) there, of 4, 8, 16 and 32 px."""
    crown, mottle, broad, wide = noise
    if k == WATER:  # swell: long crests, a little bent
        return abs(F((v + np.int64(F(32) * broad)) % 96) - F(48))
    if k == BROADLEAF:  # crowns
        return max(mottle, F(-0.1))
    if k == NEEDLELEAF:
        return crown
    if k == GRASS:
        return wide + F(0.3) * broad
    if k == CROP:  # rows within parcels
        parcel = unit(key(seed, 111 + salt, u // 192, v // 160))
        return (F(1) if v % 48 < 24 else F(-1)) + F(1.2) * (parcel - F(0.5))
    if k == BUILT:  # houses between streets
        if u % 72 < 20 or v % 72 < 20:
            return F(-0.6)
        return F(2) * unit(key(seed, 112 + salt, u // 72, v // 72)) - F(0.4)
    if k == BARE:  # ridges
        return F(1) - F(3) * min(abs(broad), F(0.33))
    if k == WETLAND:  # pools
        return F(1) if broad + F(0.3) * mottle > F(0.1) else F(-1)
    return F(1) if unit(key(seed, 113 + salt, u // 40, v // 40)) > F(0.85) else F(0)  # rocks in snow


@njit(cache=True, nogil=True)
def _standardise(out: np.ndarray, classes: np.ndarray, k: int) -> None:
    """Shift and scale the pixels of class k in place to mean 0 and variance 1, and cut them; in a fixed order of sums."""
    count, total, squares = 0, 0.0, 0.0
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            if classes[i, j] == k:
                count += 1
                total += out[i, j]
                squares += np.float64(out[i, j]) * np.float64(out[i, j])
    if count == 0:
        return
    mean = total / count
    width = np.sqrt(max(squares / count - mean * mean, 1e-4))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            if classes[i, j] == k:
                out[i, j] = min(max(F((out[i, j] - mean) / width), -_SPREAD), _SPREAD)
