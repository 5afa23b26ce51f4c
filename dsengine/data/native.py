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

COMPRESSORS = {"none": 0, "blosc": 1, "bitpack": 3}  # dse_compressor
RAW = 2
LZ4_NAMES = ("lz4", "lz4hc")  # Blosc codecs whose streams are LZ4 blocks
SLACK = 64  # DSE_READ_SLACK


def can_decode(layout: ChunkLayout) -> bool:
    """Whether the library decodes chunks of this array."""
    return layout.compressor in ("none", "bitpack") or layout.compressor == "blosc" and layout.cname in LZ4_NAMES


def can_read(layout: ChunkLayout) -> bool:
    """Whether the library reads and decodes this array."""
    return layout.storage.local and can_decode(layout)


def read_raw(layout: ChunkLayout, located: Located, at: np.ndarray, slab: np.ndarray) -> np.ndarray:
    """Read the chunks of a local array as they are to bytes at[k] of `slab` (n,) uint8, compare their crc32c; the positions refused."""
    before, after = _around_number(layout)
    array = library.ReadArray(prefix=before, suffix=after, out=slab.ctypes.data, num_patches=slab.nbytes, patch_bytes=1, compressor=RAW,
                              checked=layout.checked)
    stored = np.flatnonzero(located.size)
    chunks = np.stack([np.zeros_like(stored), located.shard[stored], located.offset[stored], located.size[stored], at[stored]], axis=1)
    return stored[np.flatnonzero(_call([array], chunks, np.empty((1, 0), dtype=np.uint8)))]


def decode_chunks(layout: ChunkLayout, located: Located, buffer: np.ndarray, out_BCHW: np.ndarray) -> np.ndarray:
    """Decode the chunks of `located`, back to back in `buffer` (n,) uint8 with SLACK bytes after them; the positions refused."""
    array = _patches(layout, out_BCHW)
    array.data, array.data_bytes = buffer.ctypes.data, buffer.nbytes
    start = np.cumsum(located.size) - located.size
    chunks = np.stack([np.zeros_like(start), np.zeros_like(start), start, located.size, located.row], axis=1)
    scratch = np.empty((1, library.library().dse_read_scratch(0, layout.patch_bytes)), dtype=np.uint8)
    return np.flatnonzero(_call([array], chunks, scratch))


def gather(kept_NCHW: np.ndarray, at: np.ndarray, out_BCHW: np.ndarray, *, num_threads: int) -> None:
    """out[k] = kept[at[k]], both C-contiguous int16, by `num_threads` threads; SLACK bytes after `kept` have to be readable."""
    assert kept_NCHW.dtype == out_BCHW.dtype == np.int16 and kept_NCHW.flags.c_contiguous and out_BCHW.flags.c_contiguous
    assert kept_NCHW.shape[1:] == out_BCHW.shape[1:] and (at < len(kept_NCHW)).all()
    size = out_BCHW[:1].nbytes
    array = library.ReadArray(out=out_BCHW.ctypes.data, num_patches=len(out_BCHW), patch_bytes=size, compressor=COMPRESSORS["none"],
                              data=kept_NCHW.ctypes.data, data_bytes=kept_NCHW.nbytes + SLACK)
    zero = np.zeros_like(at)
    scratch = np.empty((num_threads, library.library().dse_read_scratch(0, size)), dtype=np.uint8)
    refused = _call([array], np.stack([zero, zero, at * size, zero + size, np.arange(len(at))], axis=1), scratch)
    assert not refused.any()


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
        arrays = []
        for names, layout, out_BCHW in zip(self._names, self._layouts, outs_BCHW, strict=True):
            arrays.append(_patches(layout, out_BCHW))
            arrays[-1].prefix, arrays[-1].suffix = names
        chunks = np.concatenate([np.stack([np.full_like(x.row, k), x.shard, x.offset, x.size, x.row], axis=1) for k, x in enumerate(located)])
        self._make_room(int(chunks[:, 3].max(initial=0)))
        refused = np.flatnonzero(_call(arrays, chunks, self._scratch))
        first = np.cumsum([0, *(len(x.row) for x in located)])
        return [(int(chunks[k, 0]), int(k - first[chunks[k, 0]])) for k in refused]

    def _make_room(self, chunk_bytes: int) -> None:
        need = library.library().dse_read_scratch(chunk_bytes, max(layout.patch_bytes for layout in self._layouts))
        if need > self._scratch.shape[1]:
            self._scratch = np.empty((self._num_threads, need), dtype=np.uint8)


def _call(arrays: Sequence[library.ReadArray], chunks: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """Status of each of `chunks` (n, 5) int64, by as many threads as `scratch` has rows."""
    given, status = (library.ReadArray * len(arrays))(*arrays), np.empty(len(chunks), dtype=np.int32)
    args = library.ReadArgs(arrays=ctypes.addressof(given), chunks=chunks.ctypes.data, status=status.ctypes.data, scratch=scratch.ctypes.data,
                            num_arrays=len(arrays), num_chunks=len(chunks), scratch_bytes=scratch.shape[1])
    library.check_status("read", library.library().dse_read_cpu(ctypes.byref(args), len(scratch), library.BEST_ISA))
    return status


def _around_number(layout: ChunkLayout) -> tuple[bytes, bytes]:
    """What comes before and after a shard's number in its path."""
    before, after = layout.shard_key(0).split("0", 1)
    return os.fsencode(layout.directory / before) + (b"/" if before.endswith("/") else b""), os.fsencode(after)


def _patches(layout: ChunkLayout, out_BCHW: np.ndarray) -> library.ReadArray:
    """Decoded patches of `layout` as the place of the output; where the chunks come from is left to be said."""
    assert out_BCHW.dtype == np.int16 and out_BCHW.flags.c_contiguous and out_BCHW.shape[1:] == layout.patch_shape
    return library.ReadArray(out=out_BCHW.ctypes.data, num_patches=len(out_BCHW), patch_bytes=layout.patch_bytes,
                             compressor=COMPRESSORS[layout.compressor], checked=layout.checked, fill=layout.fill_value,
                             height=layout.patch_shape[1], width=layout.patch_shape[2])
