"""What differs between the versions of the world. Each is frozen: a new one is a new line of WORLDS, with hashes in `tests/test_synth.py`.

Version 1: neighbours share season, sky and soil, but often not their commonest class, and patches are mixtures. The means and deviations of
the bands tell that class about as well as a network that was trained on 2,000 labelled patches: a weak instrument for methods that learn from images.

Version 2: a region's patches share their class and hardly anything else. Each has its own date, light, haze, soils and calibration, and more of
each, as scenes of many dates have; patches are purer, and patterns within them stronger. It was chosen by one thing: that a network trained on
the labels clears those statistics by far (docs/methods.md).

Version 3: as version 2, with a class told by the pattern that it has on the ground, of any brightness and colour: each band's gain and the pattern's strength
in it are the patch's own. A network finds such a class in 200 steps, which version 2's mixtures do not allow. How it was chosen: docs/methods.md.
"""

from typing import NamedTuple

from dsengine.errors import UsageError


class World(NamedTuple):
    """Constants of one version; pairs are the least value and what a draw in [0, 1) adds to it."""

    shared: float  # of every draw, the part that a cluster's patches share
    strays: float  # share of patches with a class of their own instead of their cluster's
    own_date: bool  # a date for each patch instead of one for its cluster
    purity: tuple[float, float]  # bound beyond which moisture and use make another class of the leading one
    light: tuple[float, float]  # height of the sun
    haze: float  # the most of it
    soils: tuple[float, float]  # spread of each endmember's level and slope, of the cluster and of the patch
    calibration: float  # spread of each optical band's gain in a patch
    radar: tuple[float, float]  # power gain of both polarisations
    contrast: tuple[float, float]  # of patterns within a class
    cover: tuple[float, float]  # of vegetation
    rows: int  # of a field, in 32 px
    clear: float = 0.6  # draw of the sky above which there are clouds
    pattern: tuple[float, float] = (0.0, 0.0)  # strength of the class's pattern in each band, as a share of its brightness


WORLDS = {
    1: World(shared=0.65, strays=0.25, own_date=False, purity=(0.14, 0.36), light=(0.6, 0.65), haze=1.2, soils=(0.25, 0.125), calibration=0.0,
             radar=(0.45, 0.95), contrast=(0.25, 1.3), cover=(0.35, 0.85), rows=32),
    2: World(shared=0.15, strays=0.1, own_date=True, purity=(0.5, 0.3), light=(0.3, 1.3), haze=4.0, soils=(0.1, 0.2), calibration=0.08,
             radar=(0.1, 2.5), contrast=(1.2, 0.6), cover=(0.1, 1.3), rows=8),
    3: World(shared=0.15, strays=0.1, own_date=True, purity=(0.8, 0.3), light=(0.5, 1.0), haze=0.5, soils=(0.1, 0.3), calibration=0.8,
             radar=(0.1, 2.5), contrast=(0.1, 0.1), cover=(0.1, 1.3), rows=8, clear=0.9, pattern=(0.1, 0.7)),
}


def world_of(version: int) -> World:
    """The constants of `version`. Raises UsageError for one that does not exist."""
    if version not in WORLDS:
        raise UsageError(f"world: {version} is not legal: {', '.join(map(str, WORLDS))}")
    return WORLDS[version]
