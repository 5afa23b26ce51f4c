"""SSL4EO-S12 1.1: [train|val/]{S1GRD,S2L2A,S2L1C}/<name>.zarr.zip, each a Zarr v2 group of 64 locations at four times.

Arrays used: bands (sample, time, band, y, x), band, sample, time_ (sample, time), center_lon, center_lat, crs, x_, y_ and, with S2, cloud_mask.
All bands are on one 10 m grid, which S1 and S2 share. Files are read in place.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.offset import Decision
from dsengine.corpus.build.shard import Block
from dsengine.corpus.schema import SPLITS, ArraySpec
from dsengine.corpus.sources import _patches
from dsengine.corpus.sources._zarrzip import ZarrZip
from dsengine.errors import RunError, UsageError

SIDE = 264
FOLDERS = {"l2a": "S2L2A", "l1c": "S2L1C", "s1": "S1GRD"}
MAX_SAMPLES, MAX_TIMES = 4096, 64
# Values of cloud_mask: 0 land, 1 water, 2 snow, 3 thin cloud, 4 thick cloud, 5 cloud shadow, above: no data.
CLOUDS, LAST_CLASS = (3, 4), 5
_MAX_IDS = 1 << 20
# The published means of the release lie 1000 above those of release 1.0 in every band (B10: 1022 and 22), with a spread of 46 in B10.
STATED = Decision(-1000, "release 1.1 carries the +1000 in all products (published mean of B10: 1022)")


class Part(NamedTuple):
    """One zip file a sensor, for the same locations."""

    name: str
    split: int  # position in schema.SPLITS; -1 where the folders do not say
    files: dict[str, str]  # sensor -> path
    num_samples: int
    num_times: int


def find_parts(root: Path, level: str, sensors: Sequence[str]) -> list[Part] | None:
    """The zip files below `root`, checked by their directories and headers; None when `root` is not of this release.

    UsageError when a file lacks its partner, is damaged, or does not hold what its partner holds.
    """
    folders = {sensor: FOLDERS[level if sensor == "s2" else "s1"] for sensor in sensors}
    groups = [(root / name, SPLITS.index(name)) for name in ("train", "val") if (root / name).is_dir()] or [(root, -1)]
    if not any((folder / name).is_dir() for folder, _ in groups for name in folders.values()):
        return None
    parts = []
    for folder, split in groups:
        names = {sensor: _names(folder / sub) for sensor, sub in folders.items()}
        every = sorted(set().union(*names.values()))
        for name in every:
            if lacking := [sensor for sensor in sensors if name not in names[sensor]]:
                raise UsageError(f"{folder / folders[lacking[0]] / name} is missing: {name} needs a file in {' and '.join(folders.values())}")
            parts.append(_part(name, split, {sensor: str(folder / sub / name) for sensor, sub in folders.items()}))
    if not parts:
        raise UsageError(f"--root {root}: no .zarr.zip file in {' or '.join(folders.values())}")
    return parts


@dataclass(frozen=True)
class Cut:
    """Consecutive rows as a Block. Rows go file by file, within a file season by season, so that a shard is one time of one file."""

    parts: tuple[Part, ...]
    specs: Sequence[ArraySpec]
    seasons: int | None
    shift: int
    given: bool  # the folders say the split

    def counts(self) -> np.ndarray:
        """Rows of each file."""
        return np.array([part.num_samples * min(part.num_times, self.seasons or part.num_times) for part in self.parts], np.int64)

    def __call__(self, rows: range) -> Block:
        ends = np.cumsum(self.counts())
        blocks, row = [], rows.start
        while row < rows.stop:
            at = int(np.searchsorted(ends, row, side="right"))
            stop = min(rows.stop, int(ends[at]))
            first = int(ends[at] - self.counts()[at])
            blocks.append(self.read(self.parts[at], np.arange(row - first, stop - first)))
            row = stop
        return _joined(blocks)

    def read(self, part: Part, rows: np.ndarray) -> Block:
        """Rows of one file, counted in it."""
        at = np.stack([rows % part.num_samples, rows // part.num_samples], axis=1)  # sample, time
        main = self.specs[0].sensor
        with ZarrZip(Path(part.files[main])) as file:
            index, times = _index(file, part, at, main)
            found = {main: take_bands(file, self.specs[0], at)}
            index["cloud_fraction"] = _cloud_fraction(file, at) if main == "s2" else np.full(len(at), np.nan)
        if len(self.specs) > 1:
            with ZarrZip(Path(part.files["s1"])) as file:
                radar = file.times("time_")
                nearest = np.abs(radar[at[:, 0]].astype(np.float64) - times[:, None].astype(np.float64)).argmin(axis=1)  # unknown is far
                found["s1"] = take_bands(file, self.specs[1], np.stack([at[:, 0], nearest], axis=1))
                index["time_s1"] = radar[at[:, 0], nearest]
        if self.given:
            index["split"] = np.full(len(at), part.split, np.uint8)
        return self._block(found, index)

    def _block(self, found: dict[str, np.ndarray], index: dict[str, Any]) -> Block:
        arrays, saturated, faults = {}, {}, []
        for name, raw in found.items():
            if name == "s1":
                done = [_patches.s1_stored(raw[i], name=f"{index['source'][i]} season {index['season'][i]}") for i in range(len(raw))]
                faults = [fault for _, _, lines in done for fault in lines]
            else:
                done = [_patches.s2_stored(plane, shift=self.shift) for plane in raw]
            arrays[name], saturated[name] = np.stack([one[0] for one in done]), sum(one[1] for one in done).tolist()
        return Block(arrays, index, {}, saturated, faults)


def take_bands(file: ZarrZip, spec: ArraySpec, at: np.ndarray) -> np.ndarray:
    """(n, C, 264, 264) numbers at (sample, time), bands in the order of `spec` by the names that the file gives."""
    names = [canonical(name) for name in file.whole("band", limit=64).tolist()]
    if sorted(names) != sorted(spec.bands):
        raise RunError(f"{file.path}: band is {', '.join(names)}; legal: {', '.join(spec.bands)}")
    if (held := file.header("bands").shape[2]) != len(names):
        raise RunError(f"{file.path}: bands has {held} bands, band names {len(names)}")
    raw = file.take("bands", at)
    return raw[:, [names.index(band) for band in spec.bands]]


def canonical(name: str) -> str:
    """vv -> VV."""
    return str(name).upper()


def look(cut: Cut, *, choice: str) -> Decision | None:
    """Reads one patch of up to 16 files: S1 must be dB, and the S2 offset of the release is decided (None without S2)."""
    samples = {}
    for at in _patches.sampled(len(cut.parts)):
        part = cut.parts[at]
        for spec in cut.specs:
            try:
                with ZarrZip(Path(part.files[spec.sensor])) as file:
                    raw = take_bands(file, spec, np.array([[at % part.num_samples, at % part.num_times]]))[0]
            except RunError as error:
                raise UsageError(str(error)) from error
            if spec.sensor == "s1":
                _patches.check_db(raw.astype(np.float32), name=part.files["s1"])
            else:
                samples[part.files["s2"]] = _patches.valid_numbers(raw, spec.bands)
    return _patches.released_offset(choice, STATED, samples) if samples else None


def _names(folder: Path) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if name.endswith(".zarr.zip")}
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed: {error.strerror}") from error


def _part(name: str, split: int, files: dict[str, str]) -> Part:
    """One file a sensor, by headers and location ids; UsageError names what is damaged or differs."""
    found: dict[str, tuple[tuple[int, ...], list[str]]] = {}
    for sensor, path in files.items():
        try:
            with ZarrZip(Path(path)) as file:
                ids = file.whole("sample", limit=MAX_SAMPLES).tolist()
                found[sensor] = _checked_shape(file, len(ids), kind="iu" if sensor == "s2" else "f"), ids
        except RunError as error:
            raise UsageError(str(error)) from error
    (shape, ids), *others = found.values()
    if any(other_ids != ids for _, other_ids in others):
        raise UsageError(f"{files['s1']} does not hold the locations of {files['s2']} in their order")
    return Part(name, split, files, shape[0], shape[1])


def _checked_shape(file: ZarrZip, count: int, *, kind: str) -> tuple[int, ...]:
    """Shape of bands, after all headers were found to agree with it and with `count` locations."""
    header = file.header("bands")
    shape = header.shape
    if len(shape) != 5 or shape[0] != count or shape[1] > MAX_TIMES or shape[3:] != (SIDE, SIDE):
        raise RunError(f"{file.path}: bands has shape {shape}; legal: ({count} samples, up to {MAX_TIMES} times, bands, {SIDE}, {SIDE})")
    if header.dtype.kind not in kind:
        raise RunError(f"{file.path}: bands is {header.dtype}; legal: {'integers' if kind == 'iu' else 'floating point'}")
    legal = {"center_lon": shape[:1], "center_lat": shape[:1], "crs": shape[:1], "time_": shape[:2], "x_": (shape[0], SIDE), "y_": (shape[0], SIDE),
             **({"cloud_mask": (*shape[:2], SIDE, SIDE)} if "cloud_mask" in file else {})}
    for name, expected in legal.items():
        held = file.header(name)
        if held.shape != expected or held.dtype.kind not in "iuf":
            raise RunError(f"{file.path}: {name} is {held.dtype} of shape {held.shape}; legal: numbers of shape {expected}")
    return shape


def _index(file: ZarrZip, part: Part, at: np.ndarray, main: str) -> tuple[dict[str, Any], np.ndarray]:
    """Index columns of rows at (sample, time), and the times of the main sensor."""
    sample, time = at.T
    column = lambda name: file.whole(name, limit=_MAX_IDS)[sample]  # noqa: E731
    x, y = column("x_")[:, :2], column("y_")[:, :2]  # pixel centres
    times = file.times("time_")[sample, time]
    lon, lat, ids = column("center_lon"), column("center_lat"), column("sample")
    index = {"lon": lon, "lat": lat, "split_lon": lon, "split_lat": lat, "epsg": column("crs").astype(np.int32),
             "x": x[:, 0] - (x[:, 1] - x[:, 0]) / 2, "y": y[:, 0] - (y[:, 1] - y[:, 0]) / 2, f"time_{main}": times,
             "location": ids, "season": time.astype(np.uint8), "source": np.array([f"{part.name}:{name}" for name in ids])}
    return index, times


def _cloud_fraction(file: ZarrZip, at: np.ndarray) -> np.ndarray:
    """(n,) float32 of pixels in thin or thick cloud among those with data, NaN where there is no mask or no data."""
    if "cloud_mask" not in file:
        return np.full(len(at), np.nan, np.float32)
    mask = file.take("cloud_mask", at)
    known = (mask <= LAST_CLASS).sum(axis=(1, 2))
    return np.where(known, np.isin(mask, CLOUDS).sum(axis=(1, 2)) / np.maximum(known, 1), np.nan).astype(np.float32)


def _joined(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]
    return Block({name: np.concatenate([b.arrays[name] for b in blocks]) for name in first.arrays},
                 {name: np.concatenate([b.index[name] for b in blocks]) for name in first.index}, {},
                 {name: np.sum([b.saturated[name] for b in blocks], axis=0).tolist() for name in first.saturated},
                 [fault for b in blocks for fault in b.faults])
