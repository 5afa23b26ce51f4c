"""Encoders, contracts and rasters that the tests of embeddings share."""

from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import Affine
from torch import Tensor, nn

from dsengine.corpus.schema import S1_BANDS, S2_BANDS, Band, Contract
from dsengine.encoders import Features

BANDS = (*S2_BANDS, *S1_BANDS)
UPPER_LEFT = (399960.0, 4500000.0)  # of EPSG:32613


class Small(nn.Module):
    """Three convolutions, stride 8 in all: quick, and cells see 23 pixels a side."""

    def __init__(self, in_channels: int, dim: int = 6, kernel: int = 3) -> None:
        super().__init__()
        self.in_channels, self.dim = in_channels, dim
        sizes = (in_channels, 8, 8, dim)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, kernel, 2, kernel // 2) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, x: Tensor) -> Features:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return Features(x.mean((2, 3)), x)


class Looking(Small):
    """The same, and every cell looks at every other."""

    def forward(self, x: Tensor) -> Features:
        dense = super().forward(x).dense
        flat = dense.flatten(2)
        looked = flat @ torch.softmax(2 * flat.mT @ flat, -1).mT
        return Features(looked.mean(2), looked.unflatten(2, dense.shape[2:]))


def contract(bands: tuple[str, ...] = BANDS, patch_size: int = 64) -> Contract:
    """As of a corpus of these bands, with statistics of an ordinary landscape."""
    optical = [band in S2_BANDS for band in bands]
    return Contract(
        bands=tuple(Band(name, "s2" if is_s2 else "s1", "s2" if is_s2 else "s1", k, 1) for k, (name, is_s2) in enumerate(zip(bands, optical, strict=True))),
        units=tuple("reflectance" if o else "dB" for o in optical), scale=tuple(1e-4 if o else 0.01 for o in optical), offset=(0.0,) * len(bands),
        mean=tuple(0.2 if o else -13.0 for o in optical), std=tuple(0.15 if o else 4.0 for o in optical), nodata=-32768, patch_size=patch_size,
        resolution_m=10.0)


def numbers(height: int, width: int, *, bands: tuple[str, ...] = BANDS, seed: int = 0) -> np.ndarray:
    """(C, height, width) float32: dark and bright reflectance x 10000 in Sentinel-2 bands, dB in Sentinel-1 bands."""
    draw = np.random.default_rng(seed)
    smooth = draw.normal(size=(len(bands), height // 8 + 2, width // 8 + 2)).repeat(8, 1).repeat(8, 2)[:, :height, :width]
    field = smooth + 0.3 * draw.normal(size=(len(bands), height, width))
    return np.stack([np.clip(1500 + 900 * f, 1, 12000).round() if band in S2_BANDS else -13 + 4 * f for band, f in zip(bands, field, strict=True)]).astype(
        np.float32)


def write(path: Path, values: np.ndarray, *, bands: tuple[str, ...] | None = BANDS, pixel: float = 10.0, corner: tuple[float, float] = UPPER_LEFT,
          nodata: float | None = None, dtype: str = "float32") -> Path:
    """A GeoTIFF; bands: the descriptions, of which the first ones are taken."""
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": dtype, "crs": "EPSG:32613",
               "transform": Affine(pixel, 0, corner[0], 0, -pixel, corner[1]), "nodata": nodata, "tiled": True, "blockxsize": 64, "blockysize": 64}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as file:
        file.write(values.astype(dtype))
        if bands is not None:
            file.descriptions = bands[:len(values)]
    return path


def zscored(values: np.ndarray, of: Contract) -> Tensor:
    """(1, C, H, W) float32 of numbers as `numbers` gives them, computed in float64: the untiled input."""
    physical = [np.rint(v) * 1e-4 if band.name in S2_BANDS else np.rint(v.astype(np.float64) * 100) / 100 for v, band in zip(values, of.bands, strict=True)]
    return torch.tensor(np.stack([(p - m) / s for p, m, s in zip(physical, of.mean, of.std, strict=True)]), dtype=torch.float32)[None]
