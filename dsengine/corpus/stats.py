"""Mean, standard deviation and count per band, exact: integer sums of the stored values, nodata left out."""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.schema import NODATA


class BandSums(NamedTuple):
    """Python integers per band, so that adding shards in any order gives the same statistics."""

    count: list[int]
    total: list[int]
    square: list[int]

    def add(self, other: "BandSums") -> "BandSums":
        """The sums over both sets of pixels."""
        return BandSums(*([a + b for a, b in zip(mine, theirs, strict=True)] for mine, theirs in zip(self, other, strict=True)))


def band_sums(x_NCHW: np.ndarray, nodata: int = NODATA) -> tuple[BandSums, np.ndarray]:
    """Sums per band of int16 `x`, and the valid pixels of each patch and band, (N, C) int64.

    Exact up to 2^23 pixels a patch and band: squares are below 2^30 and float64 holds integers up to 2^53.
    """
    num_patches, num_bands = x_NCHW.shape[:2]
    flat = x_NCHW.reshape(num_patches, num_bands, -1)
    valid, total, square = (np.zeros((num_patches, num_bands), np.int64) for _ in range(3))
    for row in range(num_patches):
        mask = flat[row] != nodata
        valid[row] = mask.sum(axis=1)
        values = flat[row].astype(np.float64)
        if not mask.all():
            values *= mask
        total[row] = values.sum(axis=1)
        square[row] = np.einsum("cp,cp->c", values, values)
    sums = BandSums(*([int(v) for v in part.sum(axis=0)] for part in (valid, total, square)))
    return sums, valid


def statistics(sums: BandSums, *, scale_factor: float, add_offset: float) -> dict[str, list[Any]]:
    """`mean`, `std` (population) and `count` per band in physical units; None for a band without a valid pixel."""
    mean, std = [], []
    for count, total, square in zip(*sums, strict=True):
        if count == 0:
            mean.append(None)
            std.append(None)
            continue
        variance = Fraction(square, count) - Fraction(total, count) ** 2
        mean.append(float(Fraction(total, count)) * scale_factor + add_offset)
        std.append(float(variance) ** 0.5 * abs(scale_factor))
    return {"mean": mean, "std": std, "count": list(sums.count)}
