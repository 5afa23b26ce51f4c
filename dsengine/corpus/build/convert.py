"""Raw numbers to stored int16 in one pass over the memory."""

import math

import numpy as np
from numba import njit, types

from dsengine.corpus.schema import NODATA

EMPTY = float(NODATA)
UNSEEN = 2**30  # no number of 16 bits


def scaled_to_int16(raw_RP: np.ndarray, out_RP: np.ndarray, *, shift: float, gain: float, bias: float, nodata: float | None) -> np.ndarray:
    """Fill `out` int16 with round((raw + shift) * gain + bias) of numbers (R, P); returns how many of each row (R,) int64 were cut to +-32767.

    `nodata` and what is not finite become -32768. Computed in float64, halves to even. Both C-contiguous or copied.
    """
    kind, itemsize = raw_RP.dtype.kind, raw_RP.dtype.itemsize
    if kind == "f" and nodata is not None:
        with np.errstate(over="ignore"):
            nodata = raw_RP.dtype.type(nodata)  # as the file holds it: 0.1 is another number in float32
    native = np.dtype(np.float32) if raw_RP.dtype == np.float16 else raw_RP.dtype.newbyteorder("=")  # what the compiled loops know
    raw_RP, cut = np.ascontiguousarray(raw_RP, native), np.empty(len(raw_RP), np.int64)
    if kind in "iu" and itemsize <= 2 and (gain, bias) == (1.0, 0.0) and float(shift).is_integer() and abs(shift) < 2**30:
        whole = nodata is not None and float(nodata).is_integer() and abs(nodata) < 2**30
        _shift(raw_RP, int(shift), int(nodata) if whole else UNSEEN, out_RP, cut)
    else:
        _convert(raw_RP, float(shift), float(gain), float(bias), np.nan if nodata is None else float(nodata), out_RP, cut)
    return cut


@njit(cache=True, nogil=True)
def _shift(raw_RP: np.ndarray, shift: int, nodata: int, out_RP: np.ndarray, cut_R: np.ndarray) -> None:
    """Whole numbers of up to 16 bits in 32-bit arithmetic, several times faster than in float64."""
    i32 = types.int32
    shift, nodata = i32(shift), i32(nodata)
    for row in range(raw_RP.shape[0]):
        cut = i32(0)
        for p in range(raw_RP.shape[1]):
            number = i32(raw_RP[row, p])
            value = i32(number + shift)
            kept = min(max(value, i32(-32767)), i32(32767))
            valid = number != nodata
            cut = i32(cut + i32(valid and kept != value))
            out_RP[row, p] = types.int16(kept if valid else i32(NODATA))
        cut_R[row] = cut


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
