"""The parser of Blosc frames against damage: whatever the bytes, a named problem or tables that stay inside, never a read outside."""

import struct
from collections.abc import Iterator

import numcodecs
import numpy as np
import pytest
from numcodecs import blosc

from dsengine.data import frames
from dsengine.data.frames import FrameProblem, parse_frames

SHUFFLES = {"none": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


def patch() -> np.ndarray:
    """Half smooth, half noise, so that frames have compressed and raw streams."""
    rng = np.random.default_rng(0)
    return np.r_[np.cumsum(rng.normal(0, 5, 3000)) + 500, rng.integers(-32768, 32768, 1100)].astype("<i2")


def frame(shuffle: str = "shuffle", blocksize: int = 2048) -> bytes:
    return bytes(numcodecs.Blosc("lz4", 5, SHUFFLES[shuffle], blocksize).encode(patch()))


def parse(body: bytes, *, lead: int = 3) -> tuple[frames.Tables, np.ndarray]:
    """The tables of one frame that ends where its memory does: the array is exactly as long as frame and lead."""
    data = np.frombuffer(b"\xff" * lead + body, dtype=np.uint8)
    return parse_frames(data, np.array([lead]), np.array([len(body)]), np.array([0]), patch_bytes=patch().nbytes)


def inside(tables: frames.Tables, num_bytes: int) -> bool:
    """Whether every stream lies in the data and every block of the tables in the patch and in the streams."""
    target, size, first, count, typesize, _ = tables.blocks.T
    streams = np.all((tables.offset >= 0) & (tables.size > 0) & (tables.offset + tables.size <= num_bytes) & (tables.decoded > 0))
    blocks = np.all((target >= 0) & (target + size <= patch().nbytes) & (first + count <= len(tables.offset)) & ((count == 1) | (count == typesize)))
    return bool(streams and blocks)


def covers(tables: frames.Tables) -> bool:
    """Whether the blocks are the whole patch once."""
    order = np.argsort(tables.blocks[:, 0])
    ends = np.cumsum(tables.blocks[order, 1])
    return np.array_equal(tables.blocks[order, 0], np.r_[0, ends[:-1]]) and ends[-1] == patch().nbytes


def lz4_decodes(tables: frames.Tables, data: bytes) -> bool:
    """Whether liblz4 makes of every compressed stream what the tables say."""
    for at, size, decoded, codec in zip(*(column.tolist() for column in tables[:4]), strict=True):
        if codec == frames.LZ4 and len(numcodecs.LZ4().decode(struct.pack("<I", decoded) + data[at:at + size])) != decoded:
            return False
    return True


def mutants(body: bytes, num: int, seed: int) -> Iterator[bytes]:
    """Frames with a few bytes changed, most of them in the header, the starts and the lengths of streams; some cut, some longer."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        broken = bytearray(body)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, 80 if rng.random() < 0.6 else len(broken)))
            broken[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256), broken[at] ^ 1 << int(rng.integers(8))]))
        if rng.random() < 0.3:
            word = 4 * int(rng.integers(1, 12))
            broken[word:word + 4] = struct.pack("<I", int(rng.choice([0, 1, 15, 16, len(body), len(body) - 1, 2**31 - 1, 2**31, 2**32 - 1])))
        cut = int(rng.integers(0, len(broken))) if rng.random() < 0.2 else len(broken)
        broken = broken[:cut] + bytes(rng.integers(0, 256, int(rng.integers(0, 9)), dtype=np.uint8)) * (rng.random() < 0.1)
        if rng.random() < 0.5 and len(broken) >= 16:
            broken[12:16] = struct.pack("<I", len(broken))  # so that more than the header's own size is looked at
        yield bytes(broken)


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("blocksize", [0, 512, 2048])
def test_mutated_frames_give_a_problem_or_tables_that_stay_inside(shuffle: str, blocksize: int) -> None:
    refused, kept = 0, 0
    for broken in mutants(frame(shuffle, blocksize), 400, seed=blocksize):
        try:
            tables, other = parse(broken)
        except FrameProblem as problem:
            assert problem.chunk == 0 and str(problem) in frames.PROBLEMS.values()
            refused += 1
            continue
        if not other.size:
            assert inside(tables, 3 + len(broken)) and covers(tables) and lz4_decodes(tables, b"\xff" * 3 + broken)
            kept += 1
    assert refused > 150 and kept > 0


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_what_is_parsed_of_a_mutant_blosc_decodes_too(shuffle: str) -> None:
    for broken in mutants(frame(shuffle), 300, seed=9):
        try:
            tables, other = parse(broken)
        except FrameProblem:
            continue
        if not other.size and struct.unpack_from("<I", broken, 12)[0] == len(broken):
            assert len(blosc.decompress(broken)) == patch().nbytes


def test_frames_of_other_codecs_are_named_and_not_parsed() -> None:
    for cname in ("zstd", "blosclz", "zlib"):
        tables, other = parse(bytes(numcodecs.Blosc(cname, 5).encode(np.zeros_like(patch()))))
        assert other.tolist() == [0] and not len(tables.offset) and not len(tables.blocks)


def test_the_damaged_frame_of_several_is_named() -> None:
    good, bad = frame(), bytearray(frame())
    bad[16:20] = struct.pack("<I", 2**31)
    data = np.frombuffer(good + bytes(bad) + good, dtype=np.uint8)
    start, size = len(good) * np.arange(3), np.full(3, len(good))
    with pytest.raises(FrameProblem, match="a block starts outside") as problem:
        parse_frames(data, start, size, np.zeros(3, dtype=np.int64), patch_bytes=patch().nbytes)
    assert problem.value.chunk == 1


@pytest.mark.parametrize("at, value, words", [
    (0, b"\x01", "no frame of blosc 1"), (1, b"\x02", "no frame of blosc 1"), (2, b"\x29", "no frame of blosc 1"), (3, b"\x00", "type or block size"), (8, struct.pack("<I", 0), "type or block"),
    (8, struct.pack("<I", 1 << 20), "type or block"), (4, struct.pack("<I", 9), "other sizes"), (12, struct.pack("<I", 9), "other sizes"),
    (8, struct.pack("<I", 2), "block starts outside"), (16, struct.pack("<I", 16), "block starts outside")])
def test_each_field_of_a_header_is_compared(at: int, value: bytes, words: str) -> None:
    body = bytearray(frame())
    body[at:at + len(value)] = value
    with pytest.raises(FrameProblem, match=words):
        parse(bytes(body))


@pytest.mark.parametrize("block, decoded, good", [
    (b"\x10\x00", 1, True), (b"\x10\x00", 2, False), (b"\x00", 0, True), (b"\x1f\x07\x01\x00\x00\x10\x07", 21, True), (b"\x1f\x07\x01\x00\x00\x10\x07", 20, False),
    (b"\x1f\x07\x02\x00\x00\x10\x07", 21, False), (b"\x1f\x07\x00\x00\x00\x10\x07", 21, False), (b"\xf0\xff\xff", 525, False), (b"\x10", 1, False),
    (b"\x1f\x07\x01", 20, False), (b"\x1f\x07\x01\x00\xff", 20, False), (b"", 0, False), (b"\x1f\x07\x01\x00\x00", 20, False)])
def test_an_lz4_block_is_walked_to_its_last_byte(block: bytes, decoded: int, good: bool) -> None:
    data = np.frombuffer(block or b"\0", dtype=np.uint8)
    assert frames._lz4_becomes(data, 0, len(block), decoded) == good


def test_a_chunk_outside_the_buffer_is_refused() -> None:
    data = np.zeros(100, dtype=np.uint8)
    for start, size in ((-1, 16), (90, 16), (0, 101), (2**62, 16)):
        with pytest.raises(ValueError, match="leaves the buffer"):
            parse_frames(data, np.array([start]), np.array([size]), np.array([0]), patch_bytes=8)
