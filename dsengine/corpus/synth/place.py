"""Where and when a patch is taken, and what its region is like: everything about a patch that is not a pixel.

Patches come in clusters of 16 on a jittered 4 x 4 grid with 12 km between them, so that a patch has neighbours tens of
kilometres away that share its region, season and sky. Clusters are uniform by area over land.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from rasterio.warp import transform

from dsengine.corpus.synth.lattice import draw
from dsengine.corpus.synth.spectra import BARE, BROADLEAF, BUILT, CROP, GRASS, NEEDLELEAF, SNOW, WATER, WETLAND
from dsengine.corpus.synth.worlds import World, world_of

CLUSTER = 16
_GRID_M, _JITTER_M = 12_000, 4_000
_DAY_NS = 86_400 * 10**9
_START_NS = 17_897 * _DAY_NS  # 2019-01-01
_DAYS = 3 * 365

# Boxes (west, east, south, north; degrees) that lie on land but for lakes: a mask coarse enough to be code.
LAND = np.array([
    (-120, -104, 34, 58), (-104, -96, 30, 62), (-96, -90, 31, 46), (-104, -99, 20, 26), (-66, -50, -22, -6), (-66, -60, -36, -22),
    (-74, -68, -8, 2), (1, 20, 47, 50), (14, 40, 50.5, 53.5), (-6, -2, 38.5, 42), (13.5, 16, 58.5, 64), (24, 40, 54, 58),
    (42, 58, 50, 62), (60, 130, 52, 64), (58, 80, 44, 50), (102, 116, 27, 42), (90, 116, 42, 50), (76, 80, 15, 27), (80, 100, 31, 37),
    (52, 59, 31, 36), (42, 49, 20, 28), (32, 41, 38, 40), (101, 104, 15, 19), (-6, 30, 13, 28), (16, 29, -26, -6), (31, 37, -12, 2),
    (15, 30, -4, 12), (36, 41, 6, 12), (120, 144, -30, -20), (143, 149, -35, -22),
], dtype=np.float64)

# Share of clusters led by each class; SNOW only where it is cold, NEEDLELEAF only away from the tropics.
_THEMES = (WATER, BROADLEAF, NEEDLELEAF, GRASS, CROP, BUILT, BARE, WETLAND, SNOW)
_SHARES = np.cumsum([0.10, 0.14, 0.13, 0.15, 0.18, 0.10, 0.11, 0.07, 0.02])


class Place(NamedTuple):
    """One patch's place, times and weather."""

    lon: float  # of its centre, degrees
    lat: float
    epsg: int
    x: float  # upper-left corner, metres
    y: float
    time_s2: int  # ns UTC
    time_s1: int
    theme: int  # class that leads the patch
    green: float  # season, 0 dormant to 1 in full leaf
    cold: float  # above 0: snow may lie


def places(seed: int, cluster: int, size: int, *, world: int = 1) -> list[Place]:
    """The 16 places of a cluster; size in pixels of 10 m."""
    return list(_places(seed, cluster, size, world))


@lru_cache(maxsize=64)
def _places(seed: int, cluster: int, size: int, world: int) -> tuple[Place, ...]:
    lon0, lat0 = _centre(seed, cluster)
    epsg = (32600 if lat0 >= 0 else 32700) + int((lon0 + 180) // 6) + 1
    (x0,), (y0,) = transform("EPSG:4326", f"EPSG:{epsg}", [lon0], [lat0])
    jitter = np.array([[_draw(seed, 2, cluster, 2 * k + axis) for axis in range(2)] for k in range(CLUSTER)]) * 2 - 1
    grid = np.array([(k % 4, k // 4) for k in range(CLUSTER)]) - 1.5
    centre = np.round((np.array([x0, y0]) + grid * _GRID_M + jitter * _JITTER_M) / 10) * 10
    lons, lats = transform(f"EPSG:{epsg}", "EPSG:4326", centre[:, 0].tolist(), centre[:, 1].tolist())
    corner = centre + np.array([-1, 1]) * (size // 2 * 10)
    constants = world_of(world)
    return tuple(_place(seed, cluster, k, lons[k], lats[k], epsg, corner[k], constants) for k in range(CLUSTER))


def _place(seed: int, cluster: int, k: int, lon: float, lat: float, epsg: int, corner: np.ndarray, world: World) -> Place:
    taken = k if world.own_date else 0
    day = int(_draw(seed, 3, cluster, taken) * _DAYS)
    overpass_ns = int((10.5 - lon / 15) * 3600) * 10**9
    time_s2 = _START_NS + day * _DAY_NS + overpass_ns
    lag = 2 * _draw(seed, 4, cluster, taken) - 1
    green, cold = _season(day, lat)
    return Place(lon, lat, epsg, float(corner[0]), float(corner[1]), time_s2, time_s2 + int(lag * 2.9 * 86_400) * 10**9,
                 _theme(seed, cluster, k, lat, cold, world.strays), green, cold)


def _centre(seed: int, cluster: int) -> tuple[float, float]:
    """Uniform by area over LAND, kept half a cluster away from the boxes' edges."""
    margin = np.array([0.45, -0.45])
    south, north = np.sin(np.radians(LAND[:, 2:] + 0.27 * np.sign(margin))).T
    shares = np.cumsum((LAND[:, 1] - LAND[:, 0]) * (north - south))
    box = int(np.searchsorted(shares, _draw(seed, 0, cluster, 0) * shares[-1], side="right"))
    lat = np.degrees(np.arcsin(south[box] + _draw(seed, 1, cluster, 1) * (north[box] - south[box])))
    west, east = LAND[box, :2] + margin / np.cos(np.radians(lat))
    return round(float(west + _draw(seed, 1, cluster, 0) * max(east - west, 0.0)), 4), round(float(lat), 4)


def _season(day: int, lat: float) -> tuple[float, float]:
    """Greenness in [0, 1] and cold (in units of 10 K below freezing); the tropics hardly change."""
    summer = np.cos(2 * np.pi * (day % 365 - 200) / 365) * (1 if lat >= 0 else -1)
    swing = min(1.0, max(0.15, abs(lat) / 50))
    celsius = 27 - 0.45 * abs(lat) + 14 * swing * summer
    return round(float(1 - swing * (0.5 - 0.5 * summer)), 4), round(float(-celsius / 10), 4)


def _theme(seed: int, cluster: int, k: int, lat: float, cold: float, strays: float) -> int:
    """The cluster's class, but for `strays` of the patches, which have one of their own."""
    own = _draw(seed, 5, cluster, k) < strays
    drawn = _draw(seed, 6, cluster, k) if own else _draw(seed, 7, cluster, 0)
    theme = _THEMES[min(int(np.searchsorted(_SHARES, drawn, side="right")), len(_THEMES) - 1)]
    if theme == NEEDLELEAF and abs(lat) < 30:
        return BROADLEAF
    return BARE if theme == SNOW and cold < 0 else theme


def _draw(seed: int, site: int, i: int, j: int) -> float:
    return float(draw(seed, 1000 + site, i, j))
