"""Mean, standard deviation and count per band, exact: integer sums of the stored values, nodata left out."""

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dsengine.corpus.scan import scan
from dsengine.corpus.schema import NODATA
from dsengine.corpus.seal import staged
from dsengine.corpus.shards import write_file
from dsengine.corpus.storage import storage_at
from dsengine.corpus.sums import pixel_sums

if TYPE_CHECKING:
    from dsengine.corpus.index import Corpus

MADE_BY = {"rows": "all", "method": "exact integer sums, nodata left out"}


class BandSums(NamedTuple):
    """Python integers per band, so that adding shards in any order gives the same statistics."""

    count: list[int]
    total: list[int]
    square: list[int]

    def add(self, other: "BandSums") -> "BandSums":
        """The sums over both sets of pixels."""
        return BandSums(*([a + b for a, b in zip(mine, theirs, strict=True)] for mine, theirs in zip(self, other, strict=True)))

    def without(self, other: "BandSums") -> "BandSums":
        """The sums of these pixels but for those of `other`, which are among them."""
        return self.add(BandSums(*([-value for value in values] for values in other)))


def band_sums(x_NCHW: np.ndarray, nodata: int = NODATA) -> tuple[BandSums, np.ndarray]:
    """Sums per band of int16 `x`, and the valid pixels of each patch and band, (N, C) int64. Exact up to 2^32 pixels a band."""
    num_patches, num_bands = x_NCHW.shape[:2]
    found = np.empty((num_patches * num_bands, 3), np.int64)
    pixel_sums(np.ascontiguousarray(x_NCHW, np.int16).reshape(num_patches * num_bands, -1), nodata, found)
    found = found.reshape(num_patches, num_bands, 3)
    return BandSums(*found.sum(axis=0).T.tolist()), found[:, :, 0]


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


def exact(sums: BandSums) -> dict[str, Any]:
    """Attribute `sums` of an array: the integers behind its statistics (stored units), as text because JSON readers round large ones."""
    return {"sums": {name: [str(value) for value in values] for name, values in sums._asdict().items()}}


def stored_sums(attributes: Mapping[str, Any]) -> BandSums | None:
    """The sums that an array's attributes hold, or None."""
    if "sums" not in attributes:
        return None
    return BandSums(*([int(value) for value in attributes["sums"][name]] for name in BandSums._fields))


def measure(corpus: "Corpus", *, progress: Callable[[int, int], None] | None = None) -> dict[str, dict[str, Any]]:
    """Statistics of every image array, from its pixels: array -> the attributes that `store` writes. RunError naming what cannot be read."""
    measured = {}
    for number, (name, array) in enumerate(corpus.arrays.items()):
        attrs = dict(array.attrs)
        sums = BandSums(*([0] * array.shape[1] for _ in BandSums._fields))
        for rows, part in scan(storage_at(corpus.path), name, array, lambda x: band_sums(x, nodata=attrs["nodata"])[0]):
            sums = sums.add(part)
            if progress:
                progress((number * len(corpus) + rows.stop) // len(corpus.arrays), len(corpus))
        physical = statistics(sums, scale_factor=attrs["scale_factor"], add_offset=attrs["add_offset"])
        measured[name] = {**physical, **exact(sums), "stats_made_by": MADE_BY}
    return measured


def store(corpus: "Corpus", measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Put statistics into the attributes of the arrays on disk, all at once. RunError when a file cannot be written."""
    storage = storage_at(corpus.path)
    with staged(corpus.path) as folder:
        for name, attributes in measured.items():
            metadata = json.loads(storage.get(f"{name}/zarr.json"))
            metadata["attributes"].update(attributes)
            write_file(folder / name / "zarr.json", [json.dumps(metadata, indent=2).encode()])
