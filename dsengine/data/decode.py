"""One compressed chunk to one int16 patch on the CPU: crc32c, then blosc, zstd, bitpack or a copy, straight into its place.

numcodecs releases the GIL while it inflates, so plain threads scale with the cores; google_crc32c keeps it (about a
tenth of the work).
"""

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from dsengine.corpus import bitpack
from dsengine.corpus.frames import declared_bytes
from dsengine.data.chunks import Chunk

CRC_BYTES = 4
BLOSC_HEADER = np.dtype([("versions", "u1", 2), ("flags", "u1"), ("typesize", "u1"),
                         ("nbytes", "<u4"), ("blocksize", "<u4"), ("cbytes", "<u4")])


def decode(chunk: Chunk, out_CHW: np.ndarray) -> None:
    """Fill `out_CHW` (C, H, W) int16, C-contiguous, with the patch of `chunk`; fill value where it is not stored.

    Raises RunError naming file, array and patch when the chunk fails its crc32c or does not hold one patch.
    """
    if not chunk.data.nbytes:
        out_CHW[...] = chunk.layout.fill_value
        return
    body = checked_body(chunk) if chunk.layout.checked else chunk.data
    if chunk.layout.compressor == "none":
        _copy(chunk, body, out_CHW)
        return
    if chunk.layout.compressor == "bitpack":
        _unpack(chunk, body, out_CHW)
        return
    (_check_blosc_header if chunk.layout.compressor == "blosc" else check_zstd_header)(chunk, body)
    try:
        (blosc if chunk.layout.compressor == "blosc" else zstd).decompress(body, out_CHW)
    except (RuntimeError, ValueError) as error:
        raise chunk.fail(f"the chunk does not decode ({error})") from error


def checked_body(chunk: Chunk) -> np.ndarray:
    """The bytes before the crc32c, which is compared. Raises RunError."""
    body, tail = chunk.data[:-CRC_BYTES], chunk.data[-CRC_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(tail.tobytes(), "little"):
        raise chunk.fail("the chunk fails its crc32c")
    return body


def _copy(chunk: Chunk, body: np.ndarray, out_CHW: np.ndarray) -> None:
    if body.nbytes != out_CHW.nbytes:
        raise chunk.fail(f"the chunk has {body.nbytes} bytes, one patch has {out_CHW.nbytes}")
    out_CHW.reshape(-1).view(np.uint8)[:] = body


def check_bitpack_header(chunk: Chunk, body: np.ndarray) -> None:
    """Refuse a chunk of another shape, for a decoder that would not say so."""
    if (found := bitpack.stated_shape(body[:bitpack.HEADER_BYTES].tobytes())) != (2, *chunk.layout.patch_shape):
        raise chunk.fail(f"its header says (bytes, planes, H, W) {found}, expected {(2, *chunk.layout.patch_shape)}")


def _unpack(chunk: Chunk, body: np.ndarray, out_CHW: np.ndarray) -> None:
    try:
        bitpack.decode(body, out_CHW)
    except ValueError as error:
        raise chunk.fail(f"the chunk does not decode ({error})") from error


def _check_blosc_header(chunk: Chunk, body: np.ndarray) -> None:
    """Refuse a frame whose header does not describe exactly these bytes and one patch: blosc trusts it blindly."""
    want = chunk.layout.patch_bytes
    if body.nbytes < BLOSC_HEADER.itemsize:
        raise chunk.fail(f"the chunk has {body.nbytes} bytes, less than a blosc header")
    header = body[:BLOSC_HEADER.itemsize].view(BLOSC_HEADER)[0]
    if header["nbytes"] != want or header["cbytes"] != body.nbytes:
        raise chunk.fail(f"its blosc header says {header['cbytes']} -> {header['nbytes']} bytes, "
                         f"found {body.nbytes} -> {want}")


def check_zstd_header(chunk: Chunk, body: np.ndarray) -> None:
    """Refuse a frame of another size: zstd would leave the rest of the patch as it was."""
    try:
        size = declared_bytes("zstd", memoryview(body))
    except ValueError as error:
        raise chunk.fail(f"the chunk does not decode ({error})") from error
    if size != chunk.layout.patch_bytes:
        raise chunk.fail(f"its zstd header says {size} bytes, one patch has {chunk.layout.patch_bytes}")
