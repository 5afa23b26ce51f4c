"""Mean, standard deviation and count per band of series and pixels, from blocks of rows, nodata left out.

int16: exact integer sums, so any order of blocks gives the same numbers. float32: mean and squared deviations per block in float64,
merged in the order of the rows.
Source of the merge: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsengine.corpus.schema import NODATA
from dsengine.corpus.stats import BandSums, statistics

if TYPE_CHECKING:
    from dsengine.corpus.series import SeriesCorpus

MADE_BY = {"int16": {"rows": "all", "method": "exact integer sums, nodata left out"},
           "float32": {"rows": "all", "method": "float64 moments a block, merged in row order, nodata left out"}}

Part = list[list[Any]]  # int16: count, total, square; float32: count, mean, squared deviations; each with one value a band


def block_part(x: np.ndarray, *, nodata: int = NODATA) -> Part:
    """What one block (n, ..., C) adds. Exact for int16 up to 2**31 values a band."""
    flat = x.reshape(-1, x.shape[-1])
    mask = flat != nodata
    count = mask.sum(axis=0)
    if x.dtype == np.int16:
        values = np.where(mask, flat, 0).astype(np.int64)
        return [count.tolist(), values.sum(axis=0).tolist(), (values * values).sum(axis=0).tolist()]
    values = np.where(mask, flat, 0).astype(np.float64)
    mean = values.sum(axis=0) / np.maximum(count, 1)
    return [count.tolist(), mean.tolist(), (np.where(mask, values - mean, 0) ** 2).sum(axis=0).tolist()]


def merge(parts: Sequence[Part], dtype: str) -> Part:
    """The part of all blocks together; for float32 `parts` are in row order."""
    if dtype == "int16":
        sums = BandSums(*parts[0])
        for part in parts[1:]:
            sums = sums.add(BandSums(*part))
        return [list(values) for values in sums]
    count, mean, square = (np.array(values, np.float64) for values in parts[0])
    for part in parts[1:]:
        n, m, s = (np.array(values, np.float64) for values in part)
        total = np.maximum(count + n, 1)
        square = square + s + (m - mean) ** 2 * count * n / total
        mean = mean + (m - mean) * n / total
        count = count + n
    return [count.astype(np.int64).tolist(), mean.tolist(), square.tolist()]


def describe(part: Part, dtype: str, *, scale_factor: float, add_offset: float) -> dict[str, Any]:
    """`mean`, `std` (population), `count` per band in physical units, and `stats_made_by`; None for a band without a value."""
    if dtype == "int16":
        return {**statistics(BandSums(*part), scale_factor=scale_factor, add_offset=add_offset), "stats_made_by": MADE_BY[dtype]}
    counts, means, squares = part
    mean = [m * scale_factor + add_offset if n else None for n, m in zip(counts, means, strict=True)]
    std = [(s / n) ** 0.5 * abs(scale_factor) if n else None for n, s in zip(counts, squares, strict=True)]
    return {"mean": mean, "std": std, "count": counts, "stats_made_by": MADE_BY[dtype]}


def measure_series(corpus: "SeriesCorpus", *, progress: Callable[[int, int], None] | None = None) -> dict[str, dict[str, Any]]:
    """Statistics of every sensor, read by zarr-python shard by shard: array -> the attributes that `stats.store` writes."""
    from dsengine.corpus.series import read_rows

    measured = {}
    for number, (sensor, array) in enumerate(corpus.values.items()):
        attrs, parts, step = dict(array.attrs), [], (array.shards or array.chunks)[0]
        for start in range(0, len(corpus), step):
            rows = read_rows(array, slice(start, start + step), corpus.path / corpus.kind / sensor)
            parts.append(block_part(rows, nodata=attrs["nodata"]))
            if progress:
                progress((number * len(corpus) + start) // len(corpus.values), len(corpus))
        dtype = str(array.dtype)
        measured[f"{corpus.kind}/{sensor}"] = describe(merge(parts, dtype), dtype, scale_factor=attrs["scale_factor"], add_offset=attrs["add_offset"])
    return measured
