"""Points that are one place: those connected by steps shorter than a distance."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

EARTH_M = 6_371_008.8


def places(lon: np.ndarray, lat: np.ndarray, *, within_m: float) -> np.ndarray:
    """(N,) int64: the lowest row of the place of each point (degrees WGS 84). Safe at the date line and the poles."""
    a, b = np.radians(lon), np.radians(lat)
    xyz = np.stack([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)], axis=1)
    chord = 2 * np.sin(min(within_m / EARTH_M, np.pi) / 2)
    pairs = cKDTree(xyz).query_pairs(chord, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(lon), len(lon)))
    member = connected_components(graph, directed=False)[1]
    _, lowest = np.unique(member, return_index=True)
    return lowest[member].astype(np.int64)
