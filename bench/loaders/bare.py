"""pread + decode in a bare C loop (bare.c), built here with the system's compiler: what no reader of these files with these libraries beats."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numcodecs.blosc
import numpy as np
import pytest

from dsengine.data.chunks import ShardIndex
from dsengine.data.layout import ChunkLayout


def build(folder: Path) -> ctypes.CDLL:
    """bare.c as a library in `folder`, or a skip where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the bare loop")
    target = folder / "bare.so"
    subprocess.run([compiler, "-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", str(Path(__file__).with_name("bare.c")),
                    "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


class BareLoop:
    """Files open, tables and buffers at hand; a call does nothing but the work, in `num_threads` threads.

    crc: each chunk's crc32c is compared too, as every reader of the corpus does. in_memory: the files lie in memory beforehand,
    and a call decodes only. decode False: a call reads only.
    """

    def __init__(self, layouts: Sequence[ChunkLayout], folder: Path, *, num_threads: int, crc: bool, in_memory: bool = False,
                 decode: bool = True) -> None:
        libraries = Path(google_crc32c.__file__).parent.with_name("google_crc32c.libs")
        decompress = ctypes.cast(ctypes.CDLL(numcodecs.blosc.__file__).blosc_decompress_ctx, ctypes.c_void_p)
        extend = ctypes.cast(ctypes.CDLL(str(next(libraries.glob("libcrc32c*.so*")))).crc32c_extend, ctypes.c_void_p) if crc else None
        self._layouts = tuple(layouts)
        self._files: list[int] = []
        self._bodies: list[np.ndarray] = []
        self._tables = [self._table(layout, in_memory=in_memory) for layout in layouts]
        most = max(int(table[:, 2].max()) for table in self._tables) + 64
        self._scratch = np.zeros((num_threads, most), dtype=np.uint8)
        self._loop = build(folder).bare_loop
        self._rest = (ctypes.c_int64(most), ctypes.c_void_p(self._scratch.ctypes.data), num_threads, int(not in_memory), int(decode), decompress, extend)

    def read(self, ids: np.ndarray, outs_BCHW: Sequence[np.ndarray]) -> None:
        """Fill one slab an array with patches `ids` (B,), the largest first."""
        rows = []
        for layout, table, out_BCHW in zip(self._layouts, self._tables, outs_BCHW, strict=True):
            address = out_BCHW.ctypes.data + np.arange(len(ids)) * layout.patch_bytes
            rows.append(np.concatenate([table[ids], address[:, None], np.full((len(ids), 1), layout.patch_bytes)], axis=1))
        chunks = np.concatenate(rows)
        assert self._loop(ctypes.c_void_p(chunks.ctypes.data), ctypes.c_int64(len(chunks)), *self._rest) == 0

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            os.close(file)

    def _table(self, layout: ChunkLayout, *, in_memory: bool) -> np.ndarray:
        """(N, 3) int64: open file or address of its bytes, offset in it, bytes."""
        found = ShardIndex(layout).locate(np.arange(layout.num_patches))
        paths = [layout.shard_path(k) for k in range(layout.num_shards)]
        if in_memory:
            bodies = [np.fromfile(path, dtype=np.uint8) for path in paths]
            self._bodies += bodies
            handles = [body.ctypes.data for body in bodies]
        else:
            handles = [os.open(path, os.O_RDONLY) for path in paths]
            self._files += handles
        table = np.empty((layout.num_patches, 3), dtype=np.int64)
        table[found.patch] = np.stack([np.array(handles)[found.shard], found.offset, found.size], axis=1)
        return table
