"""`dsengine.noise` as tensors: the same Philox words, computed on the device of the sample ids without asking the host.

A draw is a function of (seed, site, step, sample id, index), so it does not depend on batch size, rank or restart. A site is given as its
number, `key(name)`, taken once when a file is imported: what is called in a step is traced by torch.compile. The words themselves are an
operator that is not: torch 2.13's Inductor makes other numbers of these products for some ids (`tests/test_methods_noise.py`).
"""

import math
import zlib

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def key(name: str) -> int:
    """The number of the site `name`."""
    return zlib.crc32(name.encode())


def words(ids: Tensor, count: int, *, seed: int, site: int, step: int | Tensor) -> Tensor:
    """(n, count) int64 in [0, 2**32) for ids (n,) int64 >= 0: row i are the first words of `noise.words` at ids[i].

    step: a number, or (), int64, on the device of ids: what is compiled takes that for an input, and a number for a constant.
    """
    return _words(ids, count, seed, site, step if isinstance(step, Tensor) else torch.full((), step, dtype=torch.int64, device=ids.device))


@torch.library.custom_op("dsengine::noise_words", mutates_args=())
def _words(ids: Tensor, count: int, seed: int, site: int, step: Tensor) -> Tensor:
    blocks = torch.arange(-(-count // 4), device=ids.device)
    low, high = (part[:, None].expand(-1, len(blocks)) for part in (ids & _MASK, ids >> 32))
    counter = low, high, step.expand_as(low), blocks.expand(len(ids), -1)
    return torch.stack(_philox(counter, (seed, site)), dim=-1).flatten(1)[:, :count].contiguous()


@_words.register_fake
def _(ids: Tensor, count: int, seed: int, site: int, step: Tensor) -> Tensor:
    return ids.new_empty(len(ids), count)


def uniform(ids: Tensor, count: int, *, seed: int, site: int, step: int | Tensor) -> Tensor:
    """(n, count) float64 in [0, 1), multiples of 2**-32."""
    return words(ids, count, seed=seed, site=site, step=step).double() * 2.0**-32


def below(ids: Tensor, count: int, bound: int, *, seed: int, site: int, step: int) -> Tensor:
    """(n, count) int64 in [0, bound), 1 <= bound <= 2**31; no value is likelier by more than bound / 2**32."""
    return words(ids, count, seed=seed, site=site, step=step) * bound >> 32


def normal(ids: Tensor, count: int, *, seed: int, site: int, step: int) -> Tensor:
    """(n, count) float32 standard normal, by Box and Muller from pairs of words; |x| is at most 6.8."""
    pairs = words(ids, 2 * -(-count // 2), seed=seed, site=site, step=step).unflatten(1, (-1, 2))
    first, second = ((pairs.float() + 0.5) * 2.0**-32).unbind(-1)
    radius, angle = torch.sqrt(-2 * torch.log(first)), 2 * math.pi * second
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(1)[:, :count]


def integer(bound: int, *, seed: int, site: int, step: int) -> int:
    """One number in [0, bound) that belongs to a step rather than to a sample: that of `noise.integer`, traceable."""
    return _philox((0, 0, step, 0), (seed, site))[0] * bound >> 32


def _philox(counter: tuple[Tensor | int, ...], key: tuple[int, int]) -> tuple[Tensor | int, ...]:
    """Philox4x32-10, for Python's integers and for int64 tensors, whose products wrap around: their 64 bits are still the product's."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3
