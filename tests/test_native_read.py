"""The C library's reader: frames of numcodecs' Blosc, crc32c of google_crc32c, damage under the address sanitizer, files that come and go."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from dsengine.data.chunks import ShardIndex
from dsengine.data.layout import chunk_layout
from dsengine.data.native import NativeReader, can_read
from dsengine.data.patches import PatchReader
from dsengine.errors import RunError
from dsengine.ops import library

ISAS = {"portable": 1, "avx2": 2, "avx512": 3}
STORED, BLOSC = 0, 1


def read_one(path: Path, chunk: bytes, *, want: int, compressor: int, checked: bool, isa: str) -> np.ndarray | None:
    """`want` bytes of a shard file that is `chunk` alone, 7 bytes in; None where it is refused. Bytes around them must stay as they are."""
    path.write_bytes(b"x" * 7 + chunk)
    out = np.full(want + 128, 0xA5, dtype=np.uint8)
    arrays = (library.ReadArray * 1)(library.ReadArray(
        prefix=os.fsencode(path)[:-1], suffix=b"", out=out.ctypes.data + 64, num_patches=1, patch_bytes=want, compressor=compressor, checked=checked))
    chunks, status = np.array([[0, int(path.name[-1]), 7, len(chunk), 0]]), np.full(1, -1, dtype=np.int32)
    lib = library.library()
    room = lib.dse_read_scratch(len(chunk), want)
    scratch = np.empty(room, dtype=np.uint8)
    args = library.ReadArgs(arrays=ctypes.addressof(arrays), chunks=chunks.ctypes.data, status=status.ctypes.data, scratch=scratch.ctypes.data,
                            num_arrays=1, num_chunks=1, scratch_bytes=room)
    code = lib.dse_read_cpu(ctypes.byref(args), 1, ISAS[isa])
    if code == 6:
        pytest.skip(f"this CPU has no {isa}")
    assert code == 0 and status[0] in (0, 9) and set(out[:64]) | set(out[64 + want:]) == {0xA5}
    return out[64:64 + want] if status[0] == 0 else None


def content(kind: str, num_bytes: int, seed: int) -> np.ndarray:
    """Bytes that Blosc stores, shrinks a little, or folds into runs and near and far matches."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, num_bytes, dtype=np.uint8)
    if kind == "constant":
        return np.full(num_bytes, 7, dtype=np.uint8)
    if kind == "drift":
        return np.resize(np.cumsum(rng.integers(-9, 10, num_bytes // 2 + 1)).astype(np.int16).view(np.uint8), num_bytes)
    words = rng.integers(0, 256, (9, 40), dtype=np.uint8)  # repeats at every distance, some of them shorter than a step of the copy
    return np.resize(np.concatenate([words[rng.integers(9)][:rng.integers(1, 41)] for _ in range(num_bytes // 8 + 1)]), num_bytes)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(["noise", "constant", "drift", "words"]), num=st.integers(1, 20_000), seed=st.integers(0, 99), typesize=st.sampled_from([1, 2, 4, 8, 17]),
       shuffle=st.sampled_from([0, 1, 2]), blocksize=st.sampled_from([0, 256, 4096, 65536]), clevel=st.sampled_from([0, 1, 5, 9]), cname=st.sampled_from(["lz4", "lz4hc"]))
def test_frames_of_blosc_come_back_whatever_their_filter_and_blocks(tmp_path_factory: pytest.TempPathFactory, isa: str, kind: str, num: int, seed: int,
                                                                    typesize: int, shuffle: int, blocksize: int, clevel: int, cname: str) -> None:
    want = content(kind, 2 * num, seed)
    frame = numcodecs.Blosc(cname, clevel=clevel, shuffle=shuffle, blocksize=blocksize, typesize=typesize).encode(want)
    path = tmp_path_factory.getbasetemp() / "frame0"
    np.testing.assert_array_equal(read_one(path, bytes(frame), want=want.size, compressor=BLOSC, checked=False, isa=isa), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_bytes", [0, 2, 6, 8, 14, 1022, 3070, 3072, 3074, 9216, 30_000])
def test_a_crc32c_is_that_of_google_crc32c_and_any_flipped_bit_is_met(tmp_path: Path, isa: str, num_bytes: int) -> None:
    body = content("noise", num_bytes, 0)
    chunk = bytearray(body.tobytes() + google_crc32c.value(body.tobytes()).to_bytes(4, "little"))
    keep = {"want": num_bytes, "compressor": STORED, "checked": True, "isa": isa}
    np.testing.assert_array_equal(read_one(tmp_path / "c0", bytes(chunk), **keep), body)
    for bit in np.random.default_rng(1).integers(0, 8 * len(chunk), 20).tolist():
        chunk[bit // 8] ^= 1 << bit % 8
        assert read_one(tmp_path / "c0", bytes(chunk), **keep) is None
        chunk[bit // 8] ^= 1 << bit % 8


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.sampled_from([0, 0, 1, 5, 100]), seed=st.integers(0, 3))
def test_a_damaged_frame_is_refused_or_becomes_what_blosc_makes_of_it(tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int, seed: int) -> None:
    """No crc32c, as foreign corpora may lack it: where both decode a frame, they must agree."""
    want = content("words", 4096, seed)
    frame = bytearray(numcodecs.Blosc("lz4", shuffle=seed % 3, blocksize=1024, typesize=2).encode(want))
    frame[at % len(frame)] = value
    frame = bytes(frame[:len(frame) - cut])
    found = read_one(tmp_path_factory.getbasetemp() / "damaged0", frame, want=want.size, compressor=BLOSC, checked=False, isa="portable")
    if found is not None and int.from_bytes(frame[12:16], "little") == len(frame):
        np.testing.assert_array_equal(found, np.frombuffer(numcodecs.Blosc().decode(frame), dtype=np.uint8))


def sanitized(folder: Path, checkout: Path) -> Path:
    """The fuzzer of tests/fuzz with address and undefined-behaviour sanitizers, or a skip."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=alignment", f"-I{checkout / 'csrc'}"]
    built = subprocess.run([compiler, *flags, str(checkout / "tests" / "fuzz" / "decode.cpp"), "-o", str(folder / "fuzz")], capture_output=True, text=True)
    if built.returncode and "asan" in built.stderr:
        pytest.skip("the compiler has no sanitizer library")
    assert built.returncode == 0, built.stderr
    return folder / "fuzz"


def test_no_damaged_frame_or_block_makes_the_decoder_leave_its_buffers(tmp_path: Path, checkout: Path) -> None:
    with open(tmp_path / "frames", "wb") as file:
        for k, (kind, shuffle, typesize) in enumerate((kind, shuffle, typesize) for kind in ("drift", "words", "constant") for shuffle in range(3) for typesize in (1, 2, 5)):
            want = content(kind, 3001 + 2 * k, k)
            frame = numcodecs.Blosc("lz4", shuffle=shuffle, blocksize=1280, typesize=typesize).encode(want)
            file.write(np.array([len(frame), want.size], dtype="<i8").tobytes() + frame)
    found = subprocess.run([sanitized(tmp_path, checkout), str(tmp_path / "frames"), "60000"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    whole, seeds, taken, blocks = map(int, found.stdout.split())
    assert whole == seeds == 27 and taken > 1000 and blocks > 1000  # damage that leaves a frame legal is met too


def array_at(path: Path, codecs: list, **options: object) -> tuple[zarr.Array, np.ndarray]:
    want = content("drift", 2 * 11 * 3 * 16 * 16, 5).view(np.int16).reshape(11, 3, 16, 16).copy()
    want[[2, 9]] = -5  # zarr-python does not store chunks that are all fill value
    array = zarr.create_array(path, shape=want.shape, chunks=(1, 3, 16, 16), shards=(4, 3, 16, 16), dtype="int16", fill_value=-5, compressors=codecs, **options)
    array[:] = want
    return array, want


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("codecs", [[BloscCodec(cname="lz4", shuffle=shuffle, typesize=typesize, blocksize=blocksize), *crc]
                                    for shuffle in ("shuffle", "bitshuffle", "noshuffle") for typesize, blocksize in ((2, 0), (2, 512), (4, 1024)) for crc in ([], [Crc32cCodec()])]
                         + [[], [Crc32cCodec()]], ids=str)
def test_shards_of_zarr_python_read_back(tmp_path: Path, codecs: list, separator: str) -> None:
    array, want = array_at(tmp_path / "a", codecs, chunk_key_encoding={"name": "default", "separator": separator})
    layout = chunk_layout(array, root=tmp_path / "a")
    rows = np.array([10, 2, 0, 7, 7, 9, 3, 10])
    assert can_read(layout)
    out = np.full((len(rows), 3, 16, 16), 77, dtype=np.int16)
    assert NativeReader([layout], num_threads=3).read([ShardIndex(layout).locate(rows)], [out]) == []
    np.testing.assert_array_equal(out, want[rows])


def test_no_file_stays_open_and_a_shard_that_vanishes_between_batches_is_named(tmp_path: Path) -> None:
    array, want = array_at(tmp_path / "a", [BloscCodec(cname="lz4", typesize=2)])
    layout = chunk_layout(array, root=tmp_path / "a")
    reader, out = PatchReader([layout], num_threads=2), np.empty((11, 3, 16, 16), dtype=np.int16)
    reader.read(np.arange(11), [out])
    before = os.listdir("/proc/self/fd")
    reader.read(np.arange(11), [out])
    assert os.listdir("/proc/self/fd") == before
    layout.shard_path(1).unlink()
    with pytest.raises(RunError, match="patch 4: .*No such file"):
        reader.read(np.array([0, 4]), [out[:2]])
    reader.read(np.array([0, 9]), [out[:2]])
    np.testing.assert_array_equal(out[:2], want[[0, 9]])
    reader.close()


def test_a_frame_of_another_codec_in_an_lz4_array_is_decoded_all_the_same(tmp_path: Path) -> None:
    """Blosc frames say their codec themselves; zarr-python goes by the frame, not by the metadata."""
    array, want = array_at(tmp_path / "a", [BloscCodec(cname="zstd", typesize=2)])
    text = (tmp_path / "a" / "zarr.json").read_text()
    (tmp_path / "a" / "zarr.json").write_text(text.replace('"cname": "zstd"', '"cname": "lz4"'))
    layout = chunk_layout(zarr.open_array(tmp_path / "a"), root=tmp_path / "a")
    assert can_read(layout)
    reader, out = PatchReader([layout], num_threads=2), np.empty((11, 3, 16, 16), dtype=np.int16)
    reader.read(np.arange(11), [out])
    reader.close()
    np.testing.assert_array_equal(out, want)
