"""Numbers of published patches as stored int16, by one rule of nodata for sets that declare none.

S2: a pixel that is 0 in every band has no data, and so has a value that is not finite. S1: a value that is exactly 0 dB, which is what
exporters write where there is nothing and what no float32 backscatter hits by chance, or that is not finite.
"""

from typing import NamedTuple

import numpy as np

from dsengine.corpus.schema import NODATA

class Stored(NamedTuple):
    """int16 values (C, H, W) and how many of each band (C,) were cut to +-32767."""

    values: np.ndarray
    saturated: np.ndarray


def store_s2(raw_CHW: np.ndarray, *, shift: int = 0, empty_HW: np.ndarray | None = None) -> Stored:
    """Numbers of reflectance x 10000, `shift` added; `empty_HW` marks further pixels without data."""
    finite = np.isfinite(raw_CHW)
    valid = finite & ~(raw_CHW == 0).all(axis=0)
    return _store(raw_CHW, valid if empty_HW is None else valid & ~empty_HW, gain=1.0, shift=float(shift))


def store_s1(db_CHW: np.ndarray, *, gain: float = 1.0, shift: float = 0.0) -> Stored:
    """dB x 100 of numbers that `gain` and then `shift` turn into dB."""
    return _store(db_CHW, np.isfinite(db_CHW) & (db_CHW != 0), gain=100.0 * gain, shift=100.0 * shift)


def _store(raw_CHW: np.ndarray, valid: np.ndarray, *, gain: float, shift: float) -> Stored:
    if raw_CHW.dtype.kind in "ui" and gain == 1 and shift == int(shift):  # numbers of S2: half the time of float64
        values = raw_CHW.astype(np.int32 if raw_CHW.dtype.itemsize < 4 else np.int64) + int(shift)
    else:
        values = raw_CHW.astype(np.float64) * gain + shift
        np.rint(values, out=values)
    saturated = ((np.abs(values) > 32767) & valid).sum(axis=(1, 2))
    np.clip(values, -32767, 32767, out=values)
    np.copyto(values, NODATA, where=~valid)
    return Stored(values.astype(np.int16), saturated)
