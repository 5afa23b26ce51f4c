"""A reader written from docs/corpus.md alone: json, struct, numpy, and decoders of raw LZ4 and Zstandard. No zarr, no Blosc, none of our code."""

import json
import struct
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest

from dsengine.corpus import open_corpus
from dsengine.corpus.build.plan import build_corpus
from dsengine.corpus.edit.copy import Changes, copy_plan

EMPTY = 2**64 - 1


def checked(data: bytes) -> bytes:
    """`data` without its crc32c."""
    body, crc = data[:-4], struct.unpack("<I", data[-4:])[0]
    assert google_crc32c.value(body) == crc
    return body


def unblosc(frame: bytes) -> bytes:
    """A Blosc 1 frame of LZ4."""
    flags, typesize, num_bytes, block_bytes, _ = struct.unpack("<xxBBIII", frame[:16])
    if flags & 2:
        return frame[16:16 + num_bytes]
    assert flags >> 5 == 1, "not LZ4"
    out = []
    for k in range(-(-num_bytes // block_bytes)):
        at, room = struct.unpack_from("<i", frame, 16 + 4 * k)[0], min(block_bytes, num_bytes - k * block_bytes)
        streams = 1 if flags & 16 or room < block_bytes else typesize
        raw = b""
        for _ in range(streams):
            length = struct.unpack_from("<i", frame, at)[0]
            body, part = frame[at + 4:at + 4 + length], room // streams
            raw += body if length == part else numcodecs.LZ4().decode(struct.pack("<I", part) + body)
            at += 4 + length
        n = room // typesize
        whole = np.frombuffer(raw[:n * typesize], np.uint8).reshape(typesize, n).T.tobytes() if flags & 1 else raw[:n * typesize]
        out.append(whole + raw[n * typesize:])
    return b"".join(out)


def decoded(body: bytes, codecs: list[str]) -> bytes:
    """A chunk's bytes through its codecs, last first."""
    for name in reversed(codecs):
        body = {"crc32c": checked, "blosc": unblosc, "zstd": numcodecs.Zstd().decode, "bytes": bytes, "vlen-utf8": bytes}[name](body)
    return bytes(body)


def sharded(folder: Path, row: int) -> np.ndarray:
    """One patch of an image array or class map."""
    meta = json.loads((folder / "zarr.json").read_bytes())
    slots, (sharding,) = meta["chunk_grid"]["configuration"]["chunk_shape"][0], meta["codecs"]
    shape = meta["shape"][1:]
    data = folder.joinpath("c", str(row // slots), *["0"] * len(shape)).read_bytes()
    table = np.frombuffer(checked(data[-16 * slots - 4:]), "<u8").reshape(slots, 2)
    start, length = (int(value) for value in table[row % slots])
    assert start != EMPTY
    raw = decoded(data[start:start + length], [codec["name"] for codec in sharding["configuration"]["codecs"]])
    return np.frombuffer(raw, np.dtype(meta["data_type"]).newbyteorder("<")).reshape(shape)


def column(folder: Path) -> list:
    """A whole index column."""
    meta = json.loads((folder / "zarr.json").read_bytes())
    num, rows, codecs = meta["shape"][0], meta["chunk_grid"]["configuration"]["chunk_shape"][0], [codec["name"] for codec in meta["codecs"]]
    values: list = []
    for chunk in range(-(-num // rows)):
        file = folder / "c" / str(chunk)
        if not file.exists():
            values += [meta["fill_value"]] * rows
        elif "vlen-utf8" in codecs:
            values += texts(decoded(file.read_bytes(), codecs))
        else:
            values += np.frombuffer(decoded(file.read_bytes(), codecs), np.dtype(meta["data_type"]).newbyteorder("<")).tolist()
    return values[:num]


def texts(raw: bytes) -> list[str]:
    """vlen-utf8."""
    found, at = [], 4
    for _ in range(struct.unpack_from("<I", raw)[0]):
        (length,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4:at + 4 + length].decode())
        at += 4 + length
    return found


@pytest.mark.parametrize("codec, groups", [("lz4", ""), ("zstd", ""), ("none", ""), ("lz4", "s2_20m:2=B05,B06,B07,B8A,B11,B12")])
def test_the_page_is_enough_to_read_a_corpus(small_corpus: Path, tmp_path: Path, codec: str, groups: str) -> None:
    from dsengine.corpus.edit.layout import parse_group

    changes = Changes(codec=codec, shard_patches=40, groups=(parse_group(groups),) if groups else (), resample="mean")
    path = Path(build_corpus(tmp_path / "c", copy_plan([small_corpus], changes, command="test")))
    root, corpus = json.loads((path / "zarr.json").read_bytes())["attributes"]["dsengine"], open_corpus(path)
    assert root["version"] == 1 and root["complete"]
    for row in (0, 39, 40, 95):
        for sensor in ("s2", "s1"):
            bands = [band for band in root["bands"] if band["sensor"] == sensor]
            planes = [sharded(path / band["array"], row)[band["channel"]].repeat(band["factor"], 0).repeat(band["factor"], 1) for band in bands]
            np.testing.assert_array_equal(np.stack(planes), corpus.read([row], sensor)[0])
        np.testing.assert_array_equal(sharded(path / "labels/landcover", row), corpus.labels["landcover"][row])
    for name, values in corpus.index._asdict().items():
        np.testing.assert_array_equal(np.array(column(path / "index" / name), dtype=values.dtype), values, err_msg=name)
