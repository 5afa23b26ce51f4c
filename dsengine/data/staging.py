"""A batch as a GPU is to get it: one buffer of compressed bytes and tables, and the LZ4 or zstd streams in it, grouped by decoded size.

    ids -> chunk bytes, back to back in the buffer (crc32c compared) -> frames parsed -> groups, tables
    buffer:  chunks of each array | decoded patches that no GPU decoder takes | a piece of fill value | VOID | tables (see Staged)

One copy brings the buffer to the device. There each group is one call of an inflater, `ops.unfilter_streams` takes its output and the
streams stored raw in the buffer, `ops.bitpack_decode_into` the chunks that need no inflater, and every patch is in its place: `expand`.
Everything here runs on the CPU with any inflater.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine import ops
from dsengine.data import frames
from dsengine.data.chunks import Chunk, Located, ShardIndex, damage, read_chunks
from dsengine.data.decode import CRC_BYTES, check_bitpack_header, check_zstd_header, checked_body, decode
from dsengine.data.layout import ChunkLayout
from dsengine.data.native import read_raw
from dsengine.data.patches import windows
from dsengine.data.slab import Slab
from dsengine.errors import RunError

ALIGN = 256  # of each array's patches in the output, and of parts of the buffer: a GPU's widest access, with room
VOID = bytes((0x10, 0x00))  # an LZ4 block of one byte, for an inflater that must be given something
MAX_GROUPS = 31  # sources of ops.unfilter_streams less the buffer


class Group(NamedTuple):
    """Streams of the buffer that all become `decoded` bytes."""

    codec: int  # frames.LZ4 | frames.ZSTD
    decoded: int
    offset: np.ndarray  # (n,) int64
    size: np.ndarray  # (n,) int64


class Pack(NamedTuple):
    """Chunks of the fixed-width codec, all of one size: `num` rows of ops.bitpack_decode_into at byte `at`."""

    at: int
    num: int
    shape: tuple[int, int, int]  # C, H, W


class Staged(NamedTuple):
    """A batch in a buffer. Offsets are bytes, those of tables 8-aligned."""

    num_bytes: int  # of the buffer in use
    groups: tuple[Group, ...]
    void: int  # where VOID lies
    blocks: int  # where the table of blocks lies, (num_blocks, 6) int64
    num_blocks: int
    streams: int  # (num_streams, 2) int64
    num_streams: int
    packs: tuple[Pack, ...]  # chunks of the fixed-width codec
    block_bytes: int  # the largest block
    arrays: tuple[tuple[int, tuple[int, int, int, int]], ...]  # of each layout: offset in the output, (B, C, H, W)
    out_bytes: int


Inflate = Callable[[Tensor, Sequence[Group], int], list[Tensor]]  # (buffer, groups, offset of VOID) -> one uint8 tensor a group


def expand(buffer: Tensor, staged: Staged, inflate: Inflate) -> tuple[Tensor, ...]:
    """The patches of a staged batch, (B, C, H, W) int16 for each layout, on the device of `buffer` (num_bytes,) uint8."""
    inflated = inflate(buffer, staged.groups, staged.void) if staged.groups else []
    blocks = _table(buffer, staged.blocks, staged.num_blocks, columns=6)
    streams = _table(buffer, staged.streams, staged.num_streams, columns=2)
    sources = [buffer, *(x.reshape(-1) for x in inflated)]
    out = ops.unfilter_streams(sources, blocks, streams, staged.out_bytes, staged.block_bytes)
    for pack in staged.packs:
        ops.bitpack_decode_into(buffer, _table(buffer, pack.at, pack.num, columns=5), out, pack.shape, pack.shape[1:], torch.int16)
    return tuple(out[at:at + 2 * int(np.prod(shape))].view(torch.int16).view(shape) for at, shape in staged.arrays)


def _table(buffer: Tensor, at: int, rows: int, *, columns: int) -> Tensor:
    return buffer[at:at + 8 * columns * rows].view(torch.int64).view(rows, columns)


class Share(NamedTuple):
    """One thread's part of one array: chunk k of `located` goes to bytes at[k] of the slab."""

    layout: ChunkLayout
    located: Located
    at: np.ndarray  # (n,) int64
    out: int  # where the array's patches begin in the output
    on_device: bool


class Stager:
    """Reads batches into slabs with `num_threads` threads of its own. Not for use by two threads at once.

    zstd: whether the device inflates zstd frames; else, like every codec but LZ4, they are decoded here and copied whole.
    """

    def __init__(self, layouts: Sequence[ChunkLayout], *, num_threads: int, lz4: bool = True, zstd: bool = False) -> None:
        self._layouts = tuple(layouts)
        self._on_device = [goes_compressed(layout, lz4=lz4, zstd=zstd) for layout in layouts]
        self._indexes = [ShardIndex(layout) for layout in layouts]
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="dsengine-stage")

    def stage(self, ids: np.ndarray, slab: Slab) -> Staged:
        """Patches `ids` (B,) int64, B >= 1, in `slab`. Raises RunError naming file, array and patch of damage; all threads are idle by then."""
        shares, arrays, at, out = [], [], 0, 0
        for layout, index, on_device in zip(self._layouts, self._indexes, self._on_device, strict=True):
            located = index.locate(ids)
            slot = located.size if on_device else np.where(located.size > 0, layout.patch_bytes, 0)
            stop = np.cumsum(slot)
            shares += list(self._shares(layout, located, at + stop - slot, out=out, on_device=on_device))
            arrays.append((out, (len(ids), *layout.patch_shape)))
            at, out = _aligned(at + int(stop[-1])), _aligned(out + len(ids) * layout.patch_bytes)
        slab.ensure(at + (1 << 16))
        futures = [self._pool.submit(_stage_share, share, slab.array) for share in shares]
        for error in [future.exception() for future in futures]:
            if error is not None:
                raise error
        tables = [future.result()[0] for future in futures]
        late = [(share, k) for share, future in zip(shares, futures, strict=True) for k in future.result()[1]]
        at = _decode_late(late, slab, at, tables)
        at = _add_fills(shares, slab, at, tables)
        return _finish(frames.join(tables), slab, at, shares=shares, arrays=tuple(arrays), out_bytes=out)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _shares(self, layout: ChunkLayout, located: Located, at: np.ndarray, *, out: int, on_device: bool) -> Iterator[Share]:
        bounds = np.linspace(0, len(at), self._num_threads + 1).astype(int).tolist()
        for lo, hi in zip(bounds, bounds[1:]):
            if hi > lo:
                yield Share(layout, located.part(lo, hi), at[lo:hi], out, on_device)


def goes_compressed(layout: ChunkLayout, *, lz4: bool, zstd: bool) -> bool:
    """Whether chunks of `layout` go to the device as they are stored."""
    if layout.compressor == "blosc":
        return lz4 and layout.cname in ("lz4", "lz4hc")
    if layout.compressor == "bitpack":
        return layout.checked  # a device cannot say that a chunk is damaged
    return layout.compressor == "none" or zstd


def _aligned(at: int) -> int:
    return -(-at // ALIGN) * ALIGN


def _target(share: Share) -> np.ndarray:
    return share.out + share.located.row * share.layout.patch_bytes


def _stage_share(share: Share, slab: np.ndarray) -> tuple[frames.Tables, list[int]]:
    """Tables of a share whose bytes are now in the slab, and the chunks that must be decoded on the CPU after all."""
    stored = np.flatnonzero(share.located.size)
    if not share.on_device:
        _decode_share(share, slab)
        return frames.copies(share.at[stored], _target(share)[stored], patch_bytes=share.layout.patch_bytes), []
    _read_share(share, slab)
    size = share.located.size[stored] - (CRC_BYTES if share.layout.checked else 0)
    if share.layout.compressor == "blosc":
        return _parse(share, slab, stored, size)
    for k in stored.tolist():
        chunk = _chunk(share, k, slab)
        _check_plain(chunk, chunk.data[:-CRC_BYTES] if share.layout.checked else chunk.data)
    if share.layout.compressor == "bitpack":
        return frames.copies(stored[:0], stored[:0], patch_bytes=share.layout.patch_bytes), []
    make = {"none": lambda at, size, to: frames.copies(at, to, patch_bytes=share.layout.patch_bytes),
            "zstd": lambda at, size, to: frames.zstd_frames(at, size, to, patch_bytes=share.layout.patch_bytes)}
    return make[share.layout.compressor](share.at[stored], size, _target(share)[stored]), []


def _read_share(share: Share, slab: np.ndarray) -> None:
    """The share's bytes into the slab, crc32c compared. What the C library refuses is read again here, for its error."""
    refused = range(len(share.located.row))
    if share.layout.storage.local:
        refused = read_raw(share.layout, share.located, share.at, slab).tolist()
    elif share.located.size.any():
        lo = int(share.at[0])
        read_chunks(share.layout, share.located, slab[lo:lo + int(share.located.size.sum())])
    for k in refused:
        if share.layout.storage.local:
            read_chunks(share.layout, share.located.part(k, k + 1), slab[int(share.at[k]):])
        chunk = _chunk(share, k, slab)
        if share.layout.checked and chunk.data.nbytes:
            checked_body(chunk)


def _chunk(share: Share, k: int, slab: np.ndarray) -> Chunk:
    """Chunk k of a share whose bytes are in the slab."""
    lo = int(share.at[k])
    return Chunk(share.layout, int(share.located.row[k]), int(share.located.patch[k]), slab[lo:lo + int(share.located.size[k])])


def _check_plain(chunk: Chunk, body: np.ndarray) -> None:
    if chunk.layout.compressor == "zstd":
        check_zstd_header(chunk, body)
    elif chunk.layout.compressor == "bitpack":
        check_bitpack_header(chunk, body)
    elif body.nbytes != chunk.layout.patch_bytes:
        raise chunk.fail(f"the chunk has {body.nbytes} bytes, one patch has {chunk.layout.patch_bytes}")


def _parse(share: Share, slab: np.ndarray, stored: np.ndarray, size: np.ndarray) -> tuple[frames.Tables, list[int]]:
    try:
        tables, other = frames.parse_frames(slab, share.at[stored], size, _target(share)[stored], patch_bytes=share.layout.patch_bytes)
    except frames.FrameProblem as error:
        raise damage(share.layout, int(share.located.patch[stored[error.chunk]]), str(error)) from None
    return tables, stored[other].tolist()


def _decode_share(share: Share, slab: np.ndarray) -> None:
    """Decode the share's chunks into their slots, a window of compressed bytes at a time."""
    first = 0
    for window in windows(share.located):
        for chunk, at in zip(read_chunks(share.layout, window, np.empty(int(window.size.sum()), dtype=np.uint8)), share.at[first:].tolist()):
            if chunk.data.nbytes:
                decode(chunk, _patch_at(slab, at, share.layout))
        first += len(window.row)


def _patch_at(slab: np.ndarray, at: int, layout: ChunkLayout) -> np.ndarray:
    return slab[at:at + layout.patch_bytes].view(np.int16).reshape(layout.patch_shape)


def _decode_late(late: list[tuple[Share, int]], slab: Slab, at: int, tables: list[frames.Tables]) -> int:
    """Decode chunks whose frame is of another codec than their array says behind the others; where the slab is free after it."""
    slab.ensure(at + sum(share.layout.patch_bytes for share, _ in late) + (1 << 16))
    for share, k in late:
        decode(_chunk(share, k, slab.array), _patch_at(slab.array, at, share.layout))
        tables.append(frames.copies(np.array([at]), _target(share)[k:k + 1], patch_bytes=share.layout.patch_bytes))
        at += share.layout.patch_bytes
    return _aligned(at)


def _add_fills(shares: list[Share], slab: Slab, at: int, tables: list[frames.Tables]) -> int:
    """One piece of fill value for the patches of each share that are not stored; where the slab is free after it."""
    for share in shares:
        missing = share.located.size == 0
        if missing.any():
            num_bytes = min(frames.PIECE_BYTES, share.layout.patch_bytes)
            slab.ensure(at + num_bytes + (1 << 16))
            slab.array[at:at + num_bytes].view(np.int16)[:] = share.layout.fill_value
            tables.append(frames.fills(at, _target(share)[missing], patch_bytes=share.layout.patch_bytes))
            at = _aligned(at + num_bytes)
    return at


def _finish(tables: frames.Tables, slab: Slab, at: int, *, shares: list[Share], arrays: tuple, out_bytes: int) -> Staged:
    """Group the streams and write VOID and the tables at byte `at` of the slab."""
    groups, streams = _grouped(tables)
    blocks_at = at + 16
    streams_at = blocks_at + tables.blocks.nbytes
    packs_at = streams_at + streams.nbytes
    packs, rows = _packs(shares, packs_at)
    stop = packs_at + rows.nbytes
    slab.ensure(stop)
    slab.array[at:at + len(VOID)] = np.frombuffer(VOID, dtype=np.uint8)
    slab.array[blocks_at:streams_at] = tables.blocks.reshape(-1).view(np.uint8)
    slab.array[streams_at:packs_at] = streams.reshape(-1).view(np.uint8)
    slab.array[packs_at:stop] = rows.reshape(-1).view(np.uint8)
    block_bytes = int(tables.blocks[:, 1].max(initial=1))
    return Staged(stop, groups, at, blocks_at, len(tables.blocks), streams_at, len(streams), packs, block_bytes, arrays, out_bytes)


def _packs(shares: list[Share], at: int) -> tuple[tuple[Pack, ...], np.ndarray]:
    """The shares of the fixed-width codec that are on their way as they are, and their rows (n, 5) int64, which will lie at `at`."""
    packs, rows = [], [np.empty((0, 5), dtype=np.int64)]
    for share in shares:
        if share.on_device and share.layout.compressor == "bitpack":
            stored = np.flatnonzero(share.located.size)
            columns = (share.at[stored], share.located.size[stored] - CRC_BYTES, _target(share)[stored])
            packs.append(Pack(at, len(stored), share.layout.patch_shape))
            rows.append(np.stack([*columns, *[np.zeros_like(stored)] * 2], axis=1))
            at += rows[-1].nbytes
    return tuple(packs), np.concatenate(rows)


def _grouped(tables: frames.Tables) -> tuple[tuple[Group, ...], np.ndarray]:
    """Groups in order of codec and size, and (S, 2) int64: source (0: the buffer, else 1 + group) and offset of each stream."""
    streams = np.stack([np.zeros_like(tables.offset), tables.offset], axis=1)
    packed = np.flatnonzero(tables.codec != frames.RAW)
    kinds, which = np.unique(np.stack([tables.codec[packed], tables.decoded[packed]], axis=1), axis=0, return_inverse=True)
    if len(kinds) > MAX_GROUPS:
        raise RunError(f"a batch has compressed streams of {len(kinds)} sizes, a GPU takes {MAX_GROUPS}; `dsengine corpus convert` gives all "
                       "chunks one block size")
    groups = []
    for number, (codec, decoded) in enumerate(kinds.tolist()):
        mine = packed[which.reshape(-1) == number]
        streams[mine] = np.stack([np.full(len(mine), 1 + number), np.arange(len(mine)) * decoded], axis=1)
        groups.append(Group(codec, decoded, tables.offset[mine], tables.size[mine]))
    return tuple(groups), streams
