"""What sources that publish ready-cut patches share: one GeoTIFF a band, native resolution per band group, one decision on the S2 offset."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

from dsengine.corpus.build import offset
from dsengine.corpus.build.offset import Decision
from dsengine.corpus.build.raster import Radiometry, to_stored
from dsengine.corpus.build.shard import Block
from dsengine.corpus.schema import S1_BANDS, UNKNOWN_TIME, ArraySpec
from dsengine.errors import RunError, UsageError

# (array, factor, bands): bands of one ground resolution, 10, 20 and 60 m, in spectral order.
GROUPS = (("s2", 1, ("B02", "B03", "B04", "B08")), ("s2_20m", 2, ("B05", "B06", "B07", "B8A", "B11", "B12")), ("s2_60m", 6, ("B01", "B09", "B10")))
L1C_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
S1_DB = Radiometry(gain=100.0, bias=0.0)  # dB to dB x 100
CIRRUS = (950, 1150)  # numbers between which the floor of B10 shows the offset
MAX_BLOCK = 4096  # pixels a side of an internal tile
MAX_JSON = 1 << 20  # bytes
SAMPLES = 16  # patches that a plan opens to check units and offset


class Place(NamedTuple):
    """The grid that files of one patch share."""

    crs: CRS
    transform: Affine


def s2_specs(bands: Sequence[str], *, native: bool, level: str = "l2a") -> tuple[ArraySpec, ...]:
    """Arrays for the named S2 bands: by ground resolution if `native`, else one array on the 10 m grid."""
    units = {"l2a": "reflectance", "l1c": "TOA reflectance"}[level]
    groups = GROUPS if native else (("s2", 1, tuple(bands)),)
    return tuple(ArraySpec(name=name, sensor="s2", bands=held, units=units, scale_factor=1e-4, factor=factor)
                 for name, factor, group in groups if (held := tuple(band for band in group if band in bands)))


def s1_spec() -> ArraySpec:
    """VV and VH in dB."""
    return ArraySpec(name="s1", sensor="s1", bands=S1_BANDS, units="dB", scale_factor=0.01)


def s2_stored(raw_CHW: np.ndarray, *, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """int16 reflectance x 10000 of digital numbers plus `shift`, and saturated values a band; the number 0 is no data."""
    return to_stored(raw_CHW, Radiometry(gain=1.0, bias=0.0, shift=shift, nodata=0.0))


def read_bands(paths: Sequence[Path], *, side: int, kind: str) -> tuple[np.ndarray, Place]:
    """(C, side, side) raw numbers of one-band files on one grid, and the grid. `kind` is the legal dtype kinds: "iu" or "f".

    Raises RunError naming the file that is missing, damaged, or has another shape, dtype or grid.
    """
    planes, places = [], []
    for path in paths:
        raw, place = read_raster(path, side=side, count=1, kind=kind)
        planes.append(raw[0])
        places.append(place)
        if place != places[0]:
            raise RunError(f"{path} is not on the grid of {paths[0]}: {tuple(place.transform)[:6]} in {place.crs}, "
                           f"legal: {tuple(places[0].transform)[:6]} in {places[0].crs}")
    return np.stack(planes), places[0]


def read_raster(path: Path, *, side: int, count: int, kind: str) -> tuple[np.ndarray, Place]:
    """(count, side, side) raw numbers of one file and its grid. Raises RunError naming the file."""
    try:
        with rasterio.open(path, driver="GTiff") as file:
            place = Place(file.crs, file.transform)
            if (file.count, file.shape) != (count, (side, side)):  # before it is read: the header may claim any size
                raise RunError(f"{path} has {file.count} bands of {file.height} x {file.width} pixels; legal: {count} of {side} x {side}")
            if max(max(block) for block in file.block_shapes) > MAX_BLOCK:  # GDAL allocates whole blocks
                raise RunError(f"{path} has internal tiles of {max(max(block) for block in file.block_shapes)} pixels; legal: up to {MAX_BLOCK}")
            raw = file.read()
    except rasterio.errors.RasterioIOError as error:
        what = "is missing" if not path.exists() else f"cannot be read as a raster: {error}"
        raise RunError(f"{path} {what}") from error
    if raw.dtype.kind not in kind:
        legal = {"iu": "integers", "f": "floating point"}.get(kind, "numbers")
        raise RunError(f"{path} holds {raw.dtype}; legal: {legal}")
    if place.crs is None:
        raise RunError(f"{path} has no CRS")
    return raw, place


def s1_stored(raw_CHW: np.ndarray, *, name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """int16 dB x 100, saturated values a band, and a fault line when pixels are not finite; those become no data."""
    bad = int((~np.isfinite(raw_CHW)).sum())
    stored, cut = to_stored(raw_CHW, S1_DB)
    return stored, cut, [f"{name}: {bad} of {raw_CHW.size} S1 values are not finite, stored as no data"] if bad else []


def check_db(raw: np.ndarray, *, name: str) -> None:
    """UsageError when radar numbers cannot be dB: backscatter in dB has negative values, power and digital numbers have none."""
    values = raw[np.isfinite(raw)]
    if values.size and (np.median(values) >= 10 or values.min() >= 0):
        raise UsageError(f"{name} is not in dB: its values run from {values.min():g} to {values.max():g}; legal: the release as published, dB")


def pixels_say(sample: Mapping[str, np.ndarray]) -> Decision:
    """The S2 offset by the valid numbers of one patch or several, band by band, or None and why.

    Top-of-atmosphere products have B10, where clear air reflects next to nothing: the darkest of it is the offset itself. Without B10 the
    rules are those of `build.offset`.
    """
    cirrus = sample.get("B10")
    if cirrus is None or not cirrus.size:
        return offset.from_pixels(sample)
    floor = float(np.percentile(cirrus, 1))
    if floor < offset.DARK:
        return Decision(0, f"pixels: the darkest 1 % of B10 end at {floor:.0f}")
    if CIRRUS[0] <= floor <= CIRRUS[1]:
        return Decision(offset.BASELINE_OFFSET, f"pixels: the darkest 1 % of B10 end at {floor:.0f}")
    return Decision(None, f"pixels: the darkest 1 % of B10 end at {floor:.0f}, neither below {offset.DARK} nor from {CIRRUS[0]} to {CIRRUS[1]}")


def released_offset(choice: str, stated: Decision, samples: Mapping[str, Mapping[str, np.ndarray]]) -> Decision:
    """Offset of all files of a release. `choice` is auto or a whole number; `samples` are valid numbers of some patches, band by band.

    auto takes what is known of the release (`stated`) unless pixels contradict it; where nothing is known, the pixels of all samples must agree.
    """
    if offset.is_number(choice):
        return Decision(int(choice), f"--s2-offset {choice}")
    if choice != "auto":
        raise UsageError(f"--s2-offset {choice}: legal: auto or a whole number, 0 or -1000")
    found = {name: pixels_say(sample) for name, sample in samples.items()}
    pooled = pixels_say({band: np.concatenate([sample[band] for sample in samples.values()]) for band in next(iter(samples.values()))})
    plain = {name: decision for name, decision in found.items() if decision.offset is not None}
    wanted = stated if stated.offset is not None else next(iter(plain.values()), pooled)
    if wanted.offset is None:
        raise UsageError(f"--s2-offset auto cannot tell ({wanted.reason}); legal: 0 or -1000")
    # A single patch can prove that there is no offset. That there is one is an inference, so that all patches together must show it,
    # unless they have B10.
    strong = {name: d for name, d in plain.items() if d.offset == 0 or "B10" in samples[name]} | {"all patches together": pooled}
    for name, decision in strong.items():
        if decision.offset not in (None, wanted.offset):
            raise UsageError(f"--s2-offset auto: {wanted.offset} by {wanted.reason}, but {decision.offset} for {name} by {decision.reason}; "
                             "legal: 0 or -1000")
    return Decision(wanted.offset, f"{wanted.reason}; {len(samples)} patches looked at: {pooled.reason}")


def valid_numbers(raw_CHW: np.ndarray, bands: Sequence[str]) -> dict[str, np.ndarray]:
    """Band -> numbers that are not the 0 of no data."""
    return {band: plane[plane != 0] for band, plane in zip(bands, raw_CHW, strict=True)}


def sampled(num_rows: int) -> list[int]:
    """Up to 16 rows, evenly spaced."""
    return sorted({int(row) for row in np.linspace(0, num_rows - 1, min(num_rows, SAMPLES))})


def digest(names: Iterable[str]) -> str:
    """sha256 of a listing: what `made_by` keeps of it, so that a stopped build does not continue on other files."""
    sha = hashlib.sha256()
    for name in names:
        sha.update(name.encode() + b"\n")
    return sha.hexdigest()


def nanoseconds(text: str) -> int:
    """ns UTC of yyyymmddThhmmss or yyyy-mm-dd hh:mm:ss (T or blank); int64 min when the text is neither."""
    for form in ("%Y%m%dT%H%M%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()) * 10**9
        except ValueError:
            continue
    return UNKNOWN_TIME


def listed(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; no file is opened and none is looked at."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object. ValueError or OSError when it is none."""
    with open(path, "rb") as file:
        content = file.read(MAX_JSON + 1)
    parsed = json.loads(content) if len(content) <= MAX_JSON else None
    if not isinstance(parsed, dict):
        raise ValueError(f"not a JSON object of up to {MAX_JSON} bytes")
    return parsed


class Cell(NamedTuple):
    """One patch on its way into a Block."""

    arrays: dict[str, np.ndarray]  # name -> (C, H, W) int16
    saturated: dict[str, np.ndarray]  # name -> (C,)
    index: dict[str, Any]
    labels: dict[str, Any]
    faults: list[str]


def collate(cells: Sequence[Cell]) -> Block:
    """The block of consecutive patches."""
    first = cells[0]
    return Block(arrays={name: np.stack([cell.arrays[name] for cell in cells]) for name in first.arrays},
                 index={name: np.array([cell.index[name] for cell in cells]) for name in first.index},
                 labels={name: np.stack([cell.labels[name] for cell in cells]) for name in first.labels},
                 saturated={name: sum(cell.saturated[name] for cell in cells).tolist() for name in first.saturated},
                 faults=[fault for cell in cells for fault in cell.faults])
