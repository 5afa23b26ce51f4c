"""Great circles by straight lines: points as unit vectors, so that a plain k-d tree is right at the date line and at the poles.

An arc of d km is the chord c = 2 sin(d / 2R) of the unit sphere, and the order of arcs is the order of chords.
"""

import numpy as np

EARTH_RADIUS_KM = 6371.0088  # mean radius of WGS 84; a degree is 111.195 km


def unit_vectors(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """(N, 3) float64 on the unit sphere from degrees."""
    east, north = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)


def chord(km: float) -> float:
    """The chord of an arc; half the circumference and more is the whole diameter."""
    return float(2.0 * np.sin(min(km / (2.0 * EARTH_RADIUS_KM), np.pi / 2)))


def arc_km(chords: np.ndarray) -> np.ndarray:
    """The arcs of chords, float64. Exact to 1e-9 km up to a quarter of the globe, and to a metre on its far side."""
    return 2.0 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chords / 2.0, 1.0))
