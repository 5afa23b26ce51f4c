"""Raw numbers to stored int16 in one pass over the memory."""

import math

import numpy as np
from numba import njit, types

from dsengine.corpus.schema import NODATA

EMPTY = float(NODATA)


def scaled_to_int16(raw_RP: np.ndarray, *, shift: float, gain: float, bias: float, nodata: float | None) -> tuple[np.ndarray, np.ndarray]:
    """round((raw + shift) * gain + bias) of numbers (R, P) as int16, and how many of each row (R,) int64 were cut to +-32767.

    `nodata` and what is not finite become -32768. Computed in float64, halves to even.
    """
    if raw_RP.dtype.kind == "f" and nodata is not None:
        with np.errstate(over="ignore"):
            nodata = raw_RP.dtype.type(nodata)  # as the file holds it: 0.1 is another number in float32
    native = np.dtype(np.float32) if raw_RP.dtype == np.float16 else raw_RP.dtype.newbyteorder("=")  # what the compiled loop knows
    raw_RP, empty = np.ascontiguousarray(raw_RP, native), np.nan if nodata is None else float(nodata)
    out, cut = np.empty(raw_RP.shape, np.int16), np.empty(len(raw_RP), np.int64)
    _convert(raw_RP, float(shift), float(gain), float(bias), empty, out, cut)
    return out, cut


@njit(cache=True, nogil=True)
def _convert(raw_RP: np.ndarray, shift: float, gain: float, bias: float, nodata: float, out_RP: np.ndarray, cut_R: np.ndarray) -> None:
    """A nodata of NaN is none: NaN is never valid anyway."""
    for row in range(raw_RP.shape[0]):
        cut = np.int64(0)
        for p in range(raw_RP.shape[1]):
            number = np.float64(raw_RP[row, p])
            valid = math.isfinite(number) and number != nodata
            value = np.rint((number + shift) * gain + bias)
            kept = min(max(value, -32767.0), 32767.0)
            cut += valid and kept != value
            out_RP[row, p] = types.int16(kept if valid else EMPTY)
        cut_R[row] = cut
