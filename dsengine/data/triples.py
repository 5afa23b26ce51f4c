"""Who stands beside an anchor in a triple: a patch nearby and one far away, as functions of (seed, epoch, anchor) alone.

    neighbour   among the anchor's entries in the neighbour table, p proportional to exp(-distance / scale)
    distant     uniform over the rest: not the anchor, not in its entries

Source: the first paper (DeepSentinel), section 4.2; its text and code take softmax(+ distance in km) without a scale, which is almost always
the farthest neighbour (`scale_km` -1 here). Only patches of the split that is read take part. An anchor whose table is
empty is its own neighbour: of all places it is the nearest; the two views then differ by flips and turns alone, where there are any.
A patch that the table leaves out, by its condition or for want of a place, counts as far from all.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np

from dsengine import noise
from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus import Corpus


class Triples:
    """Draws neighbours and distant patches among `rows`. Keeps 20 bytes for each pair of them that the table has.

    rows: (N,) int64 ascending, the patches that take part. scale_km: of the exponential; negative prefers the far end of the table.
    Raises UsageError without a table, for a scale of 0, or when some anchor has no distant patch.
    """

    def __init__(self, corpus: "Corpus", rows: np.ndarray, *, scale_km: float) -> None:
        if scale_km == 0 or not np.isfinite(scale_km):
            raise UsageError(f"scale_km={scale_km}: must be finite and not 0")
        indptr, indices, km = corpus.neighbours.load()
        self.crc = zlib.crc32(km.tobytes(), zlib.crc32(indices.tobytes(), zlib.crc32(indptr.tobytes())))  # another table means other triples
        self._rows, self._position = rows, np.full(len(corpus), -1, dtype=np.int64)
        self._position[rows] = np.arange(len(rows))
        owner, other = np.repeat(self._position, np.diff(indptr)), self._position[indices]
        both = (owner >= 0) & (other >= 0)
        self._runs(owner[both], other[both], km[both].astype(np.float64), scale_km)
        most = int(np.diff(self._start).argmax()) if len(rows) else 0
        if len(rows) and self._start[most + 1] - self._start[most] >= len(rows):
            raise UsageError(f"corpus: no patch is farther from patch {corpus.index.id[rows[most]]} than the {corpus.neighbours.radius_km:g} km of its "
                             f"neighbour table; a triple needs one: legal: more places, or `dsengine corpus neighbours {corpus.path} --radius-km` with less")

    def _runs(self, owner: np.ndarray, other: np.ndarray, km: np.ndarray, scale_km: float) -> None:
        """A run for each anchor: its entries and itself, ascending. It is drawn itself only where it is alone."""
        num = len(self._rows)
        itself = np.arange(num)
        counts = np.bincount(owner, minlength=num)
        shares = np.concatenate([_shares(km, counts, scale_km), counts == 0])
        owner, other = np.concatenate([owner, itself]), np.concatenate([other, itself])
        order = np.lexsort((other, owner))
        self._start = np.concatenate([[0], np.cumsum(counts + 1)])
        self._others, self._upto = other[order].astype(np.int32), np.cumsum(shares[order])
        # Below entry j of a run lie other[j] - j patches that are not in it; with the anchor's number in front all runs are one ascending sequence.
        self._outside = owner[order] * num + other[order] - (np.arange(len(order)) - self._start[owner[order]])

    def neighbours(self, ids: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """(B,) rows of the corpus, one for each anchor `ids` (B,)."""
        at = self._position[ids]
        lo, hi = self._start[at], self._start[at + 1] - 1
        u = noise.uniform(seed=seed, site="triples.neighbour", step=epoch, ids=ids, count=1)[:, 0]
        below = np.where(lo > 0, self._upto[np.maximum(lo, 1) - 1], 0.0)
        # A sum that rounding has left short of 1 must end neither in the next run nor on the anchor.
        last = hi - ((self._others[hi] == at) & (hi > lo))
        return self._rows[self._others[np.clip(np.searchsorted(self._upto, below + u, side="right"), lo, last)]]

    def distant(self, ids: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """(B,) rows of the corpus, one for each anchor `ids` (B,)."""
        bits = noise.words(seed=seed, site="triples.distant", step=epoch, ids=ids, blocks=np.zeros(1))[:, 0, 0]
        at, num = self._position[ids], len(self._rows)
        start, stop = self._start[at], self._start[at + 1]
        rank = noise.to_range(bits, num - (stop - start))
        return self._rows[rank + np.searchsorted(self._outside, at * num + rank, side="right") - start]


def _shares(km: np.ndarray, counts: np.ndarray, scale_km: float) -> np.ndarray:
    """exp(-km / scale) over its sum, for runs of `counts` entries."""
    if not len(km):
        return km
    starts = np.cumsum(counts)[counts > 0] - counts[counts > 0]
    runs = counts[counts > 0]
    exponent = -km / scale_km
    weights = np.exp(exponent - np.repeat(np.maximum.reduceat(exponent, starts), runs))
    return weights / np.repeat(np.add.reduceat(weights, starts), runs)
