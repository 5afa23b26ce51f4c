"""The fixed-width codec in numpy, tile by tile: what the compiled forms are tested against. dsengine/corpus/bitpack.py describes the format.

Slow (about 1 MB/s). Two's complement arithmetic modulo 2^16 throughout, in int64.
"""

import struct
from collections.abc import Iterator

import numpy as np

TILE, SEGMENT, HEADER = 8, 16, struct.Struct("<4sBBHIII")


def reference_encode(x: np.ndarray, *, predictor: str = "none", nodata: int | None = None) -> bytes:
    """The chunk of `x` (planes, H, W), 1 or 2 bytes a pixel."""
    planes, height, width = x.shape
    segments = [_segment(x[plane, y:y + TILE, left:left + TILE * SEGMENT].astype(np.int64), predictor=predictor, nodata=nodata)
                for plane, y, left in _places(planes, height, width)]
    first = HEADER.size + 4 * (len(segments) + 1)
    offsets = first + np.cumsum([0, *map(len, segments)])
    header = HEADER.pack(b"dsb1", x.itemsize, TILE, 0 if nodata is None else nodata % 65536, planes, height, width)
    return header + offsets.astype("<u4").tobytes() + b"".join(segments)


def reference_decode(chunk: bytes, dtype: np.dtype | str) -> np.ndarray:
    """The (planes, H, W) pixels of a chunk that is not damaged."""
    magic, itemsize, tile, nodata, planes, height, width = HEADER.unpack(chunk[:HEADER.size])
    assert (magic, itemsize, tile) == (b"dsb1", np.dtype(dtype).itemsize, TILE)
    x = np.empty((planes, height, width), np.int64)
    for k, (plane, y, left) in enumerate(_places(planes, height, width)):
        (begin,) = struct.unpack_from("<I", chunk, HEADER.size + 4 * k)
        band = x[plane, y:y + TILE, left:left + TILE * SEGMENT]
        starts = range(0, band.shape[1], TILE)
        at = begin + 5 * len(starts)
        for head, first in zip(struct.iter_unpack("<HHB", chunk[begin:at]), starts):
            pixels = band[:, first:first + TILE]
            at = _decode_tile(chunk, at, head, pixels, nodata)
    return (x % 256 ** np.dtype(dtype).itemsize).astype(f"u{itemsize}").view(dtype)


def _places(planes: int, height: int, width: int) -> Iterator[tuple[int, int, int]]:
    """(plane, first row, first column) of each segment, in order."""
    for plane in range(planes):
        for y in range(0, height, TILE):
            for left in range(0, width, TILE * SEGMENT):
                yield plane, y, left


def _segment(band: np.ndarray, *, predictor: str, nodata: int | None) -> bytes:
    coded = [_cheapest(band[:, k:k + TILE], predictor, nodata) for k in range(0, band.shape[1], TILE)]
    return b"".join(head for head, _ in coded) + b"".join(body for _, body in coded)


def _cheapest(pixels: np.ndarray, predictor: str, nodata: int | None) -> tuple[bytes, bytes]:
    """Head and body of the first of the shortest forms: without a mask before with one, plain before predicted."""
    gaps = pixels == nodata
    versions = [(pixels, None)] + ([(_filled(pixels, gaps), gaps)] if gaps.any() and not gaps.all() else [])
    forms = [_coded(values, mask, predicted) for values, mask in versions for predicted in (False, True)[:1 + (predictor == "lorenzo")]]
    return min(forms, key=lambda form: len(form[1]))


def _filled(pixels: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Gaps take the pixel at their left, at the left edge the one above, in the corner the first that there is."""
    out = pixels.copy()
    for r, c in np.argwhere(gaps):
        out[r, c] = out[r, c - 1] if c else out[r - 1, 0] if r else pixels[~gaps][0]
    return out


def _coded(pixels: np.ndarray, mask: np.ndarray | None, predicted: bool) -> tuple[bytes, bytes]:
    rows = len(pixels)
    base = int(pixels[0, 0] if predicted else pixels.min())
    if predicted:
        residuals = np.diff(np.diff(pixels - base, axis=0, prepend=0), axis=1, prepend=0)
        values = (residuals + 32768) % 65536 - 32768
        need = [max((int(v).bit_length() if v >= 0 else int(~v).bit_length()) + 1 if v else 0 for v in row) for row in values]
    else:
        values = pixels - base
        need = [max(int(v).bit_length() for v in row) for row in values]
    below = [min(3, max(need) - bits) for bits in need]
    widths = [max(need) - d for d in below]
    body = b"" if mask is None else np.packbits(np.pad(mask, ((0, 0), (0, TILE - mask.shape[1]))), axis=1, bitorder="little").tobytes()
    for r in range(rows):
        bias = 1 << widths[r] - 1 if predicted and widths[r] else 0
        number = sum(int(v + bias) << c * widths[r] for c, v in enumerate(values[r]))
        body += number.to_bytes(-(-len(values[r]) * widths[r] // 8), "little")
    form = max(need) | 32 * predicted | 64 * (mask is not None)
    return struct.pack("<HHB", base % 65536, sum(d << 2 * r for r, d in enumerate(below)), form), body


def _decode_tile(chunk: bytes, at: int, head: tuple[int, int, int], out: np.ndarray, nodata: int) -> int:
    """Fill `out` (rows, columns) from byte `at` on; where the next tile begins."""
    base, deltas, form = head
    width, predicted, masked = form & 31, form & 32, form & 64
    rows, columns = out.shape
    mask = np.zeros((rows, 8), np.uint8)
    if masked:
        mask = np.unpackbits(np.frombuffer(chunk, np.uint8, rows, at)[:, None], axis=1, bitorder="little")
        at += rows
    for r in range(rows):
        bits = max(0, width - (deltas >> 2 * r & 3))
        size = -(-columns * bits // 8)
        number = int.from_bytes(chunk[at:at + size], "little")
        out[r] = [(number >> c * bits & (1 << bits) - 1) - (1 << bits - 1 if predicted and bits else 0) for c in range(columns)]
        at += size
    out[...] = base + (out.cumsum(0).cumsum(1) if predicted else out)
    out[mask[:, :columns] == 1] = nodata
    return at
