"""Which samples a DeepSentinel tree holds: `<dataset>/<idx>/<idx>_<SRC>_<date>_<lon>_<lat><suffix>`, judged by names alone.

SRC is GEE or DL for imagery, LC for land cover, OSMFC for map features. Longitude and latitude are Python's own texts of floats, so they
may have a minus or an exponent, but never an underscore.
"""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from dsengine.errors import UsageError, nearest

PROVIDERS = ("GEE", "DL")
LAND_COVER, FEATURES = "LCarr.npz", ".geojson"


class Record(NamedTuple):
    """One sample. Stems are file names without their suffix, such as 12_GEE_2018-06-01_-1.5_51.25."""

    idx: int
    image: str
    land_cover: str | None
    features: str | None

    @property
    def day(self) -> date:
        """Date of the S2 scene."""
        return date.fromisoformat(self.image.split("_")[2])

    @property
    def point(self) -> tuple[float, float]:
        """Longitude and latitude of the point that was drawn; it lies in the patch, not always in its middle."""
        lon, lat = self.image.split("_")[3:5]
        return float(lon), float(lat)


def find_dataset(root: Path, name: str | None) -> Path:
    """The folder of data set `name`, or of the only one there is."""
    there = sorted(entry.name for entry in _entries(root, "--root") if entry.is_dir() and _holds_samples(root / entry.name))
    if name is None and len(there) == 1:
        return root / there[0]
    if name is None or name not in there:
        found = nearest(name or "", there) if there else "legal: a folder with <dataset>/<idx>/<idx>_GEE_<date>_<lon>_<lat>_S2arr.npz in it"
        raise UsageError(f"--dataset {name}: {found}" if name else f"--root {root} holds {len(there)} data sets, choose with --dataset NAME; {found}")
    return root / name


class Tree(NamedTuple):
    """What lies in the folder of a data set: idx -> SRC -> (stem, suffixes)."""

    folder: Path
    samples: Mapping[int, Mapping[str, tuple[str, frozenset[str]]]]

    def provider(self, chosen: str | None) -> str:
        """Whose imagery to read. UsageError when it is not there, or both are there and none is chosen."""
        there = [name for name in PROVIDERS if any(name in stems for stems in self.samples.values())]
        if chosen is None and len(there) > 1:
            raise UsageError(f"{self.folder} has imagery of {' and '.join(there)}: choose with --provider {'|'.join(there)}")
        if not there or (chosen or there[0]) not in there:
            raise UsageError(f"{self.folder} has no imagery of {chosen or 'any provider'}; it has that of {', '.join(there) or 'none'}")
        return chosen or there[0]

    def has(self, src: str) -> bool:
        """Whether any sample has files of SRC."""
        return any(src in stems for stems in self.samples.values())

    def records(self, provider: str, parts: Sequence[str]) -> tuple[list[Record], dict[int, str]]:
        """(records that have all of `parts`, by idx; {idx: a file that is missing}). Parts are suffixes of imagery, LAND_COVER or FEATURES."""
        records, missing = [], {}
        for idx in sorted(self.samples):
            stems = self.samples[idx]
            lacks = [part for part in parts if part not in stems.get({LAND_COVER: "LC", FEATURES: "OSMFC"}.get(part, provider), ("", ()))[1]]
            if lacks:
                missing[idx] = f"{self.folder.name}/{idx}/{idx}_*{'' if lacks[0] == FEATURES else '_'}{lacks[0]}"
            else:
                records.append(Record(idx, *(stems[src][0] if src in stems else None for src in (provider, "LC", "OSMFC"))))
        return records, missing


def scan(folder: Path) -> Tree:
    """One listing of each sample's folder. UsageError when a name contradicts its folder or two samples share one."""
    return Tree(folder, {int(entry.name): _files(Path(entry.path)) for entry in _entries(folder, "--dataset") if _is_sample(entry)})


def _files(folder: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """SRC -> (stem, suffixes that are there)."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for entry in os.scandir(folder):
        parsed = _parse(entry.name)
        if parsed is None:
            continue
        idx, src, stem, suffix = parsed
        if idx != folder.name:
            raise UsageError(f"{entry.path} is sample {idx} by its name, but lies in the folder of sample {folder.name}")
        known, suffixes = found.get(src, (stem, frozenset()))
        if known != stem:
            raise UsageError(f"{folder} has two samples of {src}: {min(known, stem)} and {max(known, stem)}; legal: one")
        found[src] = stem, suffixes | {suffix}
    return found


def _parse(name: str) -> tuple[str, str, str, str] | None:
    """(idx, SRC, stem, suffix); None for a name of another form, such as that of a log."""
    fields = name.split("_")
    if len(fields) == 5 and fields[4].endswith(FEATURES):
        fields = [*fields[:4], fields[4].removesuffix(FEATURES), FEATURES]
    if len(fields) != 6 or not fields[0].isdecimal() or fields[1] not in (*PROVIDERS, "LC", "OSMFC"):
        return None
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", fields[2]):
        return None
    try:
        lon, lat = float(fields[3]), float(fields[4])
    except ValueError:
        return None
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise UsageError(f"{name}: longitude {lon:g}, latitude {lat:g}; legal: -180..180, -90..90")
    return fields[0], fields[1], "_".join(fields[:5]), fields[5]


def _holds_samples(folder: Path) -> bool:
    return any(_is_sample(entry) for entry in os.scandir(folder))


def _is_sample(entry: os.DirEntry) -> bool:
    return entry.name.isdecimal() and entry.is_dir()


def _entries(folder: Path, flag: str) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise UsageError(f"{flag} {folder}: {error.strerror}") from error
