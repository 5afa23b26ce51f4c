"""The reader of strangers' .npz files: what numpy wrote comes back, and nothing else is allocated, unpickled or let out of the archive."""

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dsengine.corpus.build.npz import npz_shape, read_npz
from dsengine.errors import RunError

SHAPE = (7, 5, 3)


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def npy(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def declared(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """A .npy header without numbers."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("x", [np.arange(105, dtype="<f4").reshape(SHAPE), np.asfortranarray(np.arange(105, dtype=">i2").reshape(SHAPE)),
                               np.arange(105, dtype=np.uint8).reshape(SHAPE)])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, save: object, x: np.ndarray) -> None:
    save(tmp_path / "a.npz", arr=x, other=np.zeros(3))
    back = read_npz(tmp_path / "a.npz", "arr", shape=SHAPE, dtypes=(x.dtype.str,))
    np.testing.assert_array_equal(back, x)
    assert back.dtype == x.dtype and npz_shape(tmp_path / "a.npz", "arr", max_bytes=1 << 20) == SHAPE


@pytest.mark.parametrize(("shape", "dtypes", "match"), [
    ((5, 7, 3), ("float32",), r"has shape \(7, 5, 3\) and dtype float32; legal: \(5, 7, 3\) float32"),
    (SHAPE, ("uint8", "int16"), r"dtype float32; legal: .* uint8 or int16")])
def test_another_shape_or_dtype_is_named(tmp_path: Path, shape: tuple[int, ...], dtypes: tuple[str, ...], match: str) -> None:
    np.savez(tmp_path / "a.npz", arr=np.zeros(SHAPE, np.float32))
    with pytest.raises(RunError, match=match):
        read_npz(tmp_path / "a.npz", "arr", shape=shape, dtypes=dtypes)


@pytest.mark.parametrize("name", ["../evil.npy", "/etc/evil.npy", "a/../../evil.npy", "C:\\evil.npy", "..\\evil.npy"])
def test_members_that_point_outside_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.npz", {"arr.npy": npy(np.zeros(SHAPE, np.float32)), name: b"x"})
    with pytest.raises(RunError, match="a.npz is refused: member .*evil.npy' points outside"):
        read_npz(path, "arr", shape=SHAPE, dtypes=("float32",))
    with pytest.raises(RunError, match="points outside"):
        npz_shape(path, "arr", max_bytes=1 << 20)


class Evil:
    """Unpickling it fails the test."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("code ran",)


def test_arrays_of_objects_are_refused_and_run_nothing(tmp_path: Path) -> None:
    content = declared((1,), "|O") + pickle.dumps(np.array([Evil()], object))
    path = archive(tmp_path / "a.npz", {"arr.npy": content})
    with pytest.raises(RunError, match="a.npz is refused: its array holds Python objects"):
        read_npz(path, "arr", shape=(1,), dtypes=("float32",))


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    zeros = b"\0" * (64 << 20)
    bombs = {
        "giant.npz": archive(tmp_path / "giant.npz", {"arr.npy": declared((50000, 50000))}),  # 10 GB by its header
        "long.npz": archive(tmp_path / "long.npz", {"arr.npy": declared(SHAPE) + zeros}, zipfile.ZIP_DEFLATED),  # 64 MiB in 65 kB
        "header.npz": archive(tmp_path / "header.npz", {"arr.npy": b"\x93NUMPY\2\0" + len(zeros).to_bytes(4, "little") + zeros},
                              zipfile.ZIP_DEFLATED),
        "list.npz": archive(tmp_path / "list.npz", {f"{i}.npy": b"" for i in range(30000)}),
    }
    tracemalloc.start()
    for name, path in bombs.items():
        with pytest.raises(RunError, match=name):
            read_npz(path, "arr", shape=SHAPE, dtypes=("float32",))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_damage_is_a_run_error_that_names_the_file(tmp_path: Path) -> None:
    whole = npy(np.arange(105, dtype=np.float32).reshape(SHAPE))
    good = archive(tmp_path / "good.npz", {"arr.npy": whole}).read_bytes()
    flipped = bytearray(good)
    flipped[200] ^= 1  # in the numbers: only the checksum shows it
    cases = {"empty": b"", "text": b"hello", "cut": good[:-40], "flipped": bytes(flipped)}
    for name, content in cases.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
    archive(tmp_path / "short.npz", {"arr.npy": whole[:-4]})
    archive(tmp_path / "no_magic.npz", {"arr.npy": b"x" * 600})
    archive(tmp_path / "other_key.npz", {"b.npy": whole})
    for name in (*cases, "short", "no_magic", "other_key", "missing"):
        with pytest.raises(RunError, match=f"{name}.npz"):
            read_npz(tmp_path / f"{name}.npz", "arr", shape=SHAPE, dtypes=("float32",))
