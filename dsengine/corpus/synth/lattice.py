"""Integer hashing and value noise: every number of the world is a function of (seed, site, place), bit for bit.

Only integer arithmetic, float32 sums and products are used, in a fixed order, so a patch is the same on every machine.
"""

import numpy as np
from numba import njit

_A, _B, _C = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@njit(inline="always", cache=True)
def mix(x: int) -> int:
    """The splitmix64 finaliser: a bijection of 64 bits in which every input bit reaches every output bit."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * _B
    x = (x ^ (x >> np.uint64(27))) * _C
    return x ^ (x >> np.uint64(31))


@njit(inline="always", cache=True)
def key(seed: int, site: int, i: int, j: int) -> int:
    """64 bits for a site and two integers."""
    return mix(mix(mix(np.uint64(seed) * _A + np.uint64(site)) + np.uint64(i) * _A) + np.uint64(j) * _C)


@njit(inline="always", cache=True)
def unit(bits: int) -> float:
    """The top 24 of 64 bits as float32 in [0, 1), exactly."""
    return np.float32(np.uint64(bits) >> np.uint64(40)) * np.float32(2.0**-24)


@njit(cache=True, nogil=True)
def draw(seed: int, site: int, i: int, j: int) -> float:
    """One number in [0, 1) for a site and two integers; for callers in plain Python."""
    return unit(key(seed, site, i, j))


@njit(cache=True, nogil=True)
def add_octave(out: np.ndarray, seed: int, site: int, x0: int, y0: int, wavelength: int, amplitude: float) -> None:
    """Add smoothed value noise in [-amplitude, amplitude] to out (H, W) float32.

    x0, y0: position of out[0, 0] on the global pixel grid; noise of overlapping patches agrees. wavelength: pixels.
    """
    height, width = out.shape
    first_y, first_x = y0 // wavelength, x0 // wavelength
    nodes_y, nodes_x = (y0 + height - 1) // wavelength - first_y + 2, (x0 + width - 1) // wavelength - first_x + 2
    nodes = np.empty((nodes_y, nodes_x), np.float32)
    for a in range(nodes_y):
        for c in range(nodes_x):
            nodes[a, c] = (unit(key(seed, site, first_y + a, first_x + c)) * np.float32(2) - np.float32(1)) * np.float32(amplitude)
    cell = np.empty(width, np.int32)
    weight = np.empty(width, np.float32)
    for j in range(width):
        cell[j] = (x0 + j) // wavelength - first_x
        weight[j] = smooth(np.float32((x0 + j) - (first_x + cell[j]) * wavelength) / np.float32(wavelength))
    row = np.empty(nodes_x, np.float32)
    for i in range(height):
        a = (y0 + i) // wavelength - first_y
        w = smooth(np.float32((y0 + i) - (first_y + a) * wavelength) / np.float32(wavelength))
        for c in range(nodes_x):
            row[c] = nodes[a, c] + w * (nodes[a + 1, c] - nodes[a, c])
        for j in range(width):
            out[i, j] += row[cell[j]] + weight[j] * (row[cell[j] + 1] - row[cell[j]])


@njit(inline="always", cache=True)
def smooth(t: float) -> float:
    """3 t^2 - 2 t^3 on [0, 1]."""
    return t * t * (np.float32(3) - np.float32(2) * t)


@njit(cache=True, nogil=True)
def fractal(height: int, width: int, seed: int, site: int, x0: int, y0: int, longest: int, octaves: int) -> np.ndarray:
    """(height, width) float32 noise of `octaves` wavelengths longest, longest / 2, ...; amplitudes halve; about [-1, 1]."""
    out = np.zeros((height, width), np.float32)
    amplitude = np.float32(0.6)
    for k in range(octaves):
        add_octave(out, seed, site * 16 + k, x0, y0, longest >> k, amplitude)
        amplitude *= np.float32(0.5)
    return out


@njit(cache=True, nogil=True)
def blur(planes: np.ndarray) -> None:
    """Smooth every plane of (E, H, W) float32 in place by 1 2 1 along both axes, edges repeated: sums of shares stay 1."""
    num, height, width = planes.shape
    above = np.empty(width, np.float32)
    here = np.empty(width, np.float32)
    for e in range(num):
        plane = planes[e]
        for i in range(height):
            left = plane[i, 0]
            for j in range(width - 1):
                centre = plane[i, j]
                plane[i, j] = (left + centre + centre + plane[i, j + 1]) * np.float32(0.25)
                left = centre
            plane[i, width - 1] = (left + np.float32(3) * plane[i, width - 1]) * np.float32(0.25)
        above[:] = plane[0]
        for i in range(height):
            below = plane[min(i + 1, height - 1)]
            here[:] = plane[i]
            for j in range(width):
                plane[i, j] = (above[j] + here[j] + here[j] + below[j]) * np.float32(0.25)
            above[:] = here
