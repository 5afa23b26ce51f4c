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
    """Draws neighbours and distant patches among `rows`. Keeps 16 bytes for each pair of them that the table has.

    rows: (N,) int64 ascending, the patches that take part. scale_km: of the exponential; negative prefers the far end of the table.
    Raises UsageError without a table, for a scale of 0, or when some anchor has no distant patch.
    """

    def __init__(self, corpus: "Corpus", rows: np.ndarray, *, scale_km: float) -> None:
        if scale_km == 0 or not np.isfinite(scale_km):
            raise UsageError(f"scale_km={scale_km}: must be finite and not 0")
        indptr, indices, km = corpus.neighbours.load()
        self.crc = zlib.crc32(km.tobytes(), zlib.crc32(indices.tobytes(), zlib.crc32(indptr.tobytes())))  # another table means other triples
        self._rows = rows
        position = np.full(len(corpus), -1, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        owner, other = np.repeat(position, np.diff(indptr)), position[indices]
        both = (owner >= 0) & (other >= 0)
        self._others = other[both]
        counts = np.bincount(owner[both], minlength=len(rows))
        self._start = np.concatenate([[0], np.cumsum(counts)])
        self._upto = np.cumsum(_shares(km[both].astype(np.float64), counts, scale_km))  # an anchor's entries add up to 1
        self._position = position
        if len(rows) and counts.max(initial=0) + 1 >= len(rows):
            crowded = corpus.index.id[rows[int(counts.argmax())]]
            raise UsageError(f"corpus: no patch is farther from patch {crowded} than the {corpus.neighbours.radius_km:g} km of its neighbour table; "
                             f"a triple needs one: legal: more places, or `dsengine corpus neighbours {corpus.path} --radius-km` with less")

    def neighbours(self, ids: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """(B,) rows of the corpus, one for each anchor `ids` (B,)."""
        at = self._position[ids]
        lo, hi = self._start[at], self._start[at + 1]
        u = noise.uniform(seed=seed, site="triples.neighbour", step=epoch, ids=ids, count=1)[:, 0]
        below = np.where(lo > 0, self._upto[np.maximum(lo, 1) - 1], 0.0) if len(self._upto) else np.zeros(len(ids))
        found = np.clip(np.searchsorted(self._upto, below + u, side="right"), lo, np.maximum(hi - 1, lo))
        alone = hi == lo
        chosen = np.where(alone, at, self._others[np.where(alone, 0, found)] if len(self._others) else at)
        return self._rows[chosen]

    def distant(self, ids: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """(B,) rows of the corpus, one for each anchor `ids` (B,)."""
        bits = noise.words(seed=seed, site="triples.distant", step=epoch, ids=ids, blocks=np.zeros(1))[:, 0, 0]
        at = self._position[ids]
        near = np.diff(self._start)[at] + 1  # and the anchor
        rank = noise.to_range(bits, len(self._rows) - near)
        chosen = [_nth_outside(np.sort(np.append(self._others[self._start[p]:self._start[p + 1]], p)), k) for p, k in zip(at, rank)]
        return self._rows[np.array(chosen, dtype=np.int64)]


def _shares(km: np.ndarray, counts: np.ndarray, scale_km: float) -> np.ndarray:
    """exp(-km / scale) over its sum, for runs of `counts` entries."""
    if not len(km):
        return km
    starts = np.cumsum(counts)[counts > 0] - counts[counts > 0]
    runs = counts[counts > 0]
    exponent = -km / scale_km
    weights = np.exp(exponent - np.repeat(np.maximum.reduceat(exponent, starts), runs))
    return weights / np.repeat(np.add.reduceat(weights, starts), runs)


def _nth_outside(taken: np.ndarray, n: int) -> int:
    """Number `n`, from 0, of the whole numbers that are not in `taken` (ascending, no number twice)."""
    return int(n + np.searchsorted(taken - np.arange(len(taken)), n, side="right"))
