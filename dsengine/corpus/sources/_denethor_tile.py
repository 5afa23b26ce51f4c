"""Finding the files of a DENETHOR tile in either published layout, and checking that they fit each other."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsengine.corpus.build.eopatch_pickle import Box, box, times
from dsengine.corpus.build.npy import Npy
from dsengine.corpus.schema import S2_BANDS, UNKNOWN_TIME
from dsengine.corpus.sources._denethor_pack import Pack, text_lines
from dsengine.errors import UsageError

MLHUB = "dlr_fusion_competition_germany"
YEARS = {"train": 2018, "test": 2019}
DAY_NS = 86_400 * 10**9


class Names(NamedTuple):
    """Files of the Sentinel-2 pack."""

    bands: str
    clp: str


class Tile(NamedTuple):
    """One tile, on disk."""

    layout: str  # original | mlhub
    pack: Pack
    names: Names
    box: Box
    bands: Npy  # (T, H, W, 12), as declared
    time_s2: np.ndarray  # (T,) int64 ns UTC, int64 min unknown
    planet: tuple[tuple[int, str], ...]  # (ns of the day, file), ascending
    labels: Path


def find(root: Path, tile: str, *, dates: Path | None) -> Tile:
    """The tile's files. UsageError naming what is missing or does not fit."""
    layout, pack_path, planet, labels = _mlhub(root, tile) if any(root.glob(f"{MLHUB}_{tile}_*")) else _original(root, tile)
    pack = Pack(pack_path)
    names = Names("bands.npy", "clp.npy") if layout == "mlhub" else Names("data/BANDS.npy", "data/CLP.npy")
    bounds = box(pack.small("bbox.pkl"), str(pack_path / "bbox.pkl"))
    bands, clp = pack.array(names.bands), pack.array(names.clp)
    if len(bands.shape) != 4 or bands.shape[3] != len(S2_BANDS) or 0 in bands.shape:
        raise UsageError(f"{bands.path}: shape {bands.shape}; legal: (T, H, W, 12) with bands {', '.join(S2_BANDS)}")
    if clp.shape != (*bands.shape[:3], 1):
        raise UsageError(f"{clp.path}: shape {clp.shape}; legal: {(*bands.shape[:3], 1)}, as {names.bands} has")
    for side, length in ((bounds.max_y - bounds.min_y, bands.shape[1]), (bounds.max_x - bounds.min_x, bands.shape[2])):
        if abs(side / length - 10.0) > 0.01:
            raise UsageError(f"{pack_path / 'bbox.pkl'}: {side:g} m for {length} pixels; legal: 10 m a pixel")
    return Tile(layout, pack, names, bounds, bands, _s2_times(pack, bands.shape[0], dates), planet, labels)


def _mlhub(root: Path, tile: str) -> tuple[str, Path, tuple[tuple[int, str], ...], Path]:
    source = root / f"{MLHUB}_{tile}_source_sentinel_2"
    pack = _only(sorted(path for path in source.glob(f"{MLHUB}_{tile}_source_sentinel_2_33N_*") if path.is_dir()), f"{source}/..._33N_..._<year>")
    planet = root / f"{MLHUB}_{tile}_source_planet"
    days = _dated(sorted(planet.glob(f"{MLHUB}_{tile}_source_planet_33N_*/sr.tif")), key=lambda path: path.parent.name[-10:], where=planet)
    labels = _only(sorted((root / f"{MLHUB}_{tile}_labels").glob("*/labels.geojson")), f"{root / f'{MLHUB}_{tile}_labels'}/.../labels.geojson")
    return "mlhub", pack, days, labels


def _original(root: Path, tile: str) -> tuple[str, Path, tuple[tuple[int, str], ...], Path]:
    folders = [root / f"s2_{tile}", root / "S2" / f"s2_{tile}"]
    packs = [path for folder in folders for path in (folder, folder.with_suffix(".zip")) if path.exists()]
    planet = root / "PlanetL3H" / tile.capitalize() / "PF-SR"
    days = _dated(sorted(planet.glob("*.tif")), key=lambda path: path.stem, where=planet)
    labels = root / f"crops_{tile}_{YEARS[tile]}.geojson"
    if not labels.is_file():
        raise UsageError(f"{labels}: there is no such file; legal: a folder as published by DENETHOR or by Radiant MLHub ({MLHUB}_{tile}_...)")
    return "original", _only(packs[:1], f"{root}/s2_{tile}.zip"), days, labels  # a folder beside its zip is that zip unpacked


def _only(found: list[Path], legal: str) -> Path:
    if len(found) != 1:
        raise UsageError(f"{legal}: {len(found)} found; legal: 1, as published")
    return found[0]


def _dated(files: list[Path], *, key: Callable[[Path], str], where: Path) -> tuple[tuple[int, str], ...]:
    days: dict[int, str] = {}
    for path in files:
        match = re.search(r"(\d{4})[-_]?(\d{2})[-_]?(\d{2})", key(path))
        try:
            day = int(np.datetime64("-".join(match.groups()), "ns").astype(np.int64)) if match else UNKNOWN_TIME
        except ValueError:
            day = UNKNOWN_TIME
        if day == UNKNOWN_TIME or day in days:
            wrong = "a second file for its day" if day in days else "no date in its name"
            raise UsageError(f"{path}: {wrong}; legal: one file a day, named by its date")
        days[day] = str(path)
    if not days:
        raise UsageError(f"{where}: no Planet file in it; legal: a file a day, as published")
    return tuple(sorted(days.items()))


def _s2_times(pack: Pack, steps: int, dates: Path | None) -> np.ndarray:
    if dates is not None:
        try:
            found = np.array(text_lines(dates), "M8[ns]").astype(np.int64)
        except ValueError as error:
            raise UsageError(f"--s2-dates {dates}: {error}; legal: one ISO date a line") from error
    else:
        name = next((name for name in ("timestamp.pkl", "timestamps.pkl") if pack.has(name)), None)
        if name is None:
            return np.full(steps, UNKNOWN_TIME, np.int64)
        found = times(pack.small(name), str(pack.path / name))
    if len(found) != steps:
        raise UsageError(f"{dates or pack.path}: {len(found)} times for {steps} Sentinel-2 steps; legal: one a step")
    return found
