"""How many bytes a compressed chunk says that it becomes: read from its header and compared before a decompressor allocates them."""

from collections.abc import Sequence

from dsengine.corpus import bitpack

ZSTD_MAGIC = (0xFD2FB528).to_bytes(4, "little")
BLOSC_HEADER_BYTES = 16


def declared_bytes(codec: str, body: bytes | memoryview) -> int:
    """Decoded size that a `blosc` or `zstd` frame or a `bitpack` chunk states; the length itself for "".

    ValueError when it is no frame, or states none.
    """
    if codec == "":
        return len(body)
    head = bytes(body[:bitpack.HEADER_BYTES])
    if codec == "blosc":
        if len(head) < BLOSC_HEADER_BYTES:
            raise ValueError(f"{len(body)} bytes, less than a blosc header")
        return int.from_bytes(head[4:8], "little")
    if codec == "zstd":
        return _zstd_content(head)
    if codec == "bitpack":
        return bitpack.declared_bytes(head)
    raise ValueError(f"codec {codec}: legal: blosc, zstd, bitpack")


def check_declared(codec: str, body: bytes | memoryview, limit: int) -> None:
    """ValueError when a frame says that it becomes more than `limit` bytes."""
    if (size := declared_bytes(codec, body)) > limit:
        raise ValueError(f"{len(body)} bytes that say they become {size:,}, at most {limit:,} belong here")


def chain(codecs: Sequence[dict]) -> tuple[str, bool]:
    """(compressor "", "blosc", "zstd" or "bitpack"; whether a crc32c comes last) of codecs as in zarr.json. ValueError for any other chain."""
    names = [codec["name"].removeprefix("numcodecs.") for codec in codecs]
    checked = names[-1:] == ["crc32c"]
    middle = names[1:-1] if checked else names[1:]
    if names[:1] == [bitpack.NAME] and not middle:
        return "bitpack", checked
    if names[:1] not in (["bytes"], ["vlen-utf8"]) or middle not in ([], ["blosc"], ["zstd"]):
        raise ValueError(f"codecs {', '.join(names)}; legal: bytes or vlen-utf8 [, blosc | zstd] [, crc32c], or dsengine.bitpack [, crc32c]")
    return (middle[0] if middle else ""), checked


def _zstd_content(head: bytes) -> int:
    """Frame_Content_Size of RFC 8878, section 3.1.1.1."""
    if len(head) < 6 or head[:4] != ZSTD_MAGIC:
        raise ValueError("not a zstd frame")
    descriptor = head[4]
    single_segment = bool(descriptor & 0x20)
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = {0: int(single_segment), 1: 2, 2: 4, 3: 8}[descriptor >> 6]
    if width == 0:
        raise ValueError("a zstd frame without its content size")
    size = int.from_bytes(head[start:start + width], "little")
    return size + 256 if width == 2 else size
