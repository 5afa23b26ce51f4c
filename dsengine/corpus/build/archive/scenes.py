"""Which two scenes make a pair for a patch: inside both footprints, close in time, one drawn at random.

A decision is a function of (seed, row) and of what the archive lists; the journal keeps it, so that a build continues with the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from dsengine import noise
from dsengine.corpus.build import geography, utm
from dsengine.corpus.build.dates import DAY_NS, Window
from dsengine.corpus.build.optional import need
from dsengine.corpus.build.plan import Grid

SITE = "archive.match"  # whose noise the choice among pairs is


class Scene(NamedTuple):
    """One acquisition in an archive."""

    id: str
    time: int  # ns UTC, begin of the acquisition
    footprint: Mapping[str, Any]  # GeoJSON in degrees
    same: tuple[str, ...]  # equal for versions of one acquisition
    version: tuple[str, ...]  # the highest of them is taken
    payload: dict[str, Any]  # JSON: what the source needs to read it
    tile: tuple[int, float, float, float, float] | None = None  # EPSG, left, bottom, right, top of its raster, where that is known
    unfit: str = ""  # why it is no candidate


Find = Callable[[str, Grid, Window], Sequence[Scene]]  # sensor, patch, time -> scenes listed there


@dataclass(frozen=True)
class Points:
    """Patches around points drawn over a region."""

    region: geography.Region
    seed: int
    parity: bool
    size: int
    resolution_m: float
    lock: Lock = field(default_factory=Lock, compare=False)

    def grid(self, row: int, attempt: int) -> Grid:
        """Every attempt is another place."""
        with self.lock:  # prepared polygons build their index at first use, and threads share them
            lon, lat = geography.points(self.region, np.array([row]), seed=self.seed, attempt=attempt, parity=self.parity)
        return utm.patch_at(float(lon[0]), float(lat[0]), size=self.size, resolution_m=self.resolution_m)

    def window(self, row: int, attempt: int, num_windows: int) -> int:
        """Rows go round the date windows, so that each gets its share; another attempt stays in the window."""
        return row % num_windows


@dataclass(frozen=True)
class Lattice:
    """Patches that are given."""

    grids: Sequence[Grid]

    def grid(self, row: int, attempt: int) -> Grid:
        """The place stays."""
        return self.grids[row]

    def window(self, row: int, attempt: int, num_windows: int) -> int:
        """Another attempt goes on to the next date window."""
        return (row + attempt) % num_windows


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is looked for at each row."""

    places: Points | Lattice
    windows: Sequence[Window]
    sensors: tuple[str, ...]
    max_gap_ns: int
    attempts: int
    seed: int


def decide(row: int, wanted: Wanted, find: Find) -> dict[str, Any]:
    """JSON: row, attempt, grid and per sensor a scene's id, time and payload; or row and `why` when no attempt finds a pair."""
    why: dict[str, int] = {}
    for attempt in range(wanted.attempts):
        grid = wanted.places.grid(row, attempt)
        window = wanted.windows[wanted.places.window(row, attempt, len(wanted.windows))]
        pairs, reason = _pairs(grid, window, wanted, find)
        if pairs:
            draw = noise.words(seed=wanted.seed, site=SITE, step=attempt, ids=np.array([row]), blocks=np.array([0]))[0, 0, 0]
            chosen = pairs[int(noise.to_range(draw, len(pairs)))]
            return {"row": row, "attempt": attempt, "grid": list(grid),
                    **{sensor: {"id": s.id, "time": s.time, **s.payload} for sensor, s in zip(wanted.sensors, chosen, strict=True)}}
        why[reason] = why.get(reason, 0) + 1
    return {"row": row, "why": ", ".join(f"{count} x {reason}" for reason, count in why.items())}


def _pairs(grid: Grid, window: Window, wanted: Wanted, find: Find) -> tuple[list[tuple[Scene, ...]], str]:
    """All pairs in a fixed order, or why there is none. The first sensor's scenes lie in the window, the other's as close as allowed."""
    first, *others = wanted.sensors
    mine, reason = _usable(find(first, grid, window), grid, window, first)
    if not mine:
        return [], reason
    if not others:
        return [(scene,) for scene in mine], ""
    wide = Window(window.start - wanted.max_gap_ns, window.end + wanted.max_gap_ns)
    theirs, reason = _usable(find(others[0], grid, wide), grid, wide, others[0])
    pairs = [(a, b) for a in mine for b in theirs if abs(a.time - b.time) <= wanted.max_gap_ns]
    return pairs, reason or f"no {others[0]} scene within {wanted.max_gap_ns / DAY_NS:g} days"


def _usable(scenes: Sequence[Scene], grid: Grid, window: Window, sensor: str) -> tuple[list[Scene], str]:
    """Scenes that hold the whole patch, one version of each, by id; and the first reason against those that do not when none is left."""
    latest: dict[tuple[str, ...], Scene] = {}
    reasons = [f"no {sensor} scene listed"]
    for scene in sorted(scenes, key=lambda scene: (scene.version, scene.id)):
        if not window.start <= scene.time < window.end:
            continue
        # Sentinel-2 comes on the grid of its zone, and every place has tiles of its own zone: nothing of it is resampled.
        if sensor == "s2" and scene.tile is not None and scene.tile[0] != grid.epsg:
            reasons.append("s2 scene is of another UTM zone")
        elif scene.unfit or not holds(scene, grid):
            reasons.append(f"{sensor} {scene.unfit or 'footprint does not hold the patch'}")
        else:
            latest[scene.same] = scene
    return sorted(latest.values(), key=lambda scene: scene.id), "" if latest else reasons[-1]


def holds(scene: Scene, grid: Grid) -> bool:
    """Whether the whole patch lies in the scene's footprint, and in its raster where that is known and in the patch's zone.

    The footprint's edges are taken as straight in the patch's zone: exact for Sentinel-2, whose footprints are cut along tiles, and
    continuous across the date line, however the longitudes are written there.
    """
    if scene.tile is not None and scene.tile[0] == grid.epsg:
        left, bottom, right, top = utm.bounds(grid)
        if not (scene.tile[1] <= left and scene.tile[2] <= bottom and right <= scene.tile[3] and top <= scene.tile[4]):
            return False
    shapely = need("shapely", "stac")
    try:
        shape = shapely.geometry.shape(scene.footprint)
        area = shapely.transform(shape, lambda xy: np.stack(utm.to_utm(grid.epsg, xy[:, 0], xy[:, 1]), axis=1))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, shapely.GEOSException):
        return False  # no footprint, or one that is no geometry
    if not np.isfinite(shapely.get_coordinates(area)).all():
        return False
    parts = shapely.make_valid(shapely.get_parts(area))
    # Parts that meet at the date line meet to rounding only: a metre closes the seam.
    whole = parts[0] if len(parts) == 1 else shapely.buffer(shapely.union_all(shapely.buffer(parts, 1.0)), -1.0)
    return bool(shapely.covers(whole, shapely.box(*utm.bounds(grid))))
