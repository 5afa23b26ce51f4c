"""Labels of DFC2020 and its duplicates: the patches of the seasonal folders that are also in validation or test, found by their pixels."""

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import rasterio
from rasterio.windows import Window

from dsengine.corpus.sources._land_cover import DFC, DFC_OF_IGBP, DROPPED_OF_8, IGBP, Layer, layer, mapped
from dsengine.corpus.sources._roi import SIDE, Patch, find_patches, missing_parts
from dsengine.errors import UsageError

ROWS = 16  # read at a time: 16 rows of 13 bands are 104 KiB


def layers(classes: int, lc: str) -> list[Layer]:
    """Label dfc with 10 or 8 classes, and what `lc` (igbp, dfc, none) makes of the land cover."""
    legal = DFC if classes == 10 else {value: name for value, name in DFC.items() if value not in DROPPED_OF_8}
    fine = mapped("dfc", legal, {value: value for value in DFC}, part="dfc")
    coarse = {"igbp": [layer("igbp", IGBP, part="lc")], "dfc": [mapped("lc_dfc", legal, dict(enumerate(DFC_OF_IGBP)), part="lc")], "none": []}
    return [fine, *coarse[lc]]


def select(root: Path, folders: Sequence[str], *, parts: Sequence[str], skip_incomplete: bool) -> tuple[list[Patch], dict[str, int]]:
    """All patches of the folders that have a file for each of `parts`, and how many were left out."""
    every = find_patches(root, folders)
    missing = dict(missing_parts(root, every, parts))
    if missing and not skip_incomplete:
        patch, part = next(iter(missing.items()))
        raise UsageError(f"{len(missing)} of {len(every)} patches lack a file; the first is {root / patch.path(part)}. "
                         f"Give --skip-incomplete to leave them out{', or --lc none' if part == 'lc' else ''}")
    patches = [patch for patch in every if patch not in missing]
    if not patches:
        raise UsageError(f"--root {root}: no complete patch in {', '.join(folders)}")
    return patches, {"a file is missing": len(missing)}


def distinct(root: Path, patches: Sequence[Patch]) -> tuple[list[Patch], dict[Patch, Patch]]:
    """(patches with pixels of their own, {duplicate: the earlier patch with the same S1 and S2 pixels}).

    Only patches whose first 16 rows of S2 agree are read in full, so a set without duplicates costs a sixteenth of its S2 bytes.
    """
    alike: dict[bytes, list[Patch]] = {}
    for patch in patches:
        alike.setdefault(hashlib.blake2b(next(_strips(root, patch, "s2"))).digest(), []).append(patch)
    firsts: dict[bytes, Patch] = {}
    duplicates = {}
    for patch in (patch for group in alike.values() if len(group) > 1 for patch in group):
        content = _content(root, patch)
        if content in firsts:
            duplicates[patch] = firsts[content]
        firsts.setdefault(content, patch)
    return [patch for patch in patches if patch not in duplicates], duplicates


def check_places(root: Path, patches: Sequence[Patch], sites: Mapping[tuple[str, str], tuple[float, float]]) -> None:
    """UsageError when patches are to be split by place and a scene does not say where it lies."""
    for patch in patches:
        if math.isnan(sites[patch.site][0]):
            raise UsageError(f"{root / patch.path('s2')} has no CRS, so it cannot be split by place; legal: --split given")


def _content(root: Path, patch: Patch) -> bytes:
    digest = hashlib.blake2b()
    for part in ("s2", "s1"):
        for strip in _strips(root, patch, part):
            digest.update(strip)
    return digest.digest()


def _strips(root: Path, patch: Patch, part: str) -> Iterator[bytes]:
    """The pixels of a file, 16 rows of all bands at a time. UsageError naming the file when it cannot be read."""
    path = root / patch.path(part)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                if file.shape != (SIDE, SIDE) or file.count > 13:
                    raise UsageError(f"{path} has {file.width} x {file.height} pixels, {file.count} bands; legal: {SIDE} x {SIDE}, 13 or 2 bands")
                for row in range(0, SIDE, ROWS):
                    yield file.read(window=Window(0, row, SIDE, ROWS)).tobytes()
    except rasterio.errors.RasterioIOError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
