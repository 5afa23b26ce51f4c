"""Cloud cover of Sentinel-2 patches by thresholds on single bands, for sources that come without a cloud mask.

A pixel is cloud when it is bright in the blue (B02 above 0.2), not redder than clouds are (B02 above 0.85 B04: sand and bare soil are), not snow
(B11 above 0.1 and above a third of B03), and not a bright plant (B08 below 2.5 B04); or, where there is a B10 (level 1C), cirrus (B10 above
0.012, where dry air lets no ground through). Thin haze, fog over dark ground and cloud shadow are not found; white roofs, salt and surf can be.
The same thresholds serve top-of-atmosphere and surface reflectance: haze of the clear atmosphere stays below 0.2 in B02.
"""

from collections.abc import Mapping

import numpy as np

from dsengine.corpus.schema import NODATA, Band

NEEDED = ("B02", "B03", "B04", "B08", "B11")
CIRRUS = "B10"
STEP = 4  # finest pixels between those that are looked at, at least: 1024 of a patch of 128 px
BRIGHT, COLD_BRIGHT, CIRRUS_BRIGHT = 2000, 1000, 120  # reflectance x 10000, as stored


def can_tell(bands: Mapping[str, Band]) -> bool:
    """Whether the bands that the test needs are there; `bands` are those of S2, by name."""
    return all(name in bands for name in NEEDED)


def cloud_fraction(arrays: Mapping[str, np.ndarray], bands: Mapping[str, Band]) -> np.ndarray:
    """(n,) float32 cloud share of the pixels with data, of every STEP-th pixel of every STEP-th row; NaN for a patch without any.

    arrays: name -> (n, C, h, w) int16, reflectance x 10000, nodata -32768; bands: S2 bands by name, which `can_tell`.
    """
    used = {name: bands[name] for name in (*NEEDED, CIRRUS) if name in bands}
    step = int(np.lcm.reduce([band.factor for band in used.values()]))
    step *= -(-STEP // step)
    b = {name: _thinned(arrays[band.array], band, step) for name, band in used.items()}
    valid = np.logical_and.reduce([plane != NODATA for plane in b.values()])
    # In int32: three times a reflectance of 1.2 does not fit in 16 bits.
    cloud = (b["B02"] > BRIGHT) & (20 * b["B02"] > 17 * b["B04"]) & (b["B11"] > COLD_BRIGHT) & (3 * b["B11"] > b["B03"])
    cloud &= 2 * b["B08"] < 5 * b["B04"]
    if CIRRUS in b:
        cloud |= b[CIRRUS] > CIRRUS_BRIGHT
    looked = valid.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return ((cloud & valid).sum(axis=(1, 2)) / looked).astype(np.float32)


def _thinned(x_NCHW: np.ndarray, band: Band, step: int) -> np.ndarray:
    stride = step // band.factor
    return x_NCHW[:, band.channel, stride // 2::stride, stride // 2::stride].astype(np.int32)
