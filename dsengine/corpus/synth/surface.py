"""From a place to a class map and, pixel by pixel, to the endmembers each pixel is made of."""

import numpy as np
from numba import njit

from dsengine.corpus.synth.lattice import add_octave, fractal, key, unit
from dsengine.corpus.synth.spectra import (ASPHALT, BARE, BROADLEAF, BUILT, CROP, DRY, GRASS, LEAF, NEEDLELEAF, OPEN_WATER, ROOF,
                                           SHADE, SNOW, SOIL, WATER, WETLAND, WHITE)

F = np.float32
NUM_TEXTURES = 4  # pixel-scale, 4 px, 8 px, 32 px


@njit(cache=True, nogil=True)
def class_map(seed: int, salt: int, x0: int, y0: int, size: int, theme: int, cold: float, relief: np.ndarray,
              pure: float, purer: float) -> np.ndarray:
    """(size, size) uint8: the theme, with other classes where moisture, use (beyond pure .. pure + purer) or height are extreme."""
    moist = fractal(size, size, seed, 21 + salt, x0, y0, 128, 4)
    use = fractal(size, size, seed, 22 + salt, x0, y0, 128, 3)
    wood = NEEDLELEAF if unit(key(seed, 31, salt, 0)) < F(0.5) and theme != BROADLEAF else BROADLEAF
    humans = BUILT if unit(key(seed, 32, salt, x0)) < F(0.4) else CROP
    poor = BARE if unit(key(seed, 33, salt, y0)) < F(0.3) else GRASS
    level = F(-0.95) + F(0.35) * unit(key(seed, 34, x0, y0))
    spread = F(pure) + F(purer) * unit(key(seed, 35, x0, y0))
    classes = np.empty((size, size), np.uint8)
    for i in range(size):
        for j in range(size):
            k = theme
            if moist[i, j] > spread:
                k = wood
            if use[i, j] > spread:
                k = humans
            elif use[i, j] < -spread - F(0.1):
                k = poor
            if relief[i, j] < level:
                k = WATER
            elif relief[i, j] < level + F(0.12):
                k = WETLAND if theme != WATER else GRASS
            if cold > 0 and relief[i, j] > F(0.75) - F(0.5) * F(cold):
                k = SNOW
            classes[i, j] = k
    return classes


@njit(cache=True, nogil=True)
def textures(seed: int, salt: int, x0: int, y0: int, size: int) -> np.ndarray:
    """(4, size, size) noise in about [-1, 1]: by pixel, and of 4, 8 and 32 px."""
    out = np.zeros((NUM_TEXTURES, size, size), np.float32)
    for i in range(size):
        for j in range(size):
            out[0, i, j] = unit(key(seed, 41 + salt, x0 + j, y0 + i)) * F(2) - F(1)
    add_octave(out[1], seed, 42 + salt, x0, y0, 4, 1.0)
    add_octave(out[2], seed, 43 + salt, x0, y0, 8, 1.0)
    add_octave(out[3], seed, 44 + salt, x0, y0, 32, 1.0)
    return out


@njit(cache=True, nogil=True)
def parcels(seed: int, salt: int, x0: int, y0: int, size: int, length: int, wide: int, slope_x: int, slope_y: int) -> tuple:
    """For each pixel two hashes of its parcel and its phase across the rows, all in [0, 1).

    The grid is sheared by the integer vector (slope_x, slope_y) / 8, so arithmetic stays exact on every machine.
    """
    first = np.empty((size, size), np.float32)
    second = np.empty((size, size), np.float32)
    across = np.empty((size, size), np.float32)
    for i in range(size):
        for j in range(size):
            a = (8 * (x0 + j) + slope_x * (y0 + i)) // (8 * length)
            v = 8 * (y0 + i) - slope_y * (x0 + j) + 8 * wide * 1024
            b = (v + (a % 3) * 3 * wide) // (8 * wide)
            bits = key(seed, 51 + salt, a, b)
            first[i, j] = unit(bits)
            second[i, j] = unit(bits << np.uint64(24))
            across[i, j] = F(v % 256) * F(1 / 256)
    return first, second, across


@njit(cache=True, nogil=True)
def abundances(classes: np.ndarray, texture: np.ndarray, parcel: np.ndarray, stage: np.ndarray, across: np.ndarray, streets: np.ndarray,
               green: float, gain: np.ndarray, rows_in_32_px: int, out: np.ndarray) -> None:
    """Write the share of each endmember of every pixel to out (E, H, W); shares sum to 1.

    gain (6,): this patch's texture contrast, vegetation cover, dryness, density of houses, unlikeness of fields and lowness of the
    sun, which vary within a class as much as between.
    """
    height, width = classes.shape
    contrast, cover, dryness, density, unlike, low = gain
    for i in range(height):
        for j in range(width):
            fine, crown, mottle, broad = texture[0, i, j], texture[1, i, j], texture[2, i, j], texture[3, i, j]
            leaf, dry, soil, water, roof, asphalt, white, shade = F(0), F(0), F(0), F(0), F(0), F(0), F(0), F(0)
            k = classes[i, j]
            if k == WATER:
                water = F(0.92) + F(0.06) * broad
                soil = F(0.08) * (F(1) - water) + F(0.1) * dryness * dryness
            elif k == BROADLEAF:
                leaf = (F(0.25) + F(0.6) * F(green)) * cover
                shade = F(0.08) + F(0.20) * low + F(0.22) * contrast * (crown + F(0.35) * fine)
            elif k == NEEDLELEAF:
                leaf = F(0.56) * cover
                shade = F(0.10) + F(0.22) * low + F(0.2) * contrast * (fine + F(0.35) * crown)
            elif k == GRASS:
                leaf = (F(0.15) + F(0.6) * F(green)) * cover * (F(1) + F(0.3) * contrast * broad)
                shade = F(0.02) + F(0.20) * low + F(0.22) * contrast * broad
            elif k == CROP:
                grown = (F(0.5) + unlike * (stage[i, j] - F(0.5))) * (F(0.3) + F(0.7) * F(green))
                rows = F(1) if (across[i, j] * F(rows_in_32_px)) % F(1) < F(0.5) else F(-1)
                leaf = F(1.15) * grown * cover * (F(1) + F(0.25) * contrast * rows)
                shade = F(0.02) + F(0.18) * low + F(0.10) * contrast * rows
            elif k == BUILT:
                roof = density * (F(0.25) + F(0.45) * parcel[i, j])
                asphalt = F(0.15) * density
                leaf = (F(0.7) - F(0.5) * density) * cover * F(green) * stage[i, j]
                shade = F(0.03) + F(0.18) * low + F(0.14) * contrast * fine
                if streets[i, j] < F(0.2):
                    asphalt, roof, leaf = F(0.25) + F(0.5) * density, F(0.1) * density, F(0.3) * leaf
            elif k == BARE:
                soil = F(0.15) + F(0.4) * unlike + F(0.2) * contrast * mottle
                shade = F(0.02) + F(0.18) * low + F(0.25) * contrast * abs(crown)
                leaf = F(0.2) * cover * F(green)
            elif k == WETLAND:
                water = F(0.28) + F(0.3) * contrast * mottle
                leaf = F(0.5) * F(green) * cover
                shade = F(0.1)
            else:
                white = F(0.85) + F(0.1) * broad
                shade = F(0.1) + F(0.15) * contrast * abs(crown)
            leaf, water, shade = min(max(leaf, F(0)), F(1)), min(max(water, F(0)), F(1)), min(max(shade, F(0)), F(0.8))
            soil, roof, white = max(soil, F(0)), max(roof, F(0)), max(white, F(0))
            total = leaf + water + shade + soil + roof + asphalt + white
            if total > F(1):
                scale = F(1) / total
                leaf, water, shade, soil = leaf * scale, water * scale, shade * scale, soil * scale
                roof, asphalt, white, total = roof * scale, asphalt * scale, white * scale, F(1)
            rest = F(1) - total
            dry = rest * (F(1) - dryness)
            soil += rest * dryness
            out[LEAF, i, j], out[DRY, i, j], out[SOIL, i, j], out[OPEN_WATER, i, j] = leaf, dry, soil, water
            out[ROOF, i, j], out[ASPHALT, i, j], out[WHITE, i, j], out[SHADE, i, j] = roof, asphalt, white, shade
