"""How far the patches of one split lie from those that training sees: what a figure measured on them is worth."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from dsengine.corpus.sphere import arc_km, unit_vectors

if TYPE_CHECKING:
    from dsengine.corpus.index import Corpus


class Leakage(NamedTuple):
    """Great-circle distances in km from each patch of a split to the nearest train patch, centre to centre."""

    split: str
    num_patches: int
    least_km: float
    percentile_1_km: float  # 1 % of the patches are nearer than this
    median_km: float
    num_overlapping: int  # nearer than the diagonal of a patch: they may share ground with a train patch

    def sentence(self) -> str:
        """For a report."""
        return (f"{self.split} to the nearest train patch: least {_distance(self.least_km)}, 1 % {_distance(self.percentile_1_km)}, "
                f"median {_distance(self.median_km)}; {self.num_overlapping:,} of {self.num_patches:,} within a patch diagonal")


def leakage(corpus: "Corpus", split: str = "test", *, where: str | None = None) -> Leakage | None:
    """The distances of `split` from train; None where one of them has no patch (with a known place)."""
    train, held = (_points(corpus, name, where) for name in ("train", split))
    if not (len(train) and len(held)):
        return None
    chords, _ = cKDTree(train, balanced_tree=False).query(held)
    km = arc_km(chords)
    diagonal_km = corpus.patch_size * corpus.resolution_m * np.sqrt(2) / 1000
    return Leakage(split, len(held), float(km.min()), float(np.percentile(km, 1)), float(np.median(km)), int((km < diagonal_km).sum()))


def _points(corpus: "Corpus", split: str, where: str | None) -> np.ndarray:
    rows = corpus.rows(split, where)
    points = unit_vectors(corpus.index.lon[rows], corpus.index.lat[rows])
    return points[np.isfinite(points).all(axis=1)]


def _distance(km: float) -> str:
    return f"{km * 1000:.0f} m" if km < 1 else f"{km:.1f} km"
