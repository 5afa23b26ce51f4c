"""The Blosc 1 frames of a batch as tables: where each LZ4 stream lies, what it becomes, and which block of which patch it belongs to.

    frame    16-byte header: versions, flags, typesize, nbytes, blocksize, cbytes; int32 starts of the blocks; the blocks
    block    `blocksize` bytes decoded, the last one what is left; 1 stream, or `typesize` streams (never the short last block)
    stream   int32 length, then one raw LZ4 block; stored raw where the length is the decoded size
    versions 2 of the format, 1 of LZ4 in it
    flags    1 byte-shuffled, 2 stored whole and unfiltered after the header, 4 bit-shuffled, 16 never split, 32 LZ4 (bits 5 to 7)

Frames may be damaged or hostile: each number is compared with what holds it before it is used, and each LZ4 stream is walked, so
that a decoder which trusts it (a GPU's) writes its decoded size and reads nothing outside. The rules are those of c-blosc 1.21.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

HEADER_BYTES = 16
NONE, SHUFFLE, BITSHUFFLE = range(3)  # positions in ops' FILTERS
PIECE_BYTES = 1 << 16  # of a plain copy: about the size of a stream, so that a GPU's threads share the work evenly
PROBLEMS = {
    1: "the chunk is shorter than a blosc header", 2: "it is no frame of blosc 1", 3: "its blosc header says other sizes than were found",
    4: "its blosc header has a type or block size that cannot be", 5: "a block starts outside its blosc frame",
    6: "a stream leaves its blosc frame", 7: "an LZ4 stream of its blosc frame is damaged"}
OTHER_CODEC = 100


class Tables(NamedTuple):
    """Streams and blocks of some chunks; a block's first stream counts from the first of these streams."""

    offset: np.ndarray  # (S,) int64, where the stream's bytes begin
    size: np.ndarray  # (S,) int64, bytes there
    decoded: np.ndarray  # (S,) int64, bytes they become; equal to `size`: stored raw, unless `whole` says otherwise
    codec: np.ndarray  # (S,) uint8: RAW, LZ4, ZSTD
    blocks: np.ndarray  # (K, 6) int64: columns of ops.unfilter_streams


RAW, LZ4, ZSTD = range(3)


class FrameProblem(ValueError):
    """Chunk number `chunk` of those given is damaged."""

    def __init__(self, chunk: int, code: int) -> None:
        super().__init__(PROBLEMS[code])
        self.chunk = chunk


def parse_frames(data: np.ndarray, start: np.ndarray, size: np.ndarray, target: np.ndarray, *, patch_bytes: int) -> tuple[Tables, np.ndarray]:
    """Tables of the frames at `start` (n,) int64 of `data` uint8, `size` bytes each, and the positions of frames of another codec than LZ4.

    target: (n,) int64, where each patch of `patch_bytes` goes. Raises FrameProblem for the first damaged frame.
    """
    if np.any((start < 0) | (size < 0) | (start > data.size - size)):
        raise ValueError("a chunk leaves the buffer")  # the reader put it there: no damage of a file can do this
    count = np.zeros((len(start), 3), dtype=np.int64)
    _count(data, start, size, patch_bytes, count)
    _raise_first(count[:, 2])
    other = np.flatnonzero(count[:, 2] == OTHER_CODEC)
    num_blocks, num_streams = count[:, :2].sum(0).tolist()
    blocks, streams = np.empty((num_blocks, 6), dtype=np.int64), np.empty((num_streams, 3), dtype=np.int64)
    status = np.zeros(len(start), dtype=np.int64)
    _fill(data, start, target, count, blocks, streams, status)
    _raise_first(status)
    codec = np.where(streams[:, 1] == streams[:, 2], RAW, LZ4).astype(np.uint8)
    return Tables(*streams.T.copy(), codec, blocks), other


def copies(offset: np.ndarray, target: np.ndarray, *, patch_bytes: int) -> Tables:
    """Tables of patches that lie decoded at `offset` (n,) int64 and go to `target` (n,) int64, in pieces."""
    at = np.arange(0, patch_bytes, PIECE_BYTES)
    size = np.tile(np.minimum(PIECE_BYTES, patch_bytes - at), len(offset))
    blocks = _plain_blocks((target[:, None] + at).ravel(), size)
    return Tables((offset[:, None] + at).ravel(), size, size, np.full(len(size), RAW, dtype=np.uint8), blocks)


def fills(offset: int, target: np.ndarray, *, patch_bytes: int) -> Tables:
    """Tables of patches at `target` (n,) int64 that repeat the PIECE_BYTES (or `patch_bytes`, where fewer) at `offset`."""
    tables = copies(np.full(len(target), offset, dtype=np.int64), target, patch_bytes=patch_bytes)
    return tables._replace(offset=np.full(len(tables.offset), offset, dtype=np.int64))


def zstd_frames(offset: np.ndarray, size: np.ndarray, target: np.ndarray, *, patch_bytes: int) -> Tables:
    """Tables of patches that are one zstd frame each."""
    n = len(offset)
    return Tables(offset, size, np.full(n, patch_bytes, dtype=np.int64), np.full(n, ZSTD, dtype=np.uint8),
                  _plain_blocks(target, np.full(n, patch_bytes, dtype=np.int64)))


def join(tables: list[Tables]) -> Tables:
    """All of `tables` as one, their blocks counting from its first stream."""
    base, shifted = 0, []
    for part in tables:
        blocks = part.blocks.copy()
        blocks[:, 2] += base
        base += len(part.offset)
        shifted.append(part._replace(blocks=blocks))
    return Tables(*(np.concatenate(column) for column in zip(*shifted, strict=True)))


def _plain_blocks(target: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Unfiltered blocks of one stream each; typesize 2, for which a GPU's copy has its widest loads."""
    n = len(target)
    one = np.ones(n, dtype=np.int64)
    return np.stack([target, size, np.arange(n), one, 2 * one, NONE * one], axis=1)


def _raise_first(status: np.ndarray) -> None:
    bad = np.flatnonzero((status != 0) & (status != OTHER_CODEC))
    if bad.size:
        raise FrameProblem(int(bad[0]), int(status[bad[0]]))


@njit(cache=True, nogil=True)
def _u32(data: np.ndarray, at: int) -> int:
    return np.int64(data[at]) | np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24


@njit(cache=True, nogil=True)
def _splits(flags: int, typesize: int, block_bytes: int) -> int:
    """Streams of a full block; the two size limits are for frames from before the flag was there."""
    return typesize if not flags & 0x10 and typesize <= 16 and block_bytes // typesize >= 128 else 1


@njit(cache=True, nogil=True)
def _check_header(data: np.ndarray, at: int, size: int, want: int) -> int:
    """0, the code of a problem, or OTHER_CODEC."""
    if size < HEADER_BYTES:
        return 1
    flags, typesize, block_bytes = data[at + 2], data[at + 3], _u32(data, at + 8)
    if data[at] != 2 or flags & 0x08:
        return 2
    if _u32(data, at + 4) != want or _u32(data, at + 12) != size:
        return 3
    if typesize == 0 or block_bytes == 0 or block_bytes > want:
        return 4
    if flags & 2:
        return 0 if size == want + HEADER_BYTES else 3
    if flags >> 5 != 1:
        return OTHER_CODEC
    if data[at + 1] != 1:
        return 2
    if block_bytes % _splits(flags, typesize, block_bytes):
        return 4
    return 0 if HEADER_BYTES + 4 * ((want + block_bytes - 1) // block_bytes) <= size else 5


@njit(cache=True, nogil=True)
def _count(data: np.ndarray, start: np.ndarray, size: np.ndarray, want: int, out_N3: np.ndarray) -> None:
    """Fill out (n, 3) with blocks, streams and status of each frame, none for those that have a status."""
    for k in range(start.size):
        at = start[k]
        out_N3[k, 2] = _check_header(data, at, size[k], want)
        if out_N3[k, 2]:
            continue
        flags, typesize, block_bytes = data[at + 2], data[at + 3], _u32(data, at + 8)
        if flags & 2:
            out_N3[k, 0] = out_N3[k, 1] = (want + PIECE_BYTES - 1) // PIECE_BYTES
            continue
        full = want // block_bytes
        short = 1 if want % block_bytes else 0
        parts = _splits(flags, typesize, block_bytes)
        out_N3[k, 0] = (full * parts if _filter(flags, typesize, block_bytes) == NONE else full) + short
        out_N3[k, 1] = full * parts + short


@njit(cache=True, nogil=True)
def _fill(data: np.ndarray, start: np.ndarray, target: np.ndarray, count: np.ndarray, blocks: np.ndarray, streams: np.ndarray,
          status: np.ndarray) -> None:
    """Write the rows of every counted frame; (offset, bytes, decoded bytes) of a stream."""
    block, stream = 0, 0
    for k in range(start.size):
        if count[k, 2] == 0:
            stop = block + count[k, 0], stream + count[k, 1]
            status[k] = _fill_frame(data, start[k], target[k], blocks[block:stop[0]], streams[stream:stop[1]], stream)
            block, stream = stop


@njit(cache=True, nogil=True)
def _fill_frame(data: np.ndarray, at: int, target: int, blocks: np.ndarray, streams: np.ndarray, base: int) -> int:
    """The rows of the frame at `at`, whose first stream is number `base`; 0 or the code of a problem."""
    flags, typesize, want = data[at + 2], np.int64(data[at + 3]), _u32(data, at + 4)
    block_bytes, stop = _u32(data, at + 8), at + _u32(data, at + 12)
    if flags & 2:
        for k in range(len(blocks)):
            size = min(PIECE_BYTES, want - k * PIECE_BYTES)
            blocks[k] = (target + k * PIECE_BYTES, size, base + k, 1, 2, NONE)
            streams[k] = (at + HEADER_BYTES + k * PIECE_BYTES, size, size)
        return 0
    num_blocks = (want + block_bytes - 1) // block_bytes
    row, stream = 0, 0
    for j in range(num_blocks):
        size = min(block_bytes, want - j * block_bytes)
        parts = _splits(flags, typesize, block_bytes) if size == block_bytes else 1
        begin = _u32(data, at + HEADER_BYTES + 4 * j)
        if begin < HEADER_BYTES + 4 * num_blocks or begin > stop - at:
            return 5
        problem = _fill_streams(data, at + begin, stop, size // parts, streams[stream:stream + parts])
        if problem:
            return problem
        filter = _filter(flags, typesize, size)
        if filter == NONE:
            for p in range(parts):
                blocks[row] = (target + j * block_bytes + p * (size // parts), size // parts, base + stream + p, 1, 2, NONE)
                row += 1
        else:
            blocks[row] = (target + j * block_bytes, size, base + stream, parts, typesize, filter)
            row += 1
        stream += parts
    return 0


@njit(cache=True, nogil=True)
def _filter(flags: int, typesize: int, size: int) -> int:
    """What was done to a block of `size` bytes before LZ4."""
    if flags & 1 and typesize > 1:
        return SHUFFLE
    return BITSHUFFLE if flags & 4 and size // typesize % 8 == 0 else NONE


@njit(cache=True, nogil=True)
def _fill_streams(data: np.ndarray, at: int, stop: int, decoded: int, streams: np.ndarray) -> int:
    """Rows of consecutive streams from `at`, all of which must end by `stop`."""
    for k in range(len(streams)):
        if stop - at < 4:
            return 6
        size = _u32(data, at)
        at += 4
        if size == 0 or size > stop - at:
            return 6
        if size != decoded and not _lz4_becomes(data, at, at + size, decoded):
            return 7
        streams[k] = (at, size, decoded)
        at += size
    return 0


@njit(cache=True, nogil=True)
def _lz4_becomes(data: np.ndarray, at: int, stop: int, decoded: int) -> bool:
    """Whether data[at:stop] is an LZ4 block of exactly `decoded` bytes whose matches all lie in what it has written."""
    written = np.int64(0)
    while at < stop:
        token = data[at]
        at += 1
        length = np.int64(token >> 4)
        if length == 15:
            while True:
                if at >= stop:
                    return False
                more = data[at]
                at += 1
                length += more
                if more != 255:
                    break
        at += length
        written += length
        if at == stop:
            return written == decoded
        if at > stop - 2 or written > decoded:
            return False
        distance = np.int64(data[at]) | np.int64(data[at + 1]) << 8
        at += 2
        if distance == 0 or distance > written:
            return False
        length = np.int64(token & 15) + 4
        if length == 19:
            while True:
                if at >= stop:
                    return False
                more = data[at]
                at += 1
                length += more
                if more != 255:
                    break
        written += length
        if written > decoded:
            return False
    return False
