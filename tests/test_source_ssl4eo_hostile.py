"""Zip files that want more than to be read: nothing is run, nothing leaves the group, and memory stays bounded."""

import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest

from dsengine.corpus.sources._zarrzip import MAX_CHUNK, ZarrZip
from dsengine.errors import RunError

VALUES = np.arange(1000, dtype="<i4")
ARRAY = {"zarr_format": 2, "shape": [1000], "chunks": [250], "dtype": "<i4", "order": "C", "filters": None, "fill_value": 0,
         "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}}


def frame(x: np.ndarray) -> bytes:
    return numcodecs.Blosc().encode(x)


def write(path: Path, *, meta: dict | None = None, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """A group with one array `x` of four chunks; `members` replace or add files."""
    content = {".zgroup": b'{"zarr_format": 2}', "x/.zarray": json.dumps({**ARRAY, **(meta or {})}).encode(),
               **{f"x/{i}": frame(VALUES[250 * i:250 * (i + 1)]) for i in range(4)}, **(members or {})}
    with zipfile.ZipFile(path, "w", compression=compression) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def read(path: Path) -> np.ndarray:
    with ZarrZip(path) as file:
        return file.whole("x", limit=10_000)


def test_an_honest_file_is_read_stored_or_deflated_and_with_raw_chunks(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(write(tmp_path / "a.zip")), VALUES)
    np.testing.assert_array_equal(read(write(tmp_path / "b.zip", compression=zipfile.ZIP_DEFLATED)), VALUES)
    raw = {f"x/{i}": VALUES[250 * i:250 * (i + 1)].tobytes() for i in range(4)}
    np.testing.assert_array_equal(read(write(tmp_path / "c.zip", meta={"compressor": None}, members=raw)), VALUES)


@pytest.mark.parametrize("name", ["../evil", "x/../../evil", "/etc/passwd", "C:/evil", "x\\..\\evil", "a/.."])
def test_a_member_that_leaves_the_group_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.zip", members={name: b"x"})
    with pytest.raises(RunError, match="a.zip: member .* leaves the group") as caught:
        read(path)
    assert repr(name) in str(caught.value)


class Bomb:
    """Leaves a trace when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_pickled_object_array_is_refused_and_no_code_runs(tmp_path: Path) -> None:
    payload = pickle.dumps(Bomb(tmp_path / "trace"))
    meta = {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None}
    path = write(tmp_path / "a.zip", meta=meta, members={f"x/{i}": payload for i in range(4)})
    with pytest.raises(RunError, match=r"x/.zarray: dtype \|O, filters .*legal: numbers or fixed-width text"):
        read(path)
    assert not (tmp_path / "trace").exists()
    pickle.loads(payload)
    assert (tmp_path / "trace").exists()  # the payload was live


@pytest.mark.parametrize(("meta", "message"), [
    ({"shape": [10_000_000_000], "chunks": [250]}, "shape .*legal"),
    ({"shape": [1 << 24, 600], "chunks": [1, 600]}, "legal: up to 10000 values"),
    ({"shape": [1 << 24], "chunks": [1 << 24], "dtype": "<f8", "compressor": None}, "legal: up to 10000 values"),
    ({"shape": [1 << 24, 16], "chunks": [1 << 24, 16]}, f"legal: up to {MAX_CHUNK}"),
    ({"shape": [2], "chunks": [1], "dtype": "<U134217728"}, f"legal: up to {MAX_CHUNK}"),
    ({"shape": [-5]}, "legal"), ({"shape": ["a"]}, "legal"), ({"shape": [True]}, "legal"), ({"chunks": [0]}, "legal"), ({"chunks": [250, 1]}, "legal"),
    ({"dtype": [["a", "<i4"]]}, "dtype"), ({"dtype": "no"}, "TypeError"), ({"filters": [{"id": "delta", "dtype": "<i4"}]}, "filters"),
    ({"compressor": {"id": "zlib", "level": 1}}, "legal: blosc or none"), ({"compressor": {"id": "pickle"}}, "legal: blosc or none"),
    ({"order": "F"}, "legal: 2, C"), ({"zarr_format": 3}, "legal: 2, C"), ({"dimension_separator": "/../"}, "legal: . or /"),
])
def test_a_header_that_asks_for_too_much_is_refused_before_memory_is_taken(tmp_path: Path, meta: dict, message: str) -> None:
    path = write(tmp_path / "a.zip", meta=meta)
    tracemalloc.start()
    with pytest.raises(RunError, match=message):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_taking_more_rows_than_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", meta={"shape": [4, 1 << 24], "chunks": [1, 250]})
    with ZarrZip(path) as file, pytest.raises(RunError, match="4 entries of x, .*legal: up to"):
        file.take("x", np.zeros((64, 1), np.int64) + np.arange(64)[:, None] % 4)


def lying(size: int) -> bytes:
    """A Blosc frame that says it decodes to `size` bytes."""
    honest = frame(VALUES[:250])
    return honest[:4] + struct.pack("<I", size) + honest[8:]


@pytest.mark.parametrize("content", [lying(1 << 30), lying(2_000_000_000), lying(4), b"", b"short", frame(VALUES[:250])[:-8], frame(VALUES[:249])])
def test_a_chunk_that_decodes_to_another_size_is_damage(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.zip", members={"x/2": content})
    tracemalloc.start()
    with pytest.raises(RunError, match="a.zip: x/2"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_zip_bomb_is_refused_by_its_size_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", members={"x/1": bytes(200 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(RunError, match="x/1 unpacks to 209715200 bytes; legal: up to"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_a_bomb_that_lies_about_its_size_yields_no_more_than_it_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", members={"x/1": bytes(200 << 20)}, compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    for at in range(len(data) - 4):
        if data[at:at + 4] == struct.pack("<I", 200 << 20):
            data[at:at + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(RunError, match="a.zip: x/1"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_cannot_be_bounded_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(RunError, match=f"zip method {method}; legal: stored or deflated"):
        read(write(tmp_path / "a.zip", compression=method))


def test_a_missing_chunk_is_damage_and_not_the_fill_value(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
        for name in old.namelist():
            if name != "x/3":
                new.writestr(name, old.read(name))
    with pytest.raises(RunError, match="b.zip: x/3 is missing"):
        read(tmp_path / "b.zip")


def test_a_flipped_byte_and_a_truncated_file_are_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("x/2").header_offset + 30 + len("x/2") + 40
    data[at] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(RunError, match="b.zip: x/2 cannot be read: .*CRC"):
        read(tmp_path / "b.zip")
    (tmp_path / "c.zip").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="c.zip cannot be read as a zip file"):
        read(tmp_path / "c.zip")


@pytest.mark.parametrize(("units", "start", "step"), [("seconds since 2020-01-01", "2020-01-01", "s"), ("days since 1970-01-01 00:00:00", "1970-01-01", "D"),
                                                      ("nanoseconds since 2019-12-31T23:59:59", "2019-12-31T23:59:59", "ns")])
def test_times_are_decoded_by_their_units(tmp_path: Path, units: str, start: str, step: str) -> None:
    path = write(tmp_path / "a.zip", members={"x/.zattrs": json.dumps({"units": units}).encode()})
    with ZarrZip(path) as file:
        np.testing.assert_array_equal(file.times("x"), (np.datetime64(start, "ns") + VALUES.astype(f"timedelta64[{step}]")).astype(np.int64))


@pytest.mark.parametrize("units", ["fortnights since 2020-01-01", "seconds since yesterday", "", "seconds"])
def test_units_that_say_no_time_are_refused(tmp_path: Path, units: str) -> None:
    path = write(tmp_path / "a.zip", members={"x/.zattrs": json.dumps({"units": units}).encode()})
    with ZarrZip(path) as file, pytest.raises(RunError, match="x has units"):
        file.times("x")


def test_what_writers_use_for_no_time_is_unknown(tmp_path: Path) -> None:
    for dtype, empty in (("<i8", np.iinfo(np.int64).min), ("<f8", np.nan)):
        values = np.array([7, empty], dtype)
        path = write(tmp_path / f"{dtype[1:]}.zip", meta={"shape": [2], "chunks": [2], "dtype": dtype},
                     members={"x/0": frame(values), "x/.zattrs": b'{"units": "seconds since 1970-01-01"}'})
        with ZarrZip(path) as file:
            assert file.times("x").tolist() == [7 * 10**9, np.iinfo(np.int64).min]
