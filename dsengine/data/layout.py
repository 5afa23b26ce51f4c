"""How the chunks of one corpus array lie on disk, read once from its Zarr v3 metadata."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zarr
from zarr.abc.codec import Codec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from dsengine.corpus.bitpack import BitpackCodec
from dsengine.corpus.storage import Storage, Url, storage_at
from dsengine.errors import UsageError

LEGAL = "legal: (1, C, H, W) int16 chunks, in shards or a file each, with codecs bytes(little) [, blosc | zstd] [, crc32c] or " \
        "dsengine.bitpack [, crc32c]"


@dataclass(frozen=True, kw_only=True)
class ChunkLayout:
    """One array `(N, C, H, W)` int16, one patch a chunk, `patches_per_shard` patches a file.

    Where it is not `sharded`, a file is one chunk without an index: a shard of one.
    """

    name: str
    directory: Path | Url
    storage: Storage = field(compare=False)  # of `directory`
    num_patches: int
    patch_shape: tuple[int, int, int]  # C, H, W
    patches_per_shard: int
    sharded: bool
    compressor: str  # blosc | zstd | bitpack | none
    cname: str  # Blosc's own codec, "" where the compressor is another
    checked: bool  # each chunk ends with its crc32c
    fill_value: int
    separator: str

    @property
    def num_shards(self) -> int:
        """Shard files of the whole array, the last one perhaps partly filled."""
        return -(-self.num_patches // self.patches_per_shard)

    @property
    def patch_bytes(self) -> int:
        """Bytes of one decoded patch."""
        c, h, w = self.patch_shape
        return 2 * c * h * w

    def shard_key(self, shard: int) -> str:
        """Name of shard `shard` below `directory` (default chunk key encoding)."""
        return self.separator.join(("c", str(shard), "0", "0", "0"))

    def shard_path(self, shard: int) -> Path | Url:
        """File or object of shard `shard`."""
        return self.directory / self.shard_key(shard)


def chunk_layout(array: zarr.Array, *, root: Path | Url) -> ChunkLayout:
    """Layout of `array` in the group stored at `root`. Raises UsageError when it is not an array of patches, one a chunk."""
    meta = array.metadata
    name = array.basename
    if array.dtype != "int16" or meta.ndim != 4:
        raise UsageError(f"array {name} of {root}: {array.dtype}, shape {array.shape}; {LEGAL}")
    codec = meta.codecs[0] if isinstance(meta.codecs[0], ShardingCodec) else None
    patches, *outer = meta.chunk_grid.chunk_shape
    if (meta.chunk_grid.chunk_shape if codec is None else codec.chunk_shape) != (1, *array.shape[1:]) or tuple(outer) != array.shape[1:]:
        raise UsageError(f"array {name} of {root}: chunks {array.chunks} of {array.shape}; {LEGAL}")
    compressor, cname, checked = _inner_codecs(meta.codecs if codec is None else codec.codecs, name=name, root=root)
    if codec is not None and ([type(c) for c in codec.index_codecs] != [BytesCodec, Crc32cCodec] or codec.index_location.value != "end"):
        raise UsageError(f"array {name} of {root}: shard index {codec.index_codecs} at the {codec.index_location.value}; "
                         "legal: bytes(little), crc32c at the end")
    directory = root / array.path
    return ChunkLayout(
        name=name, directory=directory, storage=storage_at(directory), num_patches=array.shape[0], patch_shape=tuple(array.shape[1:]),
        patches_per_shard=patches, sharded=codec is not None, compressor=compressor, cname=cname, checked=checked,
        fill_value=int(array.fill_value), separator=meta.chunk_key_encoding.separator)


def _inner_codecs(codecs: Sequence[Codec], *, name: str, root: Path | Url) -> tuple[str, str, bool]:
    """(compressor, Blosc's codec, whether a crc32c closes each chunk) of a chunk's codecs."""
    chain = list(codecs)
    kinds = [type(c) for c in chain]
    checked = kinds[-1] is Crc32cCodec
    middle = kinds[1:-1] if checked else kinds[1:]
    if kinds[0] is BitpackCodec and not middle:
        return "bitpack", "", checked
    known = {(): "none", (BloscCodec,): "blosc", (ZstdCodec,): "zstd"}
    little = kinds[0] is BytesCodec and (chain[0].endian is None or chain[0].endian.value == "little")
    if not little or tuple(middle) not in known:
        raise UsageError(f"array {name} of {root}: chunk codecs {chain}; {LEGAL}")
    cname = chain[1].cname.value if middle == [BloscCodec] else ""
    return known[tuple(middle)], cname, checked
