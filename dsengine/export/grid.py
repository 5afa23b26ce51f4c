"""The grid of an embedded raster: cells on the ground."""

from typing import NamedTuple

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points


class Grid(NamedTuple):
    """Cells of a raster; cell (0, 0) begins at the raster's upper left corner and has `cell_px` of its pixels a side."""

    shape: tuple[int, int]  # rows, columns
    crs: CRS
    transform: Affine  # of cells: a step is a cell

    def x(self) -> np.ndarray:
        """(columns,) centres in the units of the CRS."""
        return self.transform.c + (np.arange(self.shape[1]) + 0.5) * self.transform.a

    def y(self) -> np.ndarray:
        """(rows,) centres."""
        return self.transform.f + (np.arange(self.shape[0]) + 0.5) * self.transform.e

    def lonlat(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Degrees WGS 84 of the centres of cells."""
        lon, lat = warp_points(self.crs, "EPSG:4326", self.x()[columns], self.y()[rows])
        return np.array(lon), np.array(lat)


def cell_grid(shape: tuple[int, int], crs: CRS, pixel: Affine, cell_px: int) -> Grid:
    """The grid of cells of `cell_px` pixels of a north-up raster; the last cell may reach beyond it."""
    return Grid(shape, crs, Affine(pixel.a * cell_px, 0.0, pixel.c, 0.0, pixel.e * cell_px, pixel.f))
