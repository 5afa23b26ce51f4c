"""Compressed chunk bytes to int16 patches on the CPU: crc32c, then blosc, zstd or a copy, straight into a slab.

numcodecs releases the GIL while it inflates, so a persistent pool of plain threads scales with the cores.
"""

from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from dsengine.data.chunks import Chunks, run_parts

CRC_BYTES = 4
BLOSC_HEADER = np.dtype([("versions", "u1", 2), ("flags", "u1"), ("typesize", "u1"),
                         ("nbytes", "<u4"), ("blocksize", "<u4"), ("cbytes", "<u4")])


def decode(chunks: Chunks, out_BCHW: np.ndarray, *, pool: ThreadPoolExecutor, parts: int) -> None:
    """Fill `out_BCHW` (B, C, H, W) int16, C-contiguous, with the patches of `chunks`, `parts` threads side by side.

    Raises RunError naming file, array and patch when a chunk fails its crc32c or does not decode to one patch.
    """
    bounds = np.linspace(0, len(chunks.ids), parts + 1).astype(int).tolist()
    spans = [(lo, hi) for lo, hi in zip(bounds, bounds[1:]) if hi > lo]
    run_parts(pool, [lambda lo=lo, hi=hi: _decode_span(chunks, out_BCHW, lo, hi) for lo, hi in spans])


def _decode_span(chunks: Chunks, out_BCHW: np.ndarray, lo: int, hi: int) -> None:
    starts, sizes = chunks.start[lo:hi].tolist(), chunks.size[lo:hi].tolist()
    for k, start, size in zip(range(lo, hi), starts, sizes):
        if size == 0:
            out_BCHW[k] = chunks.layout.fill_value
        else:
            inflate(chunks, k, _checked(chunks, k, chunks.slab[start:start + size]), out_BCHW[k])


def _checked(chunks: Chunks, k: int, chunk: np.ndarray) -> np.ndarray:
    """`chunk` without its crc32c, which is compared when the array has one."""
    if not chunks.layout.checked:
        return chunk
    body, tail = chunk[:-CRC_BYTES], chunk[-CRC_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(tail.tobytes(), "little"):
        raise chunks.fail(k, "the chunk fails its crc32c")
    return body


def inflate(chunks: Chunks, k: int, body: np.ndarray, out_CHW: np.ndarray) -> None:
    """Decode one chunk body (n,) uint8 into `out_CHW` int16, by the layout's compressor."""
    want = chunks.layout.patch_bytes
    if chunks.layout.compressor == "none":
        if body.nbytes != want:
            raise chunks.fail(k, f"the chunk has {body.nbytes} bytes, one patch has {want}")
        out_CHW.reshape(-1).view(np.uint8)[:] = body
        return
    if chunks.layout.compressor == "blosc":
        _check_blosc_header(chunks, k, body)
    try:
        (blosc if chunks.layout.compressor == "blosc" else zstd).decompress(body, out_CHW)
    except (RuntimeError, ValueError) as error:
        raise chunks.fail(k, f"the chunk does not decode ({error})")


def _check_blosc_header(chunks: Chunks, k: int, body: np.ndarray) -> None:
    """Refuse a frame whose header does not describe exactly these bytes and one patch: blosc trusts it blindly."""
    want = chunks.layout.patch_bytes
    if body.nbytes < BLOSC_HEADER.itemsize:
        raise chunks.fail(k, f"the chunk has {body.nbytes} bytes, less than a blosc header")
    header = body[:BLOSC_HEADER.itemsize].view(BLOSC_HEADER)[0]
    if header["nbytes"] != want or header["cbytes"] != body.nbytes:
        raise chunks.fail(k, f"its blosc header says {header['cbytes']} -> {header['nbytes']} bytes, "
                             f"found {body.nbytes} -> {want}")
