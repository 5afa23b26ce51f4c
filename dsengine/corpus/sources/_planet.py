"""What sources of Sentinel-2 and Planet pixels share: bands, units, and the 3 x 3 Planet pixels of a Sentinel-2 pixel."""

import numpy as np

from dsengine.corpus.schema import NODATA, S2_BANDS
from dsengine.corpus.series_schema import SeriesSpec
from dsengine.errors import UsageError

PLANET_BANDS = ("blue", "green", "red", "nir")
CELLS = tuple(f"{row}{column}" for row in range(3) for column in range(3))  # of the 3 x 3 neighbourhood, row by row
PLANET_COLUMNS = tuple(f"{band}_{cell}" for band in PLANET_BANDS for cell in CELLS)  # 36, band by band, as paper 2 flattens them
CROPS = {1: "Wheat", 2: "Rye", 3: "Barley", 4: "Oats", 5: "Corn", 6: "Oil Seeds", 7: "Root Crops", 8: "Meadows", 9: "Forage Crops"}
SCALES = ("auto", "1", "0.0001")
RATIO = 10.0 / 3.0  # Planet pixels along a Sentinel-2 pixel


def sentinel2(steps: int, time: tuple[int, ...] = (), valid: str = "") -> SeriesSpec:
    """Array of the 12 bands of Sentinel-2."""
    return SeriesSpec(sensor="s2", bands=S2_BANDS, units="reflectance", scale_factor=1e-4, steps=steps, time=time, resolution_m=10.0, valid=valid)


def planet(steps: int, time: tuple[int, ...] = (), valid: str = "") -> SeriesSpec:
    """Array of 4 Planet bands x 9 pixels."""
    return SeriesSpec(sensor="planet", bands=PLANET_COLUMNS, units="reflectance", scale_factor=1e-4, steps=steps, time=time, resolution_m=3.0,
                      valid=valid)


def neighbours(index: np.ndarray, size: int) -> np.ndarray:
    """(n, 3) Planet rows or columns around the centre of Sentinel-2 pixels `index` (n,), kept inside 0..size-1."""
    centre = ((index + 0.5) * RATIO).astype(np.int64)
    return np.clip(centre[:, None] + np.array([-1, 0, 1]), 0, size - 1)


def decided_scale(given: str, values: np.ndarray, what: str) -> float:
    """Reflectance per number. `auto`: numbers whose upper percentile exceeds 20 are reflectance x 10000. UsageError when it cannot tell."""
    if given not in SCALES:
        raise UsageError(f"{what}={given}: legal: {', '.join(SCALES)} (reflectance per number)")
    if given != "auto":
        return float(given)
    known = values[np.isfinite(values) & (values > 0)]
    if not known.size:
        raise UsageError(f"{what}=auto: no value above 0 in the sample; legal here: 1 or 0.0001")
    return 1e-4 if float(np.quantile(known, 0.99)) > 20 else 1.0


def stored(numbers: np.ndarray, *, scale: float, nodata: float | None = None) -> tuple[np.ndarray, list[int]]:
    """int16 reflectance x 10000 of (..., C), and how many values a band were cut. No data: not finite, `nodata`, or 0 in all bands."""
    has = np.isfinite(numbers) if numbers.dtype.kind == "f" else np.ones(numbers.shape, bool)
    if nodata is not None:
        has &= numbers != nodata
    has &= (numbers != 0).any(axis=-1, keepdims=True)
    values = np.rint(np.where(has, numbers, 0).astype(np.float64) * (scale * 1e4))
    cut = np.clip(values, -32767, 32767)
    saturated = (cut != values).reshape(-1, numbers.shape[-1]).sum(axis=0)
    return np.where(has, cut, NODATA).astype(np.int16), saturated.tolist()


def stored_planet(numbers: np.ndarray, *, scale: float, nodata: float | None = None) -> tuple[np.ndarray, list[int]]:
    """int16 (..., 36) of Planet numbers (..., 4, 9); a pixel has no data when all of its four bands say so."""
    values, saturated = stored(np.moveaxis(numbers, -2, -1), scale=scale, nodata=nodata)
    flat = np.moveaxis(values, -1, -2).reshape(*numbers.shape[:-2], 36)
    return flat, np.repeat(saturated, len(CELLS)).tolist()
