"""Rasters as an encoder wants them: which file and channel is which band, on one grid, read as the integers that a corpus would store.

A scene is one file with all bands, or several on grids that share the upper left corner, coarser ones by a whole factor (the 10, 20 and
60 m bands of a Sentinel-2 tile). Nothing is resampled: coarser pixels are repeated, as everywhere in the engine.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window

from dsengine.corpus.build.raster import DRIVERS, Radiometry, RasterInfo, header, in_metres, open_raster, to_stored
from dsengine.corpus.schema import Contract
from dsengine.errors import RunError, UsageError
from dsengine.export.bands import Channel, assigned, site_of
from dsengine.export.numbers import radiometries
from dsengine.export.remote import RemoteFile, RemoteReader, connection, reading, remote_header
from dsengine.export.tiles import Span

METRES_PER_DEGREE = 111_320.0  # of a meridian, within 0.6 %
CACHE_MB = 256  # of GDAL for decoded blocks; its own default is a share of the machine's memory


class Source(NamedTuple):
    """One band of a scene."""

    path: Path | RemoteFile
    index: int
    factor: int  # pixels of the scene's grid per pixel of this file
    radiometry: Radiometry


class Scene(NamedTuple):
    """Rasters that hold every band of a contract, on one grid."""

    name: str
    shape: tuple[int, int]  # pixels of the finest grid
    crs: CRS
    transform: Affine
    sources: tuple[Source, ...]  # in the contract's order
    facts: dict[str, object]  # files, sizes and how their numbers were read: goes into the output

    def fingerprint(self) -> dict[str, object]:
        """What must be equal for an unfinished output to go on."""
        paths = sorted({source.path.absolute() for source in self.sources if isinstance(source.path, Path)})
        base = os.path.commonpath([path.parent for path in paths]) if paths else ""
        files = {os.path.relpath(path, base): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
        urls = sorted({str(source.path) for source in self.sources if isinstance(source.path, RemoteFile)})
        return {"name": self.name, "files": files, **({"urls": urls} if urls else {}), **self.facts}


def find_scenes(path: str | os.PathLike[str], contract: Contract, *, s2_offset: str = "auto") -> list[Scene]:
    """The scenes in a raster file, a folder of them, or a STAC item (.json), in order of their names.

    Files of a folder that hold each band once are one scene; otherwise files with equal stems are, `a_B02.tif` and `a_B03.tif` being of
    stem `a`. s2_offset: auto, 0 or -1000, what to add to Sentinel-2 numbers (docs/corpus.md). UsageError for what lacks a band, with the
    legal ones.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        from dsengine.export.item import item_scene

        return [item_scene(path, contract, s2_offset=s2_offset)]
    infos = [placed(file) for file in _files(path)]
    groups = _grouped(infos, contract, whole=path)
    return [make_scene(name, channels, contract, s2_offset=s2_offset) for name, channels in sorted(groups.items())]


def make_scene(name: str, channels: Mapping[str, Channel], contract: Contract, *, s2_offset: str, stated: Mapping | None = None) -> Scene:
    """A scene of band -> channel; `stated`: band -> radiometry that is known beforehand, as from the metadata of a STAC item."""
    legal = [band.name for band in contract.bands]
    if missing := [band for band in legal if band not in channels]:
        raise UsageError(f"{name}: bands {', '.join(channels) or 'none'}: {', '.join(missing)} missing; legal: rasters with all of {', '.join(legal)}")
    used = {band: channels[band] for band in legal}
    finest = min((channel.info for channel in used.values()), key=lambda info: info.transform.a)
    factors = {band: _factor(channel.info, finest) for band, channel in used.items()}
    _check_pixels(finest, contract)
    radiometry, facts = radiometries(used, contract, s2_offset=s2_offset) if stated is None else stated
    sources = tuple(Source(c.info.path, c.index, factors[band], radiometry[band]) for band, c in used.items())
    files = {band: f"{c.info.path.name}:{c.index}" for band, c in used.items()}
    return Scene(name, finest.shape, finest.crs, finest.transform, sources, {"bands": files, **facts})


class SceneReader:
    """Windows of an opened scene; made by `opened`."""

    def __init__(self, scene: Scene, files: Mapping[Path | RemoteFile, rasterio.DatasetReader | RemoteReader], nodata: int) -> None:
        self.shape = scene.shape
        self._nodata = nodata
        self._files = files
        groups: dict[tuple[Path | RemoteFile, int, Radiometry], list[int]] = {}
        for place, source in enumerate(scene.sources):
            groups.setdefault((source.path, source.factor, source.radiometry), []).append(place)
        self._groups = [(key, places, [scene.sources[place].index for place in places]) for key, places in groups.items()]

    def read(self, rows: Span, columns: Span) -> np.ndarray:
        """(C, rows, columns) int16 stored integers in the contract's order. RunError naming a file that cannot be read."""
        out = np.empty((sum(len(places) for _, places, _ in self._groups), rows.size, columns.size), np.int16)
        for (path, factor, radiometry), places, indexes in self._groups:
            out[places] = self._window(self._files[path], indexes, factor, radiometry, rows, columns)
        return out

    def _window(self, file: rasterio.DatasetReader | RemoteReader, indexes: Sequence[int], factor: int, radiometry: Radiometry, rows: Span,
                columns: Span) -> np.ndarray:
        """As `read`, of some channels of one file; what a coarser grid lacks at the edge is nodata."""
        y0, x0 = rows.start // factor, columns.start // factor
        y1, x1 = (min(-(-span.stop // factor), side) for span, side in zip((rows, columns), file.shape, strict=True))
        stored = np.full((len(indexes), -(-rows.stop // factor) - y0, -(-columns.stop // factor) - x0), self._nodata, np.int16)
        if y1 > y0 and x1 > x0:
            try:
                raw = file.read(indexes, window=Window(x0, y0, x1 - x0, y1 - y0))
            except rasterio.errors.RasterioIOError as error:
                raise RunError(f"{file.name}: rows {y0} to {y1}, columns {x0} to {x1} cannot be read: {error}") from error
            stored[:, :y1 - y0, :x1 - x0] = to_stored(raw, radiometry)[0]
        if factor > 1:
            stored = stored.repeat(factor, axis=1).repeat(factor, axis=2)
        top, left = rows.start - y0 * factor, columns.start - x0 * factor
        return stored[:, top:top + rows.size, left:left + columns.size]


@contextmanager
def opened(scene: Scene, nodata: int) -> Iterator[SceneReader]:
    """A reader of `scene`; its files are open as long as the context is, and GDAL keeps at most CACHE_MB of them."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), ExitStack() as stack:
        places = sorted({source.path for source in scene.sources}, key=str)
        http = stack.enter_context(connection()) if any(isinstance(place, RemoteFile) for place in places) else None
        files = {place: stack.enter_context(reading(place, http) if isinstance(place, RemoteFile) else open_raster(place)) for place in places}
        yield SceneReader(scene, files, nodata)


def placed(path: Path | RemoteFile) -> RasterInfo:
    """The header of a north-up raster with a CRS, in metres or in degrees. UsageError for others."""
    info = remote_header(path) if isinstance(path, RemoteFile) else header(path)
    t = info.transform
    if info.crs is None or not (in_metres(info.crs) or info.crs.is_geographic):
        raise UsageError(f"{path}: CRS is {info.crs}; legal: a CRS in metres or degrees")
    if t.b or t.d or t.a <= 0 or t.e >= 0:
        raise UsageError(f"{path}: transform {tuple(t)[:6]} is not north-up")
    return info


def _check_pixels(info: RasterInfo, contract: Contract) -> None:
    """UsageError unless a pixel is as large on the ground as the encoder knows them; in degrees as high, since width shrinks to the poles."""
    width, height, tolerance = info.transform.a, -info.transform.e, 0.01
    if info.crs.is_geographic:
        width = height = height * METRES_PER_DEGREE
        tolerance = 0.05
    if max(abs(side / contract.resolution_m - 1) for side in (width, height)) > tolerance:
        raise UsageError(f"{info.path}: pixels of {width:g} x {height:g} m; legal: {contract.resolution_m:g} m, what the encoder was trained on")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in DRIVERS and file.is_file())
        if not found:
            raise UsageError(f"--raster {path}: no raster in this folder; legal: files ending in {', '.join(DRIVERS)}")
        return found
    if not path.is_file():
        raise UsageError(f"--raster {path}: no such file or folder")
    return [path]


def _grouped(infos: list[RasterInfo], contract: Contract, *, whole: Path) -> dict[str, dict[str, Channel]]:
    """Scene -> band -> channel."""
    each = [(info, assigned(info, contract)) for info in infos]
    every = [band for _, channels in each for band in channels]
    once = len(infos) > 1 and len(set(every)) == len(every)
    groups: dict[str, dict[str, Channel]] = {}
    for info, channels in each:
        group = groups.setdefault(whole.name if once else site_of(info, contract), {})
        if twice := set(group) & set(channels):
            band = sorted(twice)[0]
            raise UsageError(f"{info.path}: band {band} is also in {group[band].info.path}; legal: one file a band and stem")
        group.update(channels)
    return groups


def _factor(info: RasterInfo, finest: RasterInfo) -> int:
    """Pixels of the finest grid per pixel of `info`'s. UsageError where the grids do not share a corner or do not nest."""
    ratio = info.transform.e / finest.transform.e
    factor = round(ratio)
    tolerance = 1e-3 * finest.transform.a  # a thousandth of a pixel
    corner = max(abs(info.transform.c - finest.transform.c), abs(info.transform.f - finest.transform.f))
    sides = [abs(side * factor - want) for side, want in zip(info.shape, finest.shape, strict=True)]
    if abs(ratio - factor) > 1e-6 or abs(info.transform.a / finest.transform.a - factor) > 1e-6 or info.crs != finest.crs or corner > tolerance or max(sides) >= factor:
        raise UsageError(f"{info.path} is not on the grid of {finest.path}: CRS {info.crs}, transform {tuple(info.transform)[:6]}, shape {info.shape}; "
                         f"legal: {finest.crs}, {tuple(finest.transform)[:6]}, {finest.shape}, or coarser by a whole factor")
    return factor
