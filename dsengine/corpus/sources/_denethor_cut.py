"""Reads Sentinel-2 pixels and their 3 x 3 Planet pixels from a tile."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dsengine.corpus.build.eopatch_pickle import Box
from dsengine.corpus.build.npy import Npy
from dsengine.corpus.build.series_writer import SeriesBlock
from dsengine.corpus.schema import NODATA
from dsengine.corpus.sources import _planet
from dsengine.corpus.sources._denethor_fields import choose
from dsengine.errors import RunError

STRIP = 64  # Sentinel-2 rows whose Planet pixels are read at once: 64 rows of a tile are 14 MB a day


class Step(NamedTuple):
    """One Sentinel-2 step with the Planet image of its day."""

    number: int
    time_s2: int
    time_planet: int
    planet: str


@dataclass(frozen=True)
class Images:
    """The images of a tile, as plain files."""

    bands: Npy
    clp: Npy
    box: Box
    s2_scale: float
    planet_scale: float

    def s2(self, step: int, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 12) numbers and (n,) cloud probability of pixels at one step."""
        return self.bands.open()[step][row, column], self.clp.open()[step][row, column, 0]

    def grid(self, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of flat pixel numbers."""
        row, column = np.divmod(pixel, self.bands.shape[2])
        return row, column

    def place(self, row: np.ndarray, column: np.ndarray) -> dict[str, np.ndarray]:
        """Index columns of pixels: where their centres lie."""
        from rasterio.crs import CRS

        from dsengine.corpus.build.raster import lonlat

        _, height, width, _ = self.bands.shape
        x = self.box.min_x + (column + 0.5) * (self.box.max_x - self.box.min_x) / width
        y = self.box.max_y - (row + 0.5) * (self.box.max_y - self.box.min_y) / height
        lon, lat = lonlat(CRS.from_epsg(self.box.epsg), x, y)
        return {"lon": lon, "lat": lat, "row": row.astype(np.int32), "column": column.astype(np.int32)}


def planet(path: str, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, float | None]:
    """(n, 4, 9) numbers of one day around Sentinel-2 pixels of a grid of `shape`, and the number of no data. RunError when it cannot be read."""
    import rasterio
    from rasterio.windows import Window

    expected = tuple(round(side * _planet.RATIO) for side in shape)
    rows, columns = _planet.neighbours(row, expected[0]), _planet.neighbours(column, expected[1])
    try:
        with rasterio.open(path, driver="GTiff") as file:
            if file.shape != expected or file.count != len(_planet.PLANET_BANDS):
                raise RunError(f"{path}: {file.count} bands of {file.shape}; legal: {len(_planet.PLANET_BANDS)} of {expected}")
            found = np.empty((len(row), file.count, 9), file.dtypes[0])
            for strip in np.unique(row // STRIP):
                inside = row // STRIP == strip
                top, left = int(rows[inside].min()), int(columns[inside].min())
                window = Window(left, top, int(columns[inside].max()) + 1 - left, int(rows[inside].max()) + 1 - top)
                values = file.read(window=window)[:, (rows[inside] - top)[:, :, None], (columns[inside] - left)[:, None, :]]
                found[inside] = np.moveaxis(values, 0, 1).reshape(-1, file.count, 9)
            return found, file.nodata
    except rasterio.errors.RasterioError as error:
        raise RunError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class PointsCut:
    """Rows are dates one after the other, and in each its own draw of pixels."""

    images: Images
    steps: tuple[Step, ...]
    pool: np.ndarray  # (M,) int64 pixels to draw from, ascending
    field_of: np.ndarray  # (M,) int64 fid
    crop_of: np.ndarray  # (M,) uint8
    pixels: int  # a date
    seed: int

    def __call__(self, rows: range) -> SeriesBlock:
        parts = [self._date(date, slice(max(0, rows.start - date * self.pixels), min(self.pixels, rows.stop - date * self.pixels)))
                 for date in range(rows.start // self.pixels, (rows.stop - 1) // self.pixels + 1)]
        names = parts[0][1]
        index = {name: np.concatenate([part[1][name] for part in parts]) for name in names if name != "crop"}
        arrays = {sensor: np.concatenate([part[0][sensor][0] for part in parts]) for sensor in ("s2", "planet")}
        saturated = {sensor: np.sum([part[0][sensor][1] for part in parts], axis=0).tolist() for sensor in arrays}
        return SeriesBlock(arrays, index, {"crop": np.concatenate([part[1]["crop"] for part in parts])}, saturated=saturated)

    def _date(self, date: int, part: slice) -> tuple[dict[str, tuple[np.ndarray, list[int]]], dict[str, np.ndarray]]:
        step = self.steps[date]
        member = choose(np.arange(len(self.pool)), self.pixels, seed=self.seed, site=f"points of step {step.number}")[part]
        row, column = self.images.grid(self.pool[member])
        numbers, clp = self.images.s2(step.number, row, column)
        around, nodata = planet(step.planet, row, column, self.images.bands.shape[1:3])
        made = {"s2": _planet.stored(numbers, scale=self.images.s2_scale),
                "planet": _planet.stored_planet(around, scale=self.images.planet_scale, nodata=nodata)}
        same = {"time_s2": np.int64(step.time_s2), "time_planet": np.int64(step.time_planet), "split": np.uint8(0)}
        return made, {**self.images.place(row, column), **{name: np.full(len(row), value) for name, value in same.items()},
                      "clp": clp.astype(np.float32), "field": self.field_of[member], "crop": self.crop_of[member]}


@dataclass(frozen=True)
class SeriesCut:
    """Rows are pixels in the order of the image, each with all its steps."""

    images: Images
    planet_days: tuple[str, ...]  # files; empty: no Planet series
    pixel: np.ndarray  # (P,) int64, ascending
    field_of: np.ndarray  # (P,) int64 fid
    crop_of: np.ndarray  # (P,) uint8
    split: np.ndarray  # (P,) uint8
    max_clp: float

    def __call__(self, rows: range) -> SeriesBlock:
        part = slice(rows.start, rows.stop)
        row, column = self.images.grid(self.pixel[part])
        s2, valid, cut = self._s2(row, column)
        arrays, saturated = {"s2": s2}, {"s2": cut}
        if self.planet_days:
            arrays["planet"], saturated["planet"] = self._planet(row, column)
        index = {**self.images.place(row, column), "field": self.field_of[part], "split": self.split[part]}
        return SeriesBlock(arrays, index, {"crop": self.crop_of[part]}, valid={"s2": valid}, saturated=saturated)

    def _s2(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
        num_steps = self.images.bands.shape[0]
        values, valid, total = np.full((len(row), num_steps, 12), NODATA, np.int16), np.zeros((len(row), num_steps), bool), np.zeros(12, np.int64)
        for step in range(num_steps):
            numbers, clp = self.images.s2(step, row, column)
            values[:, step], cut = _planet.stored(numbers, scale=self.images.s2_scale)
            valid[:, step] = clp < self.max_clp
            total += cut
        return values, valid, total.tolist()

    def _planet(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, list[int]]:
        values, total = np.full((len(row), len(self.planet_days), 36), NODATA, np.int16), np.zeros(36, np.int64)
        for day, path in enumerate(self.planet_days):
            around, nodata = planet(path, row, column, self.images.bands.shape[1:3])
            values[:, day], cut = _planet.stored_planet(around, scale=self.images.planet_scale, nodata=nodata)
            total += cut
        return values, total.tolist()
