"""Which patches of SEN12MS a build takes, and their splits by the published lists."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsengine.corpus.build.restricted_pickle import read_strings
from dsengine.corpus.schema import SPLITS
from dsengine.corpus.sources._land_cover import IGBP, LCCS_LC, LCCS_LU, LCCS_SH, Layer, layer
from dsengine.corpus.sources._roi import FILE, Patch, find_patches, missing_parts
from dsengine.errors import UsageError

# Its S1 file holds NaN; the authors took it out of their own lists (README of their toolbox).
BROKEN = ("ROIs1868_summer", "146", 202)
SCENE = re.compile(r"(ROIs\d{4}_[a-z]+)[/\\_](?:s1|s2|lc)_([A-Za-z0-9]+)/?")
MAX_LIST_BYTES = 64 << 20
TABLES = {"igbp": IGBP, "lccs_lc": LCCS_LC, "lccs_lu": LCCS_LU, "lccs_sh": LCCS_SH}  # in the order of the bands of lc

Key = tuple[str, str, int]  # folder, scene, number


def layers(names: Sequence[str]) -> list[Layer]:
    """The label layers called `names`."""
    return [layer(name, table, part="lc", band=band) for band, (name, table) in enumerate(TABLES.items(), start=1) if name in names]


def select(root: Path, folders: Sequence[str], *, parts: Sequence[str], skip_incomplete: bool) -> tuple[list[Patch], dict[str, int]]:
    """Patches of the seasons without the broken one, and how many were left out for which reason."""
    every = find_patches(root, folders)
    patches = [patch for patch in every if _key(patch) != BROKEN]
    left_out = {"known to be broken (ROIs1868_summer_s1_146_p202)": len(every) - len(patches)}
    missing = dict(missing_parts(root, patches, parts))
    if missing and not skip_incomplete:
        patch, part = next(iter(missing.items()))
        raise UsageError(f"{len(missing)} of {len(patches)} patches lack a file; the first is {root / patch.path(part)}. "
                         "Give --skip-incomplete to leave them out")
    patches = [patch for patch in patches if patch not in missing]
    if not patches:
        raise UsageError(f"--root {root}: no complete patch in {', '.join(folders)}")
    return patches, {**left_out, "a file is missing": len(missing)}


def given(patches: Sequence[Patch], lists: Sequence[str], *, rest: str, val_share: float,
          seed: int) -> tuple[list[Patch], list[int], int]:
    """(patches that are in a list, their splits, how many are in none) for `lists` of SPLIT=FILE.

    Raises UsageError when a list is no list, two lists share a patch, or a patch of a list is not there although its season is.
    """
    assigned: dict[Key, str] = {}
    seasons = {patch.folder for patch in patches}
    scenes: dict[tuple[str, str], list[Key]] = {}
    for patch in patches:
        scenes.setdefault(patch.site, []).append(_key(patch))
    here = {_key(patch) for patch in patches}
    for text in lists:
        split, path = _flag(text)
        for key in _entries(path, scenes, seasons):
            if key not in here:
                raise UsageError(f"--list {text}: {path} names {key[0]}_*_{key[1]}_p{key[2]}, which is not there; legal: patches below --root, "
                                 "and any of seasons that are not chosen")
            if assigned.setdefault(key, split) != split:
                raise UsageError(f"--list {text}: {key[0]}_*_{key[1]}_p{key[2]} is in a list of {assigned[key]}, too")
    if rest == "train":
        assigned = {key: "train" for key in here} | assigned
    kept = [patch for patch in patches if _key(patch) in assigned]
    if not kept:
        raise UsageError(f"--list: no patch of {', '.join(sorted(seasons))} is in a list")
    split_of = {patch: assigned[_key(patch)] for patch in kept}
    _take_val(split_of, val_share, seed)
    return kept, [SPLITS.index(split_of[patch]) for patch in kept], len(patches) - len(kept)


def check_places(root: Path, patches: Sequence[Patch], sites: Mapping[tuple[str, str], tuple[float, float]]) -> None:
    """UsageError when a scene does not say where on Earth it lies: all files of the set do."""
    for patch in patches:
        if math.isnan(sites[patch.site][0]):
            raise UsageError(f"{root / patch.path('s2')} has no CRS; legal: the georeferenced files as published")


def _take_val(split_of: dict[Patch, str], share: float, seed: int) -> None:
    """Whole scenes of train become val, since patches of one scene overlap; the same scenes for any selection of seasons."""
    for patch, split in split_of.items():
        digest = hashlib.blake2b(f"{seed} {'_'.join(patch.site)}".encode(), digest_size=8).digest()
        if split == "train" and int.from_bytes(digest, "little") / math.ldexp(1.0, 64) < share:
            split_of[patch] = "val"


def _key(patch: Patch) -> Key:
    return patch.folder, patch.place, patch.number


def _flag(text: str) -> tuple[str, Path]:
    split, equals, path = text.partition("=")
    if split not in SPLITS or not path:
        raise UsageError(f"--list {text}: legal: SPLIT=FILE with SPLIT one of {', '.join(SPLITS)}")
    return split, Path(path)


def _entries(path: Path, scenes: Mapping[tuple[str, str], Sequence[Key]], seasons: set[str]) -> list[Key]:
    """The patches that a list names, of chosen seasons only, without the broken one; a line may name a whole scene."""
    found: list[Key] = []
    for text in read_strings(path, max_bytes=MAX_LIST_BYTES) if path.suffix == ".pkl" else _lines(path):
        name = text.strip().rpartition("/")[2].rpartition("\\")[2]
        if match := FILE.fullmatch(name if name.endswith(".tif") else f"{name}.tif"):
            keys = [(match[1], match[3], int(match[4]))]
        elif match := SCENE.fullmatch(text.strip()):
            keys = list(scenes.get((match[1], match[2]), ()))
            if not keys and match[1] in seasons:
                raise UsageError(f"{path} names scene {text.strip()}, of which no patch is there")
        else:
            raise UsageError(f"{path}: {text.strip()[:80]!r} is neither a patch, such as ROIs1158_spring_s2_1_p30.tif, nor a scene, such as "
                             "ROIs1158_spring/s2_1")
        found += [key for key in keys if key[0] in seasons and key != BROKEN]
    return found


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise UsageError(f"{path} is larger than {MAX_LIST_BYTES} bytes; legal: a list with one patch a line")
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a list: {error}") from error
