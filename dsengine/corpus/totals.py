"""Statistics and nodata of a corpus measured anew while its chunks go by, for the comparison with what it says of itself."""

from typing import Any

import numpy as np
import zarr

from dsengine.corpus.index import Corpus
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.series_stats import Part, block_part, describe, merge
from dsengine.corpus.stats import BandSums, band_sums, statistics
from dsengine.corpus.stored import Stored


class _Seen:
    """Values with data, and values at all, of each row."""

    def __init__(self, stated: np.ndarray, samples: int) -> None:
        self.stated = stated  # (N,) nodata fraction that the index states
        self.samples = samples  # values of a whole row
        self.valid = np.zeros(len(stated))
        self.read = np.zeros(len(stated), np.int64)

    def add(self, chunk: Stored, valid_N: np.ndarray) -> None:
        rows = slice(chunk.start[0], chunk.start[0] + len(chunk.values))
        self.valid[rows] += valid_N
        self.read[rows] += chunk.values[0].size

    def fits(self) -> np.ndarray:
        """(N,) whether the stated fraction is that of the values; also where they could not all be read."""
        return (self.read != self.samples) | np.isclose(self.stated, 1.0 - self.valid / self.samples, atol=1e-6)


class PatchTotals:
    """Of the image arrays of a corpus of patches."""

    def __init__(self, corpus: Corpus) -> None:
        self.names = set(corpus.arrays)
        self._sums: dict[str, BandSums] = {}
        self._seen = _Seen(corpus.index.nodata_fraction, sum(int(np.prod(array.shape[1:])) for array in corpus.arrays.values()))

    def add(self, name: str, array: zarr.Array, chunk: Stored) -> None:
        """Count a chunk of whole patches."""
        sums, valid_NC = band_sums(chunk.values, nodata=array.attrs["nodata"])
        self._sums[name] = sums if name not in self._sums else self._sums[name].add(sums)
        self._seen.add(chunk, valid_NC.sum(axis=1))

    def statistics(self, name: str, array: zarr.Array) -> dict[str, list[Any]]:
        """mean, std and count of an array, all of whose chunks were added."""
        return statistics(self._sums[name], scale_factor=array.attrs["scale_factor"], add_offset=array.attrs["add_offset"])

    def nodata_fits(self) -> np.ndarray:
        """(N,) whether index/nodata_fraction agrees."""
        return self._seen.fits()


class SeriesTotals:
    """Of the values of a corpus of series or pixels."""

    def __init__(self, corpus: SeriesCorpus) -> None:
        self.names = {f"{corpus.kind}/{sensor}" for sensor in corpus.sensors}
        self._parts: dict[str, Part] = {}
        self._seen = _Seen(corpus.index["nodata_fraction"], sum(int(np.prod(array.shape[1:])) for array in corpus.values.values()))

    def add(self, name: str, array: zarr.Array, chunk: Stored) -> None:
        """Count a chunk of whole rows."""
        part = block_part(chunk.values, nodata=array.attrs["nodata"])
        self._parts[name] = part if name not in self._parts else merge([self._parts[name], part], str(array.dtype))
        valid = chunk.values != array.attrs["nodata"]
        self._seen.add(chunk, valid.reshape(len(valid), -1).sum(axis=1))

    def statistics(self, name: str, array: zarr.Array) -> dict[str, Any]:
        """mean, std and count of an array, all of whose chunks were added."""
        return describe(self._parts[name], str(array.dtype), scale_factor=array.attrs["scale_factor"], add_offset=array.attrs["add_offset"])

    def nodata_fits(self) -> np.ndarray:
        """(N,) whether index/nodata_fraction agrees."""
        return self._seen.fits()
