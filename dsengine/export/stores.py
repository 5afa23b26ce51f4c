"""Embedding files as `nearest` searches them: places without vectors, one vector, and all vectors block by block."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
import zarr
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points
from rasterio.windows import Window

from dsengine.corpus.build.optional import need
from dsengine.errors import UsageError
from dsengine.export.encode import Encoding
from dsengine.export.facts import read_facts
from dsengine.export.grid import Grid


class Store(Protocol):
    """An embedding file."""

    def locate(self, lon: float, lat: float) -> int:
        """Id of the cell or patch at a point. UsageError when there is none."""

    def vector(self, number: int) -> np.ndarray:
        """(D,) float64 of an id. UsageError when there is none."""

    def places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longitude and latitude of ids that are there."""

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All ids (N,) and vectors (N, D), in parts."""


def open_store(path: Path) -> Store:
    """The store in an embedding file. UsageError for another file, and for dense maps of a corpus."""
    facts = read_facts(path)
    coding = Encoding(**facts["encoding"])
    if path.suffix == ".zarr":
        group = zarr.open_group(path, mode="r")
        if facts["kind"] == "raster":
            return ZarrRaster(path, group, coding)
        if group["embedding"].ndim != 2:
            raise UsageError(f"{path}: dense maps of a corpus; legal: pooled embeddings, or those of a raster")
        return ZarrTable(path, group, coding, reach_km=_reach_km(facts))
    if path.suffix == ".parquet":
        return ParquetTable(path, coding, reach_km=_reach_km(facts))
    return TiffRaster(path, coding)


def _reach_km(facts: dict) -> float:
    """From the middle of a cell or patch to its corner."""
    pixels = facts["rule"].get("cell_px") or facts["rule"]["patch_px"]
    return pixels * facts["contract"]["resolution_m"] / 2000 * 2**0.5


class RasterStore:
    """Cells of a raster; an id counts them row by row."""

    def __init__(self, path: Path, coding: Encoding, grid: Grid, block: tuple[int, int]) -> None:
        self.path, self.coding, self.grid, self._block = path, coding, grid, block

    def window(self, rows: slice, columns: slice) -> np.ndarray:
        """(D, rows, columns) stored numbers."""
        raise NotImplementedError

    def locate(self, lon: float, lat: float) -> int:
        x, y = warp_points("EPSG:4326", self.grid.crs, [lon], [lat])
        t = self.grid.transform
        column, row = int(np.floor((x[0] - t.c) / t.a)), int(np.floor((y[0] - t.f) / t.e))
        if not (0 <= row < self.grid.shape[0] and 0 <= column < self.grid.shape[1]):
            raise UsageError(f"--nearest {lon:g},{lat:g}: it lies outside {self.path}")
        return row * self.grid.shape[1] + column

    def vector(self, number: int) -> np.ndarray:
        count = self.grid.shape[0] * self.grid.shape[1]
        if not 0 <= number < count:
            raise UsageError(f"--nearest {number}: {self.path} has cells 0 to {count - 1}")
        row, column = divmod(number, self.grid.shape[1])
        return self.coding.decode(self.window(slice(row, row + 1), slice(column, column + 1))).reshape(-1).astype(np.float64)

    def places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.grid.lonlat(*np.divmod(ids, self.grid.shape[1])) if len(ids) else (np.empty(0), np.empty(0))

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        (rows, columns), (height, width) = self.grid.shape, self._block
        for y in range(0, rows, height):
            for x in range(0, columns, width):
                values = self.coding.decode(self.window(slice(y, min(y + height, rows)), slice(x, min(x + width, columns))))
                i, j = np.indices(values.shape[1:])
                yield ((i + y) * columns + j + x).reshape(-1), values.reshape(len(values), -1).T


class ZarrRaster(RasterStore):
    """In Zarr."""

    def __init__(self, path: Path, group: zarr.Group, coding: Encoding) -> None:
        self._array = group["embedding"]
        reference = dict(group["spatial_ref"].attrs)
        c, a, b, f, d, e = map(float, reference["GeoTransform"].split())
        grid = Grid(self._array.shape[1:], CRS.from_wkt(reference["crs_wkt"]), Affine(a, b, c, d, e, f))
        super().__init__(path, coding, grid, self._array.chunks[1:])

    def window(self, rows: slice, columns: slice) -> np.ndarray:
        return self._array[:, rows, columns]


class TiffRaster(RasterStore):
    """In a GeoTIFF."""

    def __init__(self, path: Path, coding: Encoding) -> None:
        self._file = rasterio.open(path, driver="GTiff")
        super().__init__(path, coding, Grid(self._file.shape, self._file.crs, self._file.transform), self._file.block_shapes[0])

    def window(self, rows: slice, columns: slice) -> np.ndarray:
        return self._file.read(window=Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start))


class Table:
    """Points with an id each, held in memory; vectors are not."""

    def __init__(self, path: Path, ids: np.ndarray, lon: np.ndarray, lat: np.ndarray, *, reach_km: float) -> None:
        self._path, self._ids, self._lon, self._lat, self._reach_km = path, ids, lon, lat, reach_km
        self._order = np.argsort(ids, kind="stable")

    def locate(self, lon: float, lat: float) -> int:
        from dsengine.export.nearest import km_between

        km = km_between(self._lon, self._lat, np.array([lon]), np.array([lat]))
        closest = int(np.nanargmin(km)) if np.isfinite(km).any() else 0
        if not km[closest] <= self._reach_km:
            raise UsageError(f"--nearest {lon:g},{lat:g}: no patch of {self._path} is there; the closest, {self._ids[closest]}, is {km[closest]:.1f} km off")
        return int(self._ids[closest])

    def row(self, number: int) -> int:
        """Where an id stands in the file."""
        found = np.flatnonzero(self._ids == number)
        if not len(found):
            raise UsageError(f"--nearest {number}: {self._path} has no such id; legal: {self._ids.min()} to {self._ids.max()}, {len(self._ids)} of them")
        return int(found[0])

    def places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self._order[np.searchsorted(self._ids, ids, sorter=self._order)]
        return self._lon[rows], self._lat[rows]


class ZarrTable(Table):
    """Patches of a corpus in Zarr."""

    def __init__(self, path: Path, group: zarr.Group, coding: Encoding, *, reach_km: float) -> None:
        super().__init__(path, *(group[name][...] for name in ("id", "lon", "lat")), reach_km=reach_km)
        self._array, self._coding = group["embedding"], coding

    def vector(self, number: int) -> np.ndarray:
        return self._coding.decode(self._array[self.row(number)]).astype(np.float64)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self._ids), self._array.chunks[0]):
            part = slice(start, start + self._array.chunks[0])
            yield self._ids[part], self._coding.decode(self._array[part])


class ParquetTable(Table):
    """Points in GeoParquet."""

    def __init__(self, path: Path, coding: Encoding, *, reach_km: float) -> None:
        self._file = need("pyarrow.parquet", "export").ParquetFile(path)
        table = self._file.read(columns=["id", "lon", "lat"])
        super().__init__(path, *(table[name].to_numpy() for name in ("id", "lon", "lat")), reach_km=reach_km)
        self._coding = coding

    def vector(self, number: int) -> np.ndarray:
        row = self.row(number)
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if row < size:
                return self._vectors(self._file.read_row_group(group, columns=["embedding"]))[row].astype(np.float64)
            row -= size
        raise AssertionError("the row groups hold fewer rows than the file")

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for group in range(self._file.num_row_groups):
            table = self._file.read_row_group(group, columns=["id", "embedding"])
            yield table["id"].to_numpy(), self._vectors(table)

    def _vectors(self, table: "pyarrow.Table") -> np.ndarray:  # noqa: F821
        column = table["embedding"].combine_chunks()
        return self._coding.decode(column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1))
