"""From endmember shares to what Sentinel-2 and Sentinel-1 would have stored: light, air, clouds, speckle, edges, integers."""

import numpy as np
from numba import njit

from dsengine.corpus.synth.lattice import blur, key, unit
from dsengine.corpus.synth.spectra import BACKSCATTER, CLOUD, HAZE, LEAF, OPEN_WATER, PIXELS, ROOF, SHADE, SOIL, SPECTRA

F = np.float32
NODATA = np.int16(-32768)
NUM_BANDS, NUM_POLS = SPECTRA.shape[1], BACKSCATTER.shape[1]
_STEPS = 4096
# Rounded tables, so that no machine's libm shows in a patch: (-log u)^1.25 / Gamma(2.25), of mean 1 and about 0.63 looks, at 4096
# midpoints; 100 * 10 log10(mantissa).
_FADING = np.round((-np.log((np.arange(_STEPS) + 0.5) / _STEPS)) ** 1.25 / 1.1330, 5).astype(np.float32)
_MANTISSA_CDB = np.round(1000 * np.log10(1 + (np.arange(_STEPS) + 0.5) / _STEPS), 3).astype(np.float32)
_OCTAVE_CDB = np.float32(round(1000 * np.log10(2.0), 4))


@njit(cache=True, nogil=True)
def optical(shares: np.ndarray, spectra: np.ndarray, light: np.ndarray, air: np.ndarray, cloud: np.ndarray, seed: int,
            row: int, out: np.ndarray) -> None:
    """Sentinel-2 L2A reflectance x 10000 into out (12, H, W) int16.

    shares (E, H, W); spectra (E, 12) of this patch; light (14, H, W): illumination of each band, radar last, or (1, H, W) of all; air (12,) additive
    haze; cloud (H, W): share of the pixel that cloud covers, negative in its shadow.
    """
    num, height, width = shares.shape
    mixed = np.empty(width, np.float32)
    for i in range(height):
        for b in range(NUM_BANDS):
            lit = light[min(b, light.shape[0] - 1), i]
            mixed[:] = F(0)
            for e in range(num):
                s = spectra[e, b]
                for j in range(width):
                    mixed[j] += s * shares[e, i, j]
            haze, white = air[b], CLOUD[b]
            for j in range(width):
                c = cloud[i, j]
                r = mixed[j] * lit[j]
                r = r * (F(1) + F(0.65) * min(c, F(0))) + haze
                c = max(c, F(0))
                out[b, i, j] = np.int16(min(max((r * (F(1) - c) + white * c) * F(10000), F(1)), F(20000)) + F(0.5))
    _sensor_noise(seed, row, out)
    for b in range(NUM_BANDS):
        if PIXELS[b] > 1:
            _coarsen(out[b], PIXELS[b])


@njit(cache=True, nogil=True)
def _coarsen(band: np.ndarray, side: int) -> None:
    """Replace each side x side cell of (H, W) int16 by its rounded mean: bands of 20 m and 60 m lie on the grid of 10 m."""
    height, width = band.shape
    for i in range(0, height, side):
        for j in range(0, width, side):
            cell = band[i : min(i + side, height), j : min(j + side, width)]
            total = 0
            for y in range(cell.shape[0]):
                for x in range(cell.shape[1]):
                    total += cell[y, x]
            count = cell.shape[0] * cell.shape[1]
            cell[:, :] = np.int16((2 * total + count) // (2 * count))


@njit(cache=True, nogil=True)
def _sensor_noise(seed: int, row: int, out: np.ndarray) -> None:
    """Add uniform noise of +-8 (per 10000) and +-1.5 % to every value: 8 bits each of a hash per four bands."""
    for q in range(NUM_BANDS // 4):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                bits = key(seed, 61 + q, row, i * out.shape[2] + j)
                for b in range(4):
                    u = F((bits >> np.uint64(8 * b)) & np.uint64(255)) * F(1 / 127.5) - F(1)
                    value = F(out[4 * q + b, i, j])
                    out[4 * q + b, i, j] = np.int16(max(value + u * (F(8) + F(0.015) * value), F(1)) + F(0.5))


@njit(cache=True, nogil=True)
def radar(shares: np.ndarray, texture: np.ndarray, light: np.ndarray, gain: np.ndarray, seed: int, row: int, out: np.ndarray) -> None:
    """Sentinel-1 VV and VH in dB x 100 into out (2, H, W) int16, with speckle of about 4.5 looks, correlated over two to three pixels.

    light: as for `optical`. gain (4,): power factors of this patch for everything, bare soil (moisture), water (wind), and volume (wet leaves).
    """
    height, width = light.shape[1:]
    speckle = np.empty((1, height + 2, width + 2), np.float32)
    power = np.empty((height, width), np.float32)
    for p in range(NUM_POLS):
        for i in range(height + 2):
            for j in range(width + 2):
                speckle[0, i, j] = _FADING[key(seed, 71 + p, row, i * (width + 2) + j) >> np.uint64(52)]
        blur(speckle)  # 1 2 1 by 1 2 1 averages 7.1 independent values
        _sigma0(shares, texture, light[min(NUM_BANDS + p, light.shape[0] - 1)], gain, p, power)
        for i in range(height):
            for j in range(width):
                power[i, j] *= max(speckle[0, i + 1, j + 1], F(1e-3))
        _to_centi_db(power, out[p])


@njit(cache=True, nogil=True)
def _sigma0(shares: np.ndarray, texture: np.ndarray, light: np.ndarray, gain: np.ndarray, p: int, power: np.ndarray) -> None:
    """Mean backscatter, linear power, of polarisation p into power (H, W)."""
    whole, moist, wind, volume = gain
    for i in range(power.shape[0]):
        for j in range(power.shape[1]):
            total = F(0)
            for e in range(shares.shape[0]):
                s = BACKSCATTER[e, p] * shares[e, i, j]
                if e == SOIL:
                    s *= moist
                elif e == OPEN_WATER:
                    s *= wind
                elif e == LEAF or e == SHADE:
                    s *= volume
                elif e == ROOF and texture[0, i, j] > F(0.8):
                    s *= F(4)  # corner reflectors
                total += s
            slope = light[i, j]  # slopes that face the sun's side face the radar's
            power[i, j] = total * whole * slope * slope * (F(1) + F(0.25) * texture[1, i, j])


@njit(cache=True, nogil=True)
def _to_centi_db(power: np.ndarray, out: np.ndarray) -> None:
    """Linear power (H, W) float32 as dB x 100: exponent and a table over the mantissa's first 12 bits."""
    for i in range(power.shape[0]):
        words = power[i].view(np.int32)
        for j in range(power.shape[1]):
            exponent = (words[j] >> 23) - 127
            cdb = F(exponent) * _OCTAVE_CDB + _MANTISSA_CDB[(words[j] >> 11) & 4095]
            out[i, j] = np.int16(np.floor(cdb + F(0.5)))


@njit(cache=True, nogil=True)
def cut_edge(out: np.ndarray, angle_x: int, angle_y: int, at: int) -> None:
    """Make every pixel with angle_x * x + angle_y * y > at nodata, in all bands of out (C, H, W)."""
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            if angle_x * j + angle_y * i > at:
                out[:, i, j] = NODATA


@njit(cache=True, nogil=True)
def patch_spectra(seed: int, site: int, cluster: int, row: int, region: float, place: float, calibration: float) -> np.ndarray:
    """SPECTRA with each endmember's level and slope changed by up to `region` in the cluster and by up to `place` in the patch itself.

    Soils and leaves differ from region to region and from place to place. calibration: spread of each band's gain in the patch.
    """
    out = np.empty(SPECTRA.shape, np.float32)
    for e in range(SPECTRA.shape[0]):
        level = _signed(seed, site, cluster, e, region) + _signed(seed, site + 1, row, e, place)
        slope = _signed(seed, site + 2, cluster, e, region) + _signed(seed, site + 3, row, e, place)
        for b in range(NUM_BANDS):
            out[e, b] = SPECTRA[e, b] * (F(1) + level + slope * (F(b) * F(2 / 11) - F(1))) * (F(1) + _signed(seed, site + 4, row, b, calibration))
    return out


@njit(inline="always", cache=True, nogil=True)
def _signed(seed: int, site: int, i: int, j: int, spread: float) -> float:
    return (unit(key(seed, site, i, j)) * F(2) - F(1)) * F(spread)


def haze(amount: float) -> np.ndarray:
    """(12,) float32 additive reflectance of the air that the atmospheric correction left over."""
    return HAZE * F(amount)
