"""Patches of local shards by the C library (csrc/decode): read, crc32c compared and decoded in its own threads, in one call a batch.

The GIL is free throughout, and no object is made for a patch. Chunks that the library refuses are named to the caller, who
decodes them with numcodecs or raises what is wrong.
"""

import ctypes
import os
from collections.abc import Sequence

import numpy as np

from dsengine.data.chunks import Located
from dsengine.data.layout import ChunkLayout
from dsengine.ops import library

COMPRESSORS = {"none": 0, "blosc": 1}  # dse_compressor
LZ4_NAMES = ("lz4", "lz4hc")  # Blosc codecs whose streams are LZ4 blocks
COLUMNS = ("array", "shard", "offset", "bytes", "row")


def can_read(layout: ChunkLayout) -> bool:
    """Whether the library reads and decodes this array."""
    return layout.storage.local and (layout.compressor == "none" or layout.compressor == "blosc" and layout.cname in LZ4_NAMES)


class NativeReader:
    """Reads patches of `layouts`, all of which `can_read`, with `num_threads` threads. Not for use by two threads at once."""

    def __init__(self, layouts: Sequence[ChunkLayout], *, num_threads: int) -> None:
        self._layouts = tuple(layouts)
        self._num_threads = num_threads
        self._scratch = np.empty((num_threads, 0), dtype=np.uint8)
        self._names = [_around_number(layout) for layout in layouts]  # the library gets pointers into these

    def read(self, located: Sequence[Located], outs_BCHW: Sequence[np.ndarray]) -> list[tuple[int, int]]:
        """Fill one (B, C, H, W) int16 slab an array, C-contiguous; returns (array, position in `located`) of chunks that it could not."""
        if not self._layouts:
            return []
        arrays = (library.ReadArray * len(self._layouts))()
        for k, (layout, out_BCHW) in enumerate(zip(self._layouts, outs_BCHW, strict=True)):
            arrays[k] = library.ReadArray(
                prefix=self._names[k][0], suffix=self._names[k][1], out=_address(out_BCHW, layout), num_patches=len(out_BCHW),
                patch_bytes=layout.patch_bytes, compressor=COMPRESSORS[layout.compressor], checked=layout.checked, fill=layout.fill_value)
        chunks = np.concatenate([np.stack([np.full_like(x.row, k), x.shard, x.offset, x.size, x.row], axis=1) for k, x in enumerate(located)])
        status = np.empty(len(chunks), dtype=np.int32)
        self._make_room(int(chunks[:, 3].max(initial=0)))
        args = library.ReadArgs(
            arrays=ctypes.addressof(arrays), chunks=chunks.ctypes.data, status=status.ctypes.data, scratch=self._scratch.ctypes.data,
            num_arrays=len(arrays), num_chunks=len(chunks), scratch_bytes=self._scratch.shape[1])
        library.check_status("read", library.library().dse_read_cpu(ctypes.byref(args), self._num_threads, library.BEST_ISA))
        first = np.cumsum([0, *(len(x.row) for x in located)])
        return [(int(chunks[k, 0]), int(k - first[chunks[k, 0]])) for k in np.flatnonzero(status)]

    def _make_room(self, chunk_bytes: int) -> None:
        need = library.library().dse_read_scratch(chunk_bytes, max(layout.patch_bytes for layout in self._layouts))
        if need > self._scratch.shape[1]:
            self._scratch = np.empty((self._num_threads, need), dtype=np.uint8)


def _around_number(layout: ChunkLayout) -> tuple[bytes, bytes]:
    """What comes before and after a shard's number in its path."""
    before, after = layout.shard_key(0).split("0", 1)
    return os.fsencode(layout.directory / before) + (b"/" if before.endswith("/") else b""), os.fsencode(after)


def _address(out_BCHW: np.ndarray, layout: ChunkLayout) -> int:
    assert out_BCHW.dtype == np.int16 and out_BCHW.flags.c_contiguous and out_BCHW.shape[1:] == layout.patch_shape
    return out_BCHW.ctypes.data
