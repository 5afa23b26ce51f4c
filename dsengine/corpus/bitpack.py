"""The fixed-width codec `dsengine.bitpack`: an array-to-bytes codec of Zarr v3 for pixels of 1 or 2 bytes, in tiles that decode alone.

    {"name": "dsengine.bitpack", "configuration": {"tile": 8, "predictor": "none" | "lorenzo", "nodata": -32768 | null}}

It replaces `bytes` (and the compressor); `crc32c` may follow. A chunk of shape (..., H, W) is planes of H x W pixels, the planes in C order; a chunk of
one dimension is a plane of one row. Each plane is cut in tiles of 8 x 8 pixels from its first row and column on, so that those at its right and
lower edge may be smaller. Numbers are little-endian.

    chunk    header | offsets | segments
    header   20 bytes: "dsb1"; bytes a pixel (1 or 2), uint8; tile (8), uint8; nodata, uint16; planes, H, W, uint32 each
    offsets  uint32 each: where each segment begins, counted from the chunk's first byte, and where the last one ends, which is the chunk's size
    segment  up to 16 tiles side by side: their heads, then the tiles themselves. In order of plane, row of tiles, first column
    head     5 bytes: base, uint16; deltas, uint16; form, uint8: bits 0 to 4 width (0 to 16), bit 5 predicted, bit 6 masked, bit 7 is 0
    tile     if masked: a byte for each row, bit c set where the pixel in column c is nodata; then the rows
    row      row r has n values of w = max(0, width - d) bits each, d = bits 2r and 2r + 1 of deltas, in ceil(n w / 8) bytes that are one
             little-endian number: value c is its bits c w to (c + 1) w - 1

A pixel is base + value in a tile that is not predicted. In a predicted one a value less 2^(w - 1) (less 0 where w = 0) is a residual, and a
pixel is base + the sum of the residuals in rows up to and columns up to its own: what is coded is the pixel less the one at its left, less the
one above, plus the one above left (Ibarria et al. 2003, the Lorenzo predictor, here within a tile). All modulo 2^16; a pixel of one byte
is the lower byte. A masked pixel is nodata whatever its value says. An encoder is free in base, width, deltas and mask; ours takes the fewest bytes
of the forms that the configuration allows, where `none` allows no predicted tiles.

A tile of one value takes 5 bytes. A tile depends on no other, so a window is decoded from the segments that it touches: bytes
[offset k, offset k + 1) of the chunk.
"""

import asyncio
import ctypes
import math
from collections.abc import Mapping
from ctypes import c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from dsengine.errors import RunError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

NAME = "dsengine.bitpack"
TILE = 8
PREDICTORS = ("none", "lorenzo")
DTYPES = ("int8", "uint8", "int16", "uint16")
HEADER_BYTES = 20
NO_VALUE = 1 << 20  # no pixel has it


class Args(ctypes.Structure):
    """dse_bitpack_args."""

    _fields_ = [("in_", c_void_p), ("out", c_void_p), ("chunks", c_void_p), ("in_bytes", c_int64), ("out_bytes", c_int64), ("num_chunks", c_int64),
                ("planes", c_int64), ("height", c_int32), ("width", c_int32), ("itemsize", c_int32), ("window_height", c_int32),
                ("window_width", c_int32)]


def encode(x: np.ndarray, *, predictor: str, nodata: int | None = None) -> bytes:
    """The chunk of `x` (..., H, W), a dtype of DTYPES. ValueError for other dtypes and for chunks of 2^28 pixels or more."""
    if x.dtype.name not in DTYPES:
        raise ValueError(f"dtype {x.dtype}; legal: {', '.join(DTYPES)}")
    x = np.ascontiguousarray(x, x.dtype.newbyteorder("<"))
    planes, height, width = as_planes(x.shape)
    bound = _library().dse_bitpack_bound(planes, height, width, x.itemsize)
    if bound < 0:
        raise ValueError(f"chunks of {x.shape}; legal: 1 to {2**28 - 1} pixels")
    out = np.empty(bound, np.uint8)
    size = _library().dse_bitpack_encode(x.ctypes.data, out.ctypes.data, planes, height, width, x.itemsize, x.dtype.kind == "i",
                                         PREDICTORS.index(predictor), NO_VALUE if nodata is None else nodata, 0)
    return out[:size].tobytes()


def decode(body: bytes | memoryview | np.ndarray, out: np.ndarray) -> None:
    """Fill `out` (..., H, W), C-contiguous, native little-endian, with the chunk `body`. ValueError when it is damaged or of another shape."""
    data = np.frombuffer(body, np.uint8)
    planes, height, width = as_planes(out.shape)
    chunks = np.array([0, data.size, 0, 0, 0], np.int64)
    args = Args(in_=data.ctypes.data, out=out.ctypes.data, chunks=chunks.ctypes.data, in_bytes=data.size, out_bytes=out.nbytes, num_chunks=1,
                planes=planes, height=height, width=width, itemsize=out.itemsize, window_height=height, window_width=width)
    assert out.flags.c_contiguous and out.dtype in DTYPES
    if _library().dse_bitpack_cpu(ctypes.byref(args), 1, 0):
        raise ValueError(f"{data.size} bytes that are no {NAME} chunk of {out.shape} {out.dtype}")


def declared_bytes(head: bytes) -> int:
    """Decoded size that a chunk's first HEADER_BYTES state. ValueError when they are none."""
    if (shape := stated_shape(head)) is None:
        raise ValueError(f"not a {NAME} chunk")
    return math.prod(shape)


def stated_shape(head: bytes) -> tuple[int, int, int, int] | None:
    """(bytes a pixel, planes, H, W) that a chunk's first HEADER_BYTES state; None when they are none."""
    if len(head) < HEADER_BYTES or head[:4] != b"dsb1":
        return None
    return head[4], *np.frombuffer(head[8:HEADER_BYTES], "<u4").tolist()


def as_planes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(planes, H, W) of a chunk's shape."""
    *planes, height, width = (1, 1, *shape)
    return math.prod(planes), height, width


@dataclass(frozen=True, kw_only=True)
class BitpackCodec(ArrayBytesCodec):
    """The codec as zarr-python wants it; found by its entry point in the group `zarr.codecs`.

    predictor: `none` or `lorenzo`. nodata: a value that stands apart from the others and is masked out of tiles that have both, or None.
    """

    predictor: str = "none"
    nodata: int | None = None
    tile: int = TILE
    is_fixed_size = False

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS or self.tile != TILE:
            raise ValueError(f"{NAME}: predictor {self.predictor!r}, tile {self.tile!r}; legal: {', '.join(PREDICTORS)}; {TILE}")
        if self.nodata is not None and not (type(self.nodata) is int and -(1 << 15) <= self.nodata < 1 << 16):
            raise ValueError(f"{NAME}: nodata {self.nodata!r}; legal: a whole number of 16 bits, or null")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BitpackCodec":
        """From zarr.json. ValueError for a key or value that is not legal."""
        configuration = dict(data.get("configuration") or {})
        if unknown := configuration.keys() - {"predictor", "nodata", "tile"}:
            raise ValueError(f"{NAME}: configuration {', '.join(sorted(unknown))}; legal: tile, predictor, nodata")
        return cls(**configuration)

    def to_dict(self) -> dict[str, Any]:
        """As in zarr.json."""
        return {"name": NAME, "configuration": {"tile": self.tile, "predictor": self.predictor, "nodata": self.nodata}}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """ValueError for an array of other dtypes."""
        if dtype.to_native_dtype().name not in DTYPES:
            raise ValueError(f"{NAME}: dtype {dtype.to_native_dtype()}; legal: {', '.join(DTYPES)}")

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: "ArraySpec") -> int:
        """NotImplementedError: the size depends on the pixels."""
        raise NotImplementedError

    def _decode_sync(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "NDBuffer":
        dtype = chunk_spec.dtype.to_native_dtype()
        out = np.empty(chunk_spec.shape, dtype.newbyteorder("<"))
        decode(chunk_bytes.as_numpy_array(), out)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(out.astype(dtype, copy=False))

    def _encode_sync(self, chunk_array: "NDBuffer", chunk_spec: "ArraySpec") -> "Buffer | None":
        body = encode(chunk_array.as_numpy_array(), predictor=self.predictor, nodata=self.nodata)
        return chunk_spec.prototype.buffer.from_bytes(body)

    async def _decode_single(self, chunk_data: "Buffer", chunk_spec: "ArraySpec") -> "NDBuffer":
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: "NDBuffer", chunk_spec: "ArraySpec") -> "Buffer | None":
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)


@cache
def _library() -> ctypes.CDLL:
    """libdsengine with the functions used here; loaded without the rest of `ops`, which brings torch. RunError when it is not built."""
    path = Path(__file__).parents[1] / "ops" / "libdsengine.so"
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise RunError(f"{path} does not load ({error}): run `pip install .` in the checkout") from error
    lib.dse_bitpack_bound.restype, lib.dse_bitpack_bound.argtypes = c_int64, (c_int64, c_int64, c_int64, c_int32)
    lib.dse_bitpack_encode.restype = c_int64
    lib.dse_bitpack_encode.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_int64, *(c_int32,) * 5)
    lib.dse_bitpack_cpu.restype, lib.dse_bitpack_cpu.argtypes = c_int, (ctypes.POINTER(Args), c_int32, c_int32)
    return lib
