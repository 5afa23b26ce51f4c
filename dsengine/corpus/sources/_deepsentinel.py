"""DeepSentinel samples as patches: arrays of height, width, band become stored planes, in the patch's own UTM grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.corpus.build.npz import npz_shape, read_npz
from dsengine.corpus.build.offset import Decision
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.raster import lonlat
from dsengine.corpus.build.writer import Block
from dsengine.corpus.schema import S1_BANDS, S2_BANDS, UNKNOWN_TIME, ArraySpec
from dsengine.corpus.sources import _deepsentinel_meta as meta
from dsengine.corpus.sources._deepsentinel_labels import Features, LandCover
from dsengine.corpus.sources._deepsentinel_tree import Record
from dsengine.corpus.sources._patches import Cell, check_db, collate, s1_spec, s2_specs
from dsengine.corpus.sources._stored import Stored, store_s1, store_s2
from dsengine.errors import RunError, UsageError

MAX_SIDE = 2048  # pixels
DTYPES = ("float32", "float64", "uint16", "int16")
# Descartes Labs names bands by colour. This order is that of the published arrays; alpha is 0 where there is no data.
DL_S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12", "alpha")
COLUMNS = {"idx": "int64", "scene_s2": "str", "scene_s1": "str"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """How the samples of one data set are read."""

    folder: Path
    provider: str
    specs: tuple[ArraySpec, ...]
    size: int
    s2_shift: int = 0
    s1_range: tuple[float, float] | None = None  # DL: dB of the numbers 0 and 255
    tiles: Mapping[int, Grid] = field(default_factory=dict)  # of tiles.json
    scenes: Mapping[int, tuple[str, str]] = field(default_factory=dict)  # of the side table
    land_cover: LandCover | None = None
    features: Features | None = None

    def path(self, record: Record, suffix: str, *, stem: str | None = None) -> Path:
        """A file of the sample; `suffix` with its separator."""
        return self.folder / str(record.idx) / f"{stem or record.image}{suffix}"

    def described(self, record: Record) -> tuple[dict[str, Any], Grid, Grid | None]:
        """(metadata, grid of the patch, grid of its tile where one is recorded)."""
        if self.provider == "GEE":
            path = self.path(record, "_meta.json")
            content = meta.read_json(path)
            tile = content.get("tile")
            grid, other = meta.gee_grid(content, self.size, path), meta.tile_grid(tile, self.size, path) if tile else self.tiles.get(record.idx)
        else:
            path = self.path(record, "_tile.json")
            content = {}
            grid = other = meta.tile_grid(meta.read_json(path), self.size, path) if path.exists() else self.tiles[record.idx]
        meta.check_point(grid, record.point, path)
        return content, grid, other

    def raw_s2(self, record: Record, content: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """(C, H, W) numbers of the stored bands, and where alpha says that there is no data."""
        path = self.path(record, "_S2arr.npz")
        names = list(DL_S2) if self.provider == "DL" else content.get("S2_bands", list(S2_BANDS))
        found = meta.channels(names, next(spec.bands for spec in self.specs if spec.sensor == "s2"), path)
        x_HWC = read_npz(path, "arr", shape=(self.size, self.size, len(names)), dtypes=DTYPES)
        empty = x_HWC[..., DL_S2.index("alpha")] == 0 if self.provider == "DL" else None
        return np.moveaxis(x_HWC[..., found], -1, 0), empty

    def raw_s1(self, record: Record, content: Mapping[str, Any]) -> np.ndarray:
        """(2, H, W) numbers as published."""
        path = self.path(record, "_S1arr.npz")
        names = list(S1_BANDS) if self.provider == "DL" else content.get("S1_bands", list(S1_BANDS))
        x_HWC = read_npz(path, "arr", shape=(self.size, self.size, len(names)), dtypes=DTYPES)
        return np.moveaxis(x_HWC[..., meta.channels(names, S1_BANDS, path)], -1, 0)

    def cell(self, record: Record) -> Cell:
        """One patch."""
        content, grid, tile = self.described(record)
        stored: dict[str, Stored] = {}
        faults = []
        for spec in self.specs:
            if spec.sensor == "s2":
                raw, empty = self.raw_s2(record, content)
                stored[spec.name] = store_s2(raw, shift=self.s2_shift, empty_HW=empty)
            else:
                raw = self.raw_s1(record, content)
                low, high = self.s1_range or (0.0, 255.0)  # of GEE: dB as they are
                stored[spec.name] = store_s1(raw, gain=(high - low) / 255, shift=low)
            if bad := int((~np.isfinite(raw)).sum()):
                faults.append(f"{record.image} {spec.name}: {bad} values are not finite and count as nodata")
        labels: dict[str, np.ndarray] = {}
        if self.land_cover:
            labels["corine"] = self.land_cover.read(self.path(record, "", stem=record.land_cover), grid, tile)
        if self.features:
            labels["osm"], repaired = self.features.read(self.path(record, ".geojson", stem=record.features), grid, tile)
            faults += repaired
        return Cell({name: x.values for name, x in stored.items()}, {name: x.saturated for name, x in stored.items()},
                    self._columns(record, content, grid), labels, faults)

    def _columns(self, record: Record, content: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
        half = grid.size * grid.resolution_m / 2
        lon, lat = lonlat(f"EPSG:{grid.epsg}", [grid.x + half], [grid.y - half])
        midnight = int(datetime(record.day.year, record.day.month, record.day.day, tzinfo=UTC).timestamp()) * 10**9
        known = self.scenes.get(record.idx, ("", ""))
        scenes = meta.scenes(content.get("S2_name") or known[0], content.get("S1_name") or known[1], midnight)
        sensors = {spec.sensor for spec in self.specs}
        return {"lon": lon[0], "lat": lat[0], "epsg": grid.epsg, "x": grid.x, "y": grid.y, "source": f"{record.idx}/{record.image}",
                "time_s2": scenes.time_s2 if "s2" in sensors else UNKNOWN_TIME, "time_s1": scenes.time_s1 if "s1" in sensors else UNKNOWN_TIME,
                "idx": record.idx, "scene_s2": scenes.s2, "scene_s1": scenes.s1}


@dataclass(frozen=True)
class Cut:
    """Reads the samples of consecutive rows."""

    sample: Sample
    records: Sequence[Record]
    splits: Sequence[int] | None

    def __call__(self, rows: range) -> Block:
        """See `build.plan.Plan`."""
        block = collate([self.sample.cell(record) for record in self.records[rows.start:rows.stop]])
        if self.splits is None:
            return block
        return block._replace(index={**block.index, "split": np.array(self.splits[rows.start:rows.stop], np.uint8)})


def specs(provider: str, sensors: Sequence[str], *, cirrus: bool) -> tuple[ArraySpec, ...]:
    """Arrays of the corpus: 12 bands of S2, or 13 with the cirrus band of DL, and VV and VH."""
    bands = tuple(band for band in DL_S2[:-1] if band in S2_BANDS or cirrus)
    known = {"s2": s2_specs(bands if provider == "DL" else S2_BANDS, native=False)[0], "s1": s1_spec()}
    return tuple(known[sensor] for sensor in ("s2", "s1") if sensor in sensors)


def open_samples(folder: Path, provider: str, records: Sequence[Record], *, specs: tuple[ArraySpec, ...], s1_range: tuple[float, float] | None,
                 pts: Path | None) -> Sample:
    """How to read `records`, with what tiles.json and the side table `pts` add. UsageError when a sample's place is nowhere recorded."""
    sample = Sample(folder=folder, provider=provider, specs=specs, size=1, s1_range=s1_range)
    size = _patch_size(sample.path(records[0], f"_{specs[0].sensor.upper()}arr.npz"))
    without = [record.idx for record in records if provider == "GEE" or not sample.path(record, "_tile.json").exists()]
    try:
        tiles = meta.read_tiles(folder / "tiles.json", without, size)
    except RunError as error:
        raise UsageError(str(error)) from error
    if provider == "DL" and (lost := [idx for idx in without if idx not in tiles]):
        raise UsageError(f"{folder}: sample {lost[0]} has neither a _tile.json nor an entry in tiles.json, so its place is unknown")
    scenes = meta.read_points(pts) if pts else {}
    return replace(sample, size=size, tiles=tiles, scenes={record.idx: scenes[record.idx] for record in records if record.idx in scenes})


def _patch_size(path: Path) -> int:
    """Pixels a side of the array in the first file. UsageError when it is no square of a legal size."""
    try:
        shape = npz_shape(path, "arr", max_bytes=MAX_SIDE**2 * len(DL_S2) * 8)
    except RunError as error:
        raise UsageError(str(error)) from error
    if len(shape) != 3 or shape[0] != shape[1] or not 1 <= shape[0] <= MAX_SIDE:
        raise UsageError(f"{path} has an array of shape {shape}; legal: (side, side, bands) with a side up to {MAX_SIDE} pixels")
    return shape[0]


def look(sample: Sample, records: Sequence[Record], rows: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
    """Reads some samples in full: {file: {band: valid S2 numbers}}. UsageError when one is not what it should be, or S1 is in other units."""
    seen = {}
    for row in rows:
        record = records[row]
        try:
            sample.cell(record)
            content, _, _ = sample.described(record)
            for spec in sample.specs:
                if spec.sensor == "s1":
                    _check_s1(sample, record, sample.raw_s1(record, content))
                else:
                    raw, empty = sample.raw_s2(record, content)
                    valid = np.isfinite(raw) & (raw != 0) & (True if empty is None else ~empty)
                    seen[record.image] = {band: plane[mask] for band, plane, mask in zip(spec.bands, raw, valid, strict=True)
                                          if band in S2_BANDS}  # DL's cirrus band is not the dark one of L1C
        except RunError as error:
            raise UsageError(str(error)) from error
    return seen


def stated_offset(records: Sequence[Record]) -> Decision:
    """What the dates say of the +1000 of baseline 04.00, which came on 2022-01-25; the samples' pixels may contradict."""
    latest = max(record.day for record in records)
    if latest.isoformat() < "2022-01-25":
        return Decision(0, f"all dates up to {latest}, before baseline 04.00")
    return Decision(None, f"dates up to {latest}, after baseline 04.00")


def _check_s1(sample: Sample, record: Record, raw: np.ndarray) -> None:
    path, values = sample.path(record, "_S1arr.npz"), raw[np.isfinite(raw) & (raw != 0)]
    if sample.s1_range is None:
        check_db(values, name=str(path))
    elif values.size and not (values.min() >= 0 and values.max() <= 255):
        raise UsageError(f"{path}: values from {values.min():g} to {values.max():g}; legal with --dl-s1-range: 0..255")
