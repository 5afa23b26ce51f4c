"""Lists and reads EuroSAT's multispectral patches.

Each file has 13 unnamed bands with B8A last: B01..B08, B09, B10, B11, B12, B8A. The corpus has them in spectral order.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsengine.corpus.build.offset import Decision
from dsengine.corpus.build.raster import lonlat
from dsengine.corpus.build.shard import Block
from dsengine.corpus.schema import SPLITS
from dsengine.corpus.sources import _patches
from dsengine.corpus.sources._patches import L1C_BANDS, Cell
from dsengine.errors import RunError, UsageError, nearest

SIDE = 64
FILE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
CLASSES = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential", "River", "SeaLake")
MAX_DEPTH = 7  # folders below the root: the original archive nests its images five deep
_ORDER = [FILE_BANDS.index(band) for band in L1C_BANDS]


def find(root: Path) -> list[Path]:
    """Every image by class and number. UsageError names an unknown class, or a file in another class's folder."""
    folder = _image_folder(root, depth=0)
    if folder is None:
        raise UsageError(f"--root {root} holds neither class folders such as {CLASSES[0]} nor files such as {CLASSES[0]}_1.tif, up to {MAX_DEPTH} deep")
    groups = [(path.name, path) for path in sorted(folder.iterdir()) if path.is_dir()] or [("", folder)]
    found: dict[tuple[int, int], Path] = {}
    for group, path in groups:
        for name in sorted(os.listdir(path)):
            if not name.lower().endswith((".tif", ".tiff")):
                continue
            key = _class_and_number(path / name, group)
            if key in found:
                raise UsageError(f"{path / name} and {found[key]} are the same patch")
            found[key] = path / name
    if not found:
        raise UsageError(f"{folder} holds no .tif file")
    return [found[key] for key in sorted(found)]


def class_of(path: Path) -> int:
    """Position in CLASSES, from the file name."""
    return CLASSES.index(path.stem.rpartition("_")[0])


def read_splits(where: Path, files: Sequence[Path], *, partial: bool) -> tuple[list[Path], np.ndarray]:
    """The listed files and their split codes. `where` is a folder, or a folder and the beginning of the three names, eurosat or eurosat-spatial.

    Lists name patches as .jpg or .tif, a line each. UsageError when a list lacks a file, or a listed file is not there, unless `partial`.
    """
    codes: dict[str, int] = {}
    for code, path in enumerate(_lists(where)):
        for line in path.read_text().split():
            stem = line.rpartition("/")[2].rpartition(".")[0]
            if codes.setdefault(stem, code) != code:
                raise UsageError(f"{path}: {line} is in the {SPLITS[codes[stem]]} list too")
    stems = {path.stem for path in files}
    for what, names in (("are in no list", sorted(stems - codes.keys())), ("are not on disk", sorted(codes.keys() - stems))):
        if names and not partial:
            raise UsageError(f"--splits {where}: {len(names)} patches {what}, such as {names[0]}; legal: lists of these files, or --partial")
    kept = [path for path in files if path.stem in codes]
    if not kept:
        raise UsageError(f"--splits {where}: none of the listed patches is on disk")
    return kept, np.array([codes[path.stem] for path in kept], np.uint8)


@dataclass(frozen=True)
class Cut:
    """Consecutive images as a Block."""

    files: tuple[str, ...]
    split: np.ndarray | None
    shift: int  # what is added to the numbers

    def __call__(self, rows: range) -> Block:
        return _patches.collate([self._cell(row) for row in rows])

    def _cell(self, row: int) -> Cell:
        path = Path(self.files[row])
        raw, place = read(path)
        stored, cut = _patches.s2_stored(raw, shift=self.shift)
        t = place.transform
        lon, lat = lonlat(place.crs, [t.c + t.a * SIDE / 2], [t.f + t.e * SIDE / 2])
        index = {"lon": lon[0], "lat": lat[0], "epsg": place.crs.to_epsg() or 0, "x": t.c, "y": t.f, "source": str(path)}
        given = {} if self.split is None else {"split": self.split[row]}
        return Cell({"s2": stored}, {"s2": cut}, {**index, **given}, {"scene": np.uint8(class_of(path))}, [])


def read(path: Path) -> tuple[np.ndarray, _patches.Place]:
    """(13, 64, 64) numbers in the order of L1C_BANDS, and the grid. RunError naming a damaged file."""
    raw, place = _patches.read_raster(path, side=SIDE, count=len(FILE_BANDS), kind="iu")
    return raw[_ORDER], place


def decide_offset(files: Sequence[Path], choice: str) -> Decision:
    """The S2 offset by the pixels of 16 images: B10 of top-of-atmosphere products is near zero, so it shows an offset plainly."""
    samples = {}
    for row in _patches.sampled(len(files)):
        try:
            samples[str(files[row])] = _patches.valid_numbers(read(files[row])[0], L1C_BANDS)
        except RunError as error:
            raise UsageError(str(error)) from error
    return _patches.released_offset(choice, Decision(None, "the files have no metadata"), samples)


def _image_folder(folder: Path, *, depth: int) -> Path | None:
    """The first folder, by name, that holds class folders or images of a class."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        raise UsageError(f"--root {folder} cannot be listed: {error.strerror}") from error
    if any(name in CLASSES if is_dir else _is_image(name) for name, is_dir in names.items()):
        return folder
    if depth == MAX_DEPTH:
        return None
    below = (_image_folder(folder / name, depth=depth + 1) for name in sorted(names) if names[name])
    return next((found for found in below if found is not None), None)


def _is_image(name: str) -> bool:
    return re.fullmatch(rf"({'|'.join(CLASSES)})_\d+\.tiff?", name) is not None


def _class_and_number(path: Path, group: str) -> tuple[int, int]:
    name, _, number = path.stem.rpartition("_")
    if name not in CLASSES or not number.isdecimal():
        raise UsageError(f"{path}: {name or path.stem!r} is not a class; {nearest(name, CLASSES)}")
    if group and group != name:
        raise UsageError(f"{path} lies in the folder of {group}; legal: {name}")
    return CLASSES.index(name), int(number)


def _lists(where: Path) -> list[Path]:
    prefixes = [where] if not where.is_dir() else [where / "eurosat", where / "eurosat-spatial"]
    sets = [[Path(f"{prefix}-{split}.txt") for split in SPLITS] for prefix in prefixes]
    whole = [paths for paths in sets if all(path.is_file() for path in paths)]
    if len(whole) != 1:
        what = "both eurosat-*.txt and eurosat-spatial-*.txt" if whole else "no complete set of lists"
        raise UsageError(f"--splits {where}: {what}; legal: a folder with eurosat-train.txt, eurosat-val.txt and eurosat-test.txt, or FOLDER/eurosat-spatial")
    return whole[0]
