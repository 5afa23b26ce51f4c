"""A procedural land-cover world: Sentinel-1/2 patches with class maps, from a seed and nothing else.

Every pixel is a function of (world, seed, row, size): not of the machine, the number of workers or the block. A class is a mixture
recipe and a texture, not a colour: light, season, air, soil, moisture and cover vary within a class as much as they do between
classes. Constants are frozen under the number of their world (`worlds`); `tests/test_synth.py` holds hashes.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import LabelSpec, standard_layout
from dsengine.corpus.synth import patterns, sensors, surface
from dsengine.corpus.synth.lattice import blur, draw, fractal
from dsengine.corpus.synth.place import CLUSTER, Place, places
from dsengine.corpus.synth.spectra import CLASSES, ENDMEMBERS
from dsengine.corpus.synth.worlds import World, world_of
from dsengine.errors import UsageError

WORLD_VERSION = 1  # the world of who names none
LABEL = LabelSpec(name="landcover", kind="classmap", classes=CLASSES)
F = np.float32


class Patch(NamedTuple):
    """One patch of the world."""

    s2: np.ndarray  # (12, H, W) int16, reflectance x 10000
    s1: np.ndarray  # (2, H, W) int16, dB x 100
    landcover: np.ndarray  # (H, W) uint8, the ground below any cloud
    place: Place
    cloud_fraction: float


def synthesize(out: str | os.PathLike[str], *, num_patches: int, size: int = 128, seed: int = 0, world: int = WORLD_VERSION, workers: int = 1,
               progress: Callable[[int, int], None] | None = None, overwrite: bool = False) -> Path:
    """Write a corpus of `num_patches` patches of `size` px at 10 m to `out`; returns its path.

    world: its version, of `worlds`. workers: threads; the corpus does not depend on them. progress is called with (done, total). An interrupted call continues.
    Raises UsageError for sizes below 16 px, for numbers out of range, or when `out` holds something else.
    """
    for name, value, least, most in (("num_patches", num_patches, 1, 2**31), ("size", size, 16, 2048), ("seed", seed, 0, 2**32 - 1),
                                     ("workers", workers, 1, 256)):
        if not least <= value <= most:
            raise UsageError(f"{name}: {value} is not legal, it must be in [{least}, {most}]")
    world_of(world)
    layout = standard_layout(size, labels=(LABEL,))
    made_by = {"source": "synth", "world_version": world, "seed": seed, "size": size}
    with (CorpusWriter(out, layout=layout, num_patches=num_patches, made_by=made_by, overwrite=overwrite) as writer,
          ThreadPoolExecutor(workers) as pool):
        while writer.next_row < num_patches:
            rows = range(writer.next_row, writer.next_row + writer.next_count)
            writer.append(_block(list(pool.map(lambda row: make_patch(seed, row, size, world=world), rows))))
            if progress is not None:
                progress(writer.next_row, num_patches)
        return writer.finish()


def make_patch(seed: int, row: int, size: int, *, world: int = WORLD_VERSION) -> Patch:
    """The patch of `row`."""
    constants = world_of(world)
    place = places(seed, row // CLUSTER, size, world=world)[row % CLUSTER]
    x0, y0 = int(place.x // 10), int(-place.y // 10)
    salt = (place.epsg - 32600) * 1000  # other zones are other ground
    drawn = _draws(seed, row // CLUSTER, row, constants.shared)
    relief = fractal(size, size, seed, 11 + salt, x0, y0, 256, 6)
    landcover = surface.class_map(seed, salt, x0, y0, size, place.theme, place.cold, relief, *constants.purity)
    texture = surface.textures(seed, salt, x0, y0, size)
    shares = _shares(seed, salt, x0, y0, place, drawn, landcover, texture, constants)
    light = _light(relief, constants.light, next(drawn), next(drawn), next(drawn))
    s2, s1 = np.empty((12, size, size), np.int16), np.empty((2, size, size), np.int16)
    spectra = sensors.patch_spectra(seed, 81, row // CLUSTER, row, *constants.soils, constants.calibration)
    cloud, covered = _clouds(seed, salt, x0, y0, size, next(drawn), next(drawn), constants.clear)
    lit = patterns.lit(light, landcover, seed, salt, row, (x0, y0), constants.pattern)
    sensors.optical(shares, spectra, lit, sensors.haze(constants.haze * next(drawn) * next(drawn)), cloud, seed, row, s2)
    sensors.radar(shares, texture, lit, _radar_gain(drawn, constants.radar), seed, row, s1)
    _cut_edges(drawn, s2, s1)
    return Patch(s2, s1, landcover, place, covered)


def _draws(seed: int, cluster: int, row: int, share: float) -> Iterator[np.float32]:
    """Endless numbers in [0, 1): `share` of the cluster's and the rest of the patch's own, so neighbours are alike."""
    k = 0
    while True:
        shared, own = draw(seed, 91, cluster, k), draw(seed, 92, row, k)
        yield F(share) * shared + F(1 - share) * own
        k += 1


def _shares(seed: int, salt: int, x0: int, y0: int, place: Place, drawn: Iterator[np.float32], landcover: np.ndarray,
            texture: np.ndarray, world: World) -> np.ndarray:
    size = landcover.shape[0]
    slope = int(next(drawn) * 9) - 4
    wide = 8 + int(next(drawn) * 16)
    field, stage, across = surface.parcels(seed, 1 + salt, x0, y0, size, 2 * wide, wide, slope, slope)
    house, _, _ = surface.parcels(seed, 7 + salt, x0, y0, size, 4, 3, slope, slope)
    _, streets, _ = surface.parcels(seed, 9 + salt, x0, y0, size, 9, 2, slope, slope)
    gain = np.array([_between(world.contrast, next(drawn)), _between(world.cover, next(drawn)), next(drawn),
                     F(0.15) + F(0.85) * next(drawn), F(0.1) + next(drawn), next(drawn)],
                    np.float32)
    out = np.empty((len(ENDMEMBERS), size, size), np.float32)
    surface.abundances(landcover, texture, house, stage, across, streets, F(place.green), gain, world.rows, out)
    blur(out)  # what the optics and the resampling leave of a pixel
    return out


def _light(relief: np.ndarray, heights: tuple[float, float], level: np.float32, roughness: np.float32, side: np.float32) -> np.ndarray:
    """(H, W) float32 illumination: the sun's height, and slopes towards and away from it."""
    light = np.full(relief.shape, _between(heights, level), np.float32)
    strength = F(3) * roughness * roughness * (F(1) if side < F(0.5) else F(-1))
    light[:, 1:] += np.clip(strength * (relief[:, 1:] - relief[:, :-1]), F(-0.45), F(0.45))
    return light


def _clouds(seed: int, salt: int, x0: int, y0: int, size: int, sky: np.float32, height: np.float32, clear: float) -> tuple[np.ndarray, float]:
    """Cloud share of each pixel (negative in shadow) and the covered fraction; skies drawn below `clear` have none."""
    if sky < F(clear):
        return np.zeros((size, size), np.float32), 0.0
    shift = 4 + int(height * 16)
    field = fractal(size + shift, size + shift, seed, 13 + salt, x0, y0, 64, 5) - F(0.55) + F(1.1) * (sky - F(clear))
    opacity = np.clip(field * F(4), F(0), F(0.95))
    cloud = opacity[:size, :size]
    shadow = opacity[shift:, shift:] * (cloud <= 0)
    return np.where(shadow > 0, -shadow, cloud), float(np.mean(cloud > F(0.3)))


def _radar_gain(drawn: Iterator[np.float32], all_over: tuple[float, float]) -> np.ndarray:
    """(4,) power factors: whole (-3.5 .. +1.5 dB in world 1), soil 1/3 .. 3, wind 1/3 .. 6, volume 2/3 .. 3/2, by squares rather than pow()."""
    whole, moist, wind, volume = (next(drawn) for _ in range(4))
    return np.array([_between(all_over, whole), F(0.35) + F(2.6) * moist * moist, F(0.3) + F(5.5) * wind * wind,
                     F(0.65) + F(0.85) * volume], np.float32)


def _between(least_and_more: tuple[float, float], drawn: np.float32) -> np.float32:
    return F(least_and_more[0]) + F(least_and_more[1]) * drawn


def _cut_edges(drawn: Iterator[np.float32], s2: np.ndarray, s1: np.ndarray) -> None:
    """One S2 patch in fourteen and one S1 patch in twenty lie across the edge of a swath."""
    size = s2.shape[1]
    for image, probability in ((s2, 0.07), (s1, 0.05)):
        chance, angle, position = next(drawn), int(next(drawn) * 9) - 4, next(drawn)
        # Draws lean to the middle, so the tails are thinner than they look.
        if chance < F(probability * 2.2):
            sensors.cut_edge(image, 8, angle, int((0.25 + 0.7 * position) * 8 * size))


def _block(patches: list[Patch]) -> Block:
    """64 patches as the writer wants them."""
    columns = {name: [getattr(p.place, name) for p in patches] for name in ("lon", "lat", "epsg", "x", "y", "time_s2", "time_s1")}
    index = {**{name: np.array(values) for name, values in columns.items()},
             "cloud_fraction": np.array([p.cloud_fraction for p in patches], np.float32), "source": ["synth"] * len(patches)}
    return Block(arrays={"s2": np.stack([p.s2 for p in patches]), "s1": np.stack([p.s1 for p in patches])}, index=index,
                 labels={"landcover": np.stack([p.landcover for p in patches])})
