"""The number types of an embedding file: float32, float16, or int8 with one scale and offset for all features.

One scale keeps the geometry: distances and cosines of the integers are those of the features, up to the rounding of scale / 2 a feature.
value = stored * scale + offset, as CF and GeoTIFF have it.
"""

from typing import Any, NamedTuple

import numpy as np

from dsengine.errors import UsageError

DTYPES = ("float32", "float16", "int8")
INT8_NODATA = -128
_STEPS = 254  # -127 ... 127


class Encoding(NamedTuple):
    """How values become stored numbers."""

    dtype: str
    scale: float = 1.0
    offset: float = 0.0

    @property
    def nodata(self) -> float:
        """What stands for no data."""
        return INT8_NODATA if self.dtype == "int8" else np.nan

    def attributes(self) -> dict[str, Any]:
        """As CF attributes of an array; floats need none."""
        if self.dtype != "int8":
            return {}
        return {"scale_factor": self.scale, "add_offset": self.offset, "_FillValue": INT8_NODATA}

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Stored numbers of float32 values, NaN where there is no data."""
        if self.dtype != "int8":
            return values.astype(self.dtype)
        steps = np.clip(np.rint((values.astype(np.float64) - self.offset) / self.scale), -127, 127)
        return np.where(np.isnan(values), INT8_NODATA, steps).astype(np.int8)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """float32 values of stored numbers; the inverse of `encode` up to rounding."""
        if self.dtype != "int8":
            return stored.astype(np.float32)
        return np.where(stored == INT8_NODATA, np.nan, stored * self.scale + self.offset).astype(np.float32)


def encoding(dtype: str, lowest: float, highest: float) -> Encoding:
    """The encoding of values in [lowest, highest]. UsageError for an unknown dtype, or one that cannot hold them."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: legal: {', '.join(DTYPES)}")
    if dtype == "float16" and max(abs(lowest), abs(highest)) > float(np.finfo(np.float16).max):
        raise UsageError(f"--dtype float16: features run from {lowest:g} to {highest:g}; legal: float32, int8")
    if dtype != "int8":
        return Encoding(dtype)
    spread = highest - lowest
    return Encoding(dtype, spread / _STEPS if spread > 0 else 1.0, (lowest + highest) / 2)
