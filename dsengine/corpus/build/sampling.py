"""Cuts paired sites into patches, a shard at a time, so memory does not grow with the corpus."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import rasterio

from dsengine.corpus.build.grid import BLOCK_DEG, windows
from dsengine.corpus.build.offset import Decision
from dsengine.corpus.build.pairing import Layer, Site
from dsengine.corpus.build.plan import Plan
from dsengine.corpus.build.radiometry import s1_radiometry, s2_offsets, s2_radiometry
from dsengine.corpus.build.raster import Radiometry, RasterInfo, acquired, distinct_values, lonlat, open_raster, position, read_window, to_stored
from dsengine.corpus.build.writer import Block
from dsengine.corpus.labels import class_table
from dsengine.corpus.schema import S1_BANDS, UNKNOWN_EPSG, UNKNOWN_TIME, LabelSpec, standard_layout
from dsengine.errors import UsageError

SENSORS = ("s2", "s1")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chose. None means: as the file declares, else the default of the flag."""

    size: int  # pixels
    stride: int  # pixels
    seed: int  # of the split
    s2_offset: str
    s2_scale: float | None
    s1_scale: float | None
    s1_offset: float | None
    s2_nodata: float | str | None
    s1_nodata: float | str | None
    s1_bands: tuple[str, ...] = S1_BANDS


class Patch(NamedTuple):
    """One window of one site."""

    site: str
    y: int
    x: int


def plan_sites(sites: Mapping[str, Site], options: Options) -> Plan:
    """All windows of all sites, sites by name, windows row by row."""
    patches = [Patch(name, y, x) for name in sites for y, x in _site_windows(name, sites[name], options)]
    offsets = s2_offsets(sites, options.s2_offset, nodata=options.s2_nodata) if "s2" in next(iter(sites.values())) else {}
    radiometry = {name: _radiometry(site, options, offsets.get(name)) for name, site in sites.items()}
    labels = _label_specs(sites)
    first = next(iter(sites.values()))
    layout = standard_layout(options.size, sensors=tuple(first), resolution_m=_resolution(sites), labels=labels)
    arrays = tuple(replace(spec, bands=options.s1_bands) if spec.name == "s1" else spec for spec in layout.arrays)
    return Plan(layout=replace(layout, arrays=arrays), num_patches=len(patches), made_by=_made_by(sites, options, offsets), seed=options.seed,
                cut=_Cut(patches, sites, radiometry, labels, options.size))


@dataclass(frozen=True)
class _Cut:
    """Reads the windows of consecutive patches; files are opened in the process that reads them."""

    patches: Sequence[Patch]
    sites: Mapping[str, Site]
    radiometry: Mapping[str, Mapping[str, Radiometry]]
    labels: Sequence[LabelSpec]
    size: int

    def __call__(self, rows: range) -> Block:
        return _cut(self.patches[rows.start:rows.stop], self.sites, self.radiometry, labels=self.labels, size=self.size)


def _site_windows(name: str, site: Site, options: Options) -> list[tuple[int, int]]:
    info = _any_file(site)
    found = list(windows(*info.shape, size=options.size, stride=options.stride))
    if not found:
        raise UsageError(f"site {name}: {info.path} is {info.shape[0]} x {info.shape[1]} pixels, smaller than --size {options.size}")
    return found


def _resolution(sites: Mapping[str, Site]) -> float:
    found = {name: _any_file(site).transform.a for name, site in sites.items()}
    first, value = next(iter(found.items()))
    for name, other in found.items():
        if not np.isclose(other, value, rtol=1e-6):
            raise UsageError(f"site {name} has pixels of {other:g} m, site {first} of {value:g} m; a corpus has one resolution")
    return float(value)


def _radiometry(site: Site, options: Options, decision: Decision | None) -> dict[str, Radiometry]:
    made = {}
    if decision is not None:
        made["s2"] = s2_radiometry(site["s2"], decision.offset, scale=options.s2_scale, nodata=options.s2_nodata)
    if "s1" in site:
        made["s1"] = s1_radiometry(site["s1"], scale=options.s1_scale, add=options.s1_offset, nodata=options.s1_nodata)
    return made


def _label_specs(sites: Mapping[str, Site]) -> tuple[LabelSpec, ...]:
    parts = [part for part in next(iter(sites.values())) if part.startswith("label ")]
    return tuple(_label_spec(part.removeprefix("label "), [site[part] for site in sites.values()]) for part in parts)


def _label_spec(name: str, layers: Sequence[Layer]) -> LabelSpec:
    dtypes = {layer.files[0].dtype for layer in layers}
    if len(dtypes) > 1 or not dtypes <= {"uint8", "uint16", "int16"}:
        raise UsageError(f"--label {name}: files are {', '.join(sorted(dtypes))}; legal: all uint8, all uint16 or all int16")
    found = {layer.files[0].path: distinct_values(layer.files[0].path) for layer in layers}
    table = class_table(name)
    # Without a table no names are known: the values stand for themselves.
    classes, ignore = table or ({value: f"class {value}" for value in sorted(set().union(*found.values()))}, None)
    declared = layers[0].files[0].nodata
    ignore = int(declared) if ignore is None and declared is not None else ignore
    for path, values in found.items():
        if unknown := sorted(values - classes.keys() - {ignore}):
            raise UsageError(f"--label {name}: {path} has value {', '.join(map(str, unknown))}; "
                             f"legal: {', '.join(f'{value} {text}' for value, text in classes.items())}")
    return LabelSpec(name=name, kind="classmap", classes=classes, dtype=dtypes.pop(), ignore=ignore)


def _made_by(sites: Mapping[str, Site], options: Options, offsets: Mapping[str, Decision]) -> dict[str, Any]:
    files = {name: {part: [str(info.path) for info in layer.files] for part, layer in site.items()} for name, site in sites.items()}
    return {"command": "corpus build", "source": "geotiff", "options": asdict(options), "files": files,
            "s2_offset": {name: decision._asdict() for name, decision in offsets.items()}}


def _cut(patches: Sequence[Patch], sites: Mapping[str, Site], radiometry: Mapping[str, Mapping[str, Radiometry]], *,
         labels: Sequence[LabelSpec], size: int) -> Block:
    first = sites[patches[0].site]
    arrays = {sensor: np.empty((len(patches), len(first[sensor].channels), size, size), np.int16) for sensor in radiometry[patches[0].site]}
    maps: dict[str, list[np.ndarray]] = {label.name: [] for label in labels}
    saturated: dict[str, Any] = dict.fromkeys(arrays, 0)
    for name in dict.fromkeys(patch.site for patch in patches):
        with ExitStack() as stack:
            readers = {part: _readers(layer, stack) for part, layer in sites[name].items()}
            for number, patch in ((k, p) for k, p in enumerate(patches) if p.site == name):  # rows of a site are consecutive
                for sensor, made in radiometry[name].items():
                    saturated[sensor] = saturated[sensor] + to_stored(_read(readers[sensor], patch, size), made, arrays[sensor][number])[1]
                for label in labels:
                    maps[label.name].append(_read(readers[f"label {label.name}"], patch, size)[0])
    return Block(arrays, _columns(patches, sites, size=size),
                 {k: np.stack(v) for k, v in maps.items()}, {k: v.tolist() for k, v in saturated.items()})


def _readers(layer: Layer, stack: ExitStack) -> list[tuple[rasterio.DatasetReader, int]]:
    opened = {info.path: stack.enter_context(open_raster(info.path)) for info in layer.files}
    return [(opened[channel.path], channel.index) for channel in layer.channels]


def _read(readers: Sequence[tuple[rasterio.DatasetReader, int]], patch: Patch, size: int) -> np.ndarray:
    files = list(dict.fromkeys(file for file, _ in readers))
    if len(files) == 1:
        return read_window(files[0], [index for _, index in readers], y=patch.y, x=patch.x, size=size)
    return np.concatenate([read_window(file, [index], y=patch.y, x=patch.x, size=size) for file, index in readers])


def _columns(patches: Sequence[Patch], sites: Mapping[str, Site], *, size: int) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {name: [] for name in (
        "lon", "lat", "epsg", "x", "y", "time_s2", "time_s1", "source", "split_lon", "split_lat")}
    for name in dict.fromkeys(patch.site for patch in patches):
        info, mine = _any_file(sites[name]), [p for p in patches if p.site == name]
        corners = [position(info, x=p.x, y=p.y) for p in mine]
        centres = [position(info, x=p.x + size / 2, y=p.y + size / 2) for p in mine]
        lon, lat = lonlat(info.crs, *zip(*centres, strict=True))
        split_lon, split_lat = _split_points(info, lon, lat)
        times = {sensor: acquired(sites[name][sensor].files[0]) if sensor in sites[name] else UNKNOWN_TIME for sensor in SENSORS}
        rows = {"lon": lon, "lat": lat, "split_lon": split_lon, "split_lat": split_lat, "x": [c[0] for c in corners], "y": [c[1] for c in corners]}
        same = {"epsg": info.crs.to_epsg() or UNKNOWN_EPSG, "time_s2": times["s2"], "time_s1": times["s1"], "source": str(info.path)}
        for column, values in {**rows, **{key: [value] * len(mine) for key, value in same.items()}}.items():
            columns[column].extend(values)
    return columns


def _split_points(info: RasterInfo, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A site smaller than a block goes to one split as a whole: its windows may overlap across the edge of a block."""
    height, width = info.shape
    if max(height, width) * info.transform.a > BLOCK_DEG * 111_200:
        return lon, lat
    centre_lon, centre_lat = lonlat(info.crs, *zip(position(info, x=width / 2, y=height / 2), strict=True))
    return np.broadcast_to(centre_lon, lon.shape), np.broadcast_to(centre_lat, lat.shape)


def _any_file(site: Site) -> RasterInfo:
    return next(iter(site.values())).files[0]
