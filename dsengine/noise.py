"""Counter-based randomness: Philox4x32-10, so every draw is a function of its key and nothing else.

A draw depends on (seed, site, step or epoch, sample id, index) and never on batch size, worker, rank or restart:
    key     = (seed, crc32 of the site's name)      two 32-bit words
    counter = (id low, id high, step, block)        four 32-bit words; one block gives four words
A site is who draws, such as "csf.shift": two sites never share numbers, and a site's name is part of what a seed means.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import zlib

import numpy as np

from dsengine.errors import UsageError

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def uint32(key: tuple[int, int], counters: np.ndarray) -> np.ndarray:
    """Philox4x32-10 itself: counters (..., 4), each word in [0, 2**32), to (..., 4) uint32."""
    words = np.ascontiguousarray(np.moveaxis(np.asarray(counters, dtype=np.uint64), -1, 0))
    c0, c1, c2, c3 = words
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def words(*, seed: int, site: str, step: int, ids: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """(n, m, 4) uint32 for ids (n,) int64 >= 0 and blocks (m,) in [0, 2**32); step is an epoch, a step, or 0."""
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 1 << 32:
            raise UsageError(f"{name}: {value} is not legal, it must be in [0, 2**32)")
    ids = np.asarray(ids, dtype=np.int64).astype(np.uint64)
    counters = np.empty((len(ids), len(blocks), 4), dtype=np.uint64)
    counters[..., 0] = (ids & _LOW)[:, None]
    counters[..., 1] = (ids >> _SHIFT)[:, None]
    counters[..., 2] = step
    counters[..., 3] = blocks
    return uint32((seed, zlib.crc32(site.encode())), counters)


def uniform(*, seed: int, site: str, step: int, ids: np.ndarray, count: int) -> np.ndarray:
    """(n, count) float64 in [0, 1), multiples of 2**-32; the first numbers do not depend on `count`."""
    bits = words(seed=seed, site=site, step=step, ids=ids, blocks=np.arange(-(-count // 4)))
    return to_unit(bits.reshape(len(bits), -1)[:, :count])


def integer(bound: int, *, seed: int, site: str, step: int) -> int:
    """One number in [0, bound) that belongs to a step rather than to a sample."""
    return int(to_range(words(seed=seed, site=site, step=step, ids=np.zeros(1), blocks=np.zeros(1))[0, 0, 0], bound))


def to_unit(bits: np.ndarray) -> np.ndarray:
    """uint32 words as float64 in [0, 1), exactly."""
    return bits * 2.0**-32


def to_range(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """uint32 words as int64 in [0, bound), 1 <= bound <= 2**32; no value is likelier by more than bound / 2**32."""
    return ((bits.astype(np.uint64) * np.asarray(bound, dtype=np.uint64)) >> _SHIFT).astype(np.int64)
