"""Similarity search: the cells or patches whose embedding points in the direction of one of them.

Exact: every vector is read once, block by block, and compared by its cosine; memory holds a block and the best so far.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsengine.errors import UsageError
from dsengine.export.stores import Store, open_store


class Similar(NamedTuple):
    """What was found, most similar first."""

    query: int  # id of the cell or patch that the others are compared with
    id: np.ndarray  # (N,) int64: rows of the corpus, or cells of the raster counted row by row
    cosine: np.ndarray  # (N,) float64
    lon: np.ndarray  # (N,) degrees WGS 84
    lat: np.ndarray
    km: np.ndarray  # (N,) from the query


def nearest(path: str | os.PathLike[str], query: int | tuple[float, float], *, top: int = 10, min_km: float = 0.0) -> Similar:
    """The `top` nearest by cosine to a cell or patch, by its id or by (longitude, latitude) of a point in it, which is left out itself.

    path: what `embed` wrote. min_km: leave out what is closer on the ground: cells beside each other see nearly the same
    pixels. UsageError for an id that is not there, a point outside, or a file that holds no such vectors.
    """
    if top < 1 or min_km < 0:
        raise UsageError(f"--top {top}, --min-km {min_km:g}: legal: at least 1, at least 0")
    store = open_store(Path(path))
    number = store.locate(*query) if isinstance(query, tuple) else int(query)
    wanted = store.vector(number)
    if not np.isfinite(wanted).all() or not (length := np.linalg.norm(wanted)):
        raise UsageError(f"--nearest {query}: cell {number} of {path} has no data; legal: one that has")
    centre = store.places(np.array([number]))
    best = _Best(np.empty(0, np.int64), np.empty(0))
    for ids, vectors in store.blocks():
        best = best.with_block(*_cosines(ids, vectors, wanted / length), store, number, centre, top=top, min_km=min_km)
    lon, lat = store.places(best.id)
    return Similar(number, best.id, best.cosine, lon, lat, km_between(lon, lat, *centre))


class _Best(NamedTuple):
    """Ids and cosines so far, best first; equal cosines in the order of ids."""

    id: np.ndarray
    cosine: np.ndarray

    def with_block(self, ids: np.ndarray, cosine: np.ndarray, store: Store, number: int, centre: tuple[np.ndarray, np.ndarray], *, top: int,
                   min_km: float) -> "_Best":
        kept = ids != number
        if len(self.id) == top:
            kept &= cosine >= self.cosine[-1]
        ids, cosine = ids[kept], cosine[kept]
        if min_km > 0 and len(ids):
            far = km_between(*store.places(ids), *centre) >= min_km
            ids, cosine = ids[far], cosine[far]
        ids, cosine = np.concatenate([self.id, ids]), np.concatenate([self.cosine, cosine])
        order = np.lexsort((ids, -cosine))[:top]
        return _Best(ids[order], cosine[order])


def _cosines(ids: np.ndarray, vectors: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids with data, and the cosine of each with `unit`."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    kept = np.isfinite(lengths) & (lengths > 0)
    return ids[kept], vectors[kept].astype(np.float64) @ unit / lengths[kept]


def km_between(lon: np.ndarray, lat: np.ndarray, lon0: np.ndarray, lat0: np.ndarray) -> np.ndarray:
    """(N,) great-circle distances."""
    from dsengine.corpus.sphere import arc_km, unit_vectors

    return arc_km(np.linalg.norm(unit_vectors(lon, lat) - unit_vectors(lon0, lat0), axis=1))
