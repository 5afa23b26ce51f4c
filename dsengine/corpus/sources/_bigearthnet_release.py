"""Which patches a BigEarthNet release holds and where their files lie.

1.0: <S2 root>/<patch>/<patch>_B02.tif, <S1 root>/<patch>/<patch>_VV.tif, and <patch>_labels_metadata.json in each. S1 patches have names
     of their own; their JSON names the S2 patch. S2 names lack the zero padding of times (T93020), so they are not a source of dates.
2.0: <S2 root>/<tile>/<patch>/<patch>_B02.tif, <S1 root>/<scene>/<patch>/<patch>_VV.tif, Reference_Maps/<tile>/<patch>/<patch>_reference_map.tif,
     and metadata.parquet with labels, split, country and the S1 patch of each S2 patch.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.corpus.schema import SPLITS
from dsengine.corpus.sources._patches import listed, read_json
from dsengine.errors import UsageError

TABLE = "metadata.parquet"
NAMES = {("1.0", "s2"): r"S2[AB]_MSIL2A_\d{8}T\d{1,6}_\d+_\d+", ("2.0", "s2"): r"S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d\d[A-Z]{3}_\d+_\d+",
          ("1.0", "s1"): r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_\d\d[A-Z]{3}_\d+_\d+", ("2.0", "s1"): r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_\d\d[A-Z]{3}_\d+_\d+"}


@dataclass(frozen=True, kw_only=True)
class Release:
    """The patches, one entry each in every sequence; it pickles."""

    version: str  # 1.0 or 2.0
    roots: dict[str, Path]  # s2, s1, and maps where there is one
    names: dict[str, tuple[str, ...]]  # sensor -> patch names
    split: np.ndarray | None = None  # (N,) uint8
    hot: np.ndarray | None = None  # (N, 19) uint8; None where labels are in a JSON file of each patch
    columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # country, snow, cloud_or_shadow

    def folder(self, sensor: str, row: int) -> Path:
        """Folder of one patch; `maps` has the names of s2."""
        name = self.names["s2" if sensor == "maps" else sensor][row]
        return self.roots[sensor] / group_of(self.version, sensor, name) / name

    def __len__(self) -> int:
        return len(next(iter(self.names.values())))


def group_of(version: str, sensor: str, name: str) -> str:
    """Folder between a sensor's root and its patches: the tile or scene in release 2.0, none in 1.0."""
    return "" if version == "1.0" else name.rsplit("_", 3 if sensor == "s1" else 2)[0]


def find_roots(root: Path) -> tuple[str, dict[str, Path]]:
    """Version and folders of the sensors below `root`. UsageError when there is no release."""
    if not root.is_dir():
        raise UsageError(f"--root {root} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(child for child in root.iterdir() if child.is_dir()):
        key = "s1" if path.name.startswith("BigEarthNet-S1") else "s2" if re.match(r"BigEarthNet-(S2|v1)", path.name) else None
        key = "maps" if path.name == "Reference_Maps" else key
        if key in found:
            raise UsageError(f"--root {root} holds {found[key].name} and {path.name}; legal: one of them")
        if key:
            found[key] = path
    if not found.keys() & {"s1", "s2"}:
        raise UsageError(f"--root {root} holds no BigEarthNet-v1.0, BigEarthNet-S2... or BigEarthNet-S1... folder")
    version = "2.0" if (root / TABLE).exists() or "maps" in found else "1.0"
    return version, found


def read_v1(roots: dict[str, Path], *, sensors: Sequence[str], splits: Path | None, exclude: frozenset[str], partial: bool) -> Release:
    """Release 1.0. Pairs come from the split tables where they are given, else from one JSON file of each S1 patch."""
    present = {sensor: [name for name in listed(roots[sensor]) if re.fullmatch(NAMES["1.0", sensor], name)] for sensor in sensors}
    for sensor, names in present.items():
        if not names:
            raise UsageError(f"{roots[sensor]} holds no patch folder of release 1.0")
    if splits is not None:
        pairs, codes = _split_rows(splits)
        keep = usable(pairs, present, exclude=exclude, partial=partial, table=splits)
        return Release(version="1.0", roots=roots, split=codes[keep], names={sensor: tuple(np.array(pairs[sensor])[keep].tolist()) for sensor in sensors})
    if len(sensors) == 1:
        return Release(version="1.0", roots=roots, names={sensors[0]: tuple(n for n in present[sensors[0]] if n not in exclude)})
    pairs = _json_pairs(roots["s1"], present["s1"], set(present["s2"]))
    lonely = [name for name in present["s2"] if name not in pairs and name not in exclude]
    if lonely and not partial:
        raise UsageError(f"{len(lonely)} of {len(present['s2'])} S2 patches have no S1 patch in {roots['s1']}, such as {lonely[0]}; legal: "
                         "all pairs, --partial for those that are whole, or --sensors s2")
    kept = [(s2, s1) for s2, s1 in sorted(pairs.items()) if not exclude & {s2, s1}]
    return Release(version="1.0", roots=roots, names={"s2": tuple(s2 for s2, _ in kept), "s1": tuple(s1 for _, s1 in kept)})


def _json_pairs(folder: Path, names: Sequence[str], s2_names: set[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name in names:
        path = folder / name / f"{name}_labels_metadata.json"
        try:
            partner = read_json(path)["corresponding_s2_patch"]
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{path}: no S2 partner can be read ({type(error).__name__}: {error})") from error
        if partner in pairs:
            raise UsageError(f"{path} and {pairs[partner]} name the same S2 patch {partner}")
        if partner in s2_names:
            pairs[partner] = name
    return pairs


def _split_rows(folder: Path) -> tuple[dict[str, list[str]], np.ndarray]:
    """Names of both sensors and split codes from train.csv, val.csv and test.csv, or bigearthnet-train.csv and so on: lines `S2 patch,S1 patch`."""
    rows: list[list[str]] = []
    codes: list[int] = []
    for code, name in enumerate(SPLITS):
        path = next((p for p in (folder / f"{name}.csv", folder / f"bigearthnet-{name}.csv") if p.is_file()), None)
        if path is None:
            raise UsageError(f"--splits {folder}: no {name}.csv or bigearthnet-{name}.csv; legal: a folder with train, val and test")
        with open(path, newline="") as file:
            found = list(csv.reader(file))
        if bad := [number for number, row in enumerate(found, start=1) if len(row) != 2]:
            raise UsageError(f"{path}, line {bad[0]}: {len(found[bad[0] - 1])} columns; legal: S2 patch, S1 patch")
        rows += found
        codes += [code] * len(found)
    return {"s2": [s2 for s2, _ in rows], "s1": [s1 for _, s1 in rows]}, np.array(codes, np.uint8)


def usable(names: Mapping[str, Sequence[str]], present: Mapping[str, Sequence[str]], *, exclude: frozenset[str], partial: bool,
            table: Path) -> np.ndarray:
    """Positions of the pairs that are not excluded; UsageError when files of some are not on disk, unless `partial` leaves those out."""
    wanted = np.array([not exclude & set(pair) for pair in zip(names["s2"], names["s1"], strict=True)], bool)
    there = np.ones(len(wanted), bool)
    for sensor, found in present.items():
        on_disk = set(found)
        there &= np.fromiter((name in on_disk for name in names[sensor]), bool, len(wanted))
    missing = np.flatnonzero(wanted & ~there)
    if not (wanted & there).any() or (missing.size and not partial):
        example = "" if not missing.size else f", such as {names['s2' if 's2' in present else 's1'][missing[0]]}"
        raise UsageError(f"{missing.size} of {wanted.sum()} patches of {table} are not on disk{example}; legal: all of them, "
                         "or --partial for those that are whole")
    return np.flatnonzero(wanted & there)
