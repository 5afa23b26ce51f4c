"""The reader of strangers' pickles: plain values come back as Python wrote them, nothing else is read, and no code runs."""

import datetime
import os
import pickle
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsengine.corpus.build.restricted_pickle import DATETIME, Record, as_datetime, read_pickle, read_strings
from dsengine.errors import UsageError

PLAIN = [["a", "ü", ""], [], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {"a": 1, 2: None}, {1, 2}, frozenset({3}), -5, 2**70, 0.1,
         float("inf"), True, False, None, b"\x00\xff", "x" * 300, [list(range(300))] * 3, {"nested": [{"k": (1.5, "t")}]}, 70000]


def saved(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) and value[:1] in (b"\x80", b"c", b"(") else pickle.dumps(value, protocol=protocol))
    return path


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=[repr(v)[:20] for v in PLAIN])
def test_plain_values_are_read_as_pickle_reads_them(tmp_path: Path, value: Any, protocol: int) -> None:
    if protocol < 4 and isinstance(value, set | frozenset):
        pytest.skip("sets are opcodes from protocol 4 on")
    assert read_pickle(saved(tmp_path / "x.pkl", value, protocol)) == value


def test_the_first_text_protocol_and_shared_objects_are_read(tmp_path: Path) -> None:
    assert read_pickle(saved(tmp_path / "x.pkl", [1, "é", (2.5, None), {"a": [True]}], 0)) == [1, "é", (2.5, None), {"a": [1]}]
    shared = ["one"]
    first, second = read_pickle(saved(tmp_path / "y.pkl", [shared, shared]))
    assert first is second


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_calls_a_function_is_refused_by_name_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    path = saved(tmp_path / "train_list.pkl", [Evil(target)], protocol)
    with pytest.raises(UsageError, match=r"train_list.pkl is refused: it names posix.mkdir, which could run code"):
        read_pickle(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # it would have


@pytest.mark.parametrize("program", [
    b"cos\nsystem\n(S'true'\ntR.", b"(S'true'\nios\nsystem\n.", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    b"\x80\x02c__builtin__\nobject\n)\x81.", b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", b"\x80\x02\x82\x01.", b"\x80\x02Pid\n.", b"\x80\x02NQ."],
    ids=["reduce", "inst", "eval", "newobj", "stack_global", "ext", "persid", "binpersid"])
def test_every_opcode_that_reaches_outside_is_refused(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(UsageError, match="x.pkl"):
        read_pickle(saved(tmp_path / "x.pkl", program))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_allowed_names_come_back_as_records_that_nobody_called(tmp_path: Path, protocol: int) -> None:
    moments = [datetime.datetime(2018, 2, 3, 4, 5, 6, 789), datetime.datetime(1999, 12, 31)]
    records = read_pickle(saved(tmp_path / "timestamp.pkl", moments, protocol), allowed={DATETIME})
    assert all(isinstance(record, Record) for record in records) and [as_datetime(record) for record in records] == moments
    box = read_pickle(saved(tmp_path / "bbox.pkl", SimpleNamespace(min_x=1.5, crs="32633"), protocol),
                      allowed={"types.SimpleNamespace", "copyreg._reconstructor", "builtins.object", "copy_reg._reconstructor", "__builtin__.object"})
    assert isinstance(box, Record) and box.state == {"min_x": 1.5, "crs": "32633"}


def test_a_name_is_legal_only_where_it_was_allowed(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.pkl", [datetime.datetime(2018, 1, 1)])
    with pytest.raises(UsageError, match=r"names datetime.datetime, which could run code; legal: plain values only"):
        read_pickle(path)
    with pytest.raises(UsageError, match=r"legal: a.B"):
        read_pickle(path, allowed={"a.B"})


def test_a_datetime_with_a_zone_or_anything_else_is_not_a_datetime(tmp_path: Path) -> None:
    for value in (Record("datetime.date", (b"0123",)), Record(DATETIME, (b"short",)), "2018", None, Record(DATETIME, (b"0123456789", "utc"))):
        with pytest.raises(ValueError, match="not a datetime"):
            as_datetime(value)


def test_a_list_of_strings_is_that_and_nothing_else(tmp_path: Path) -> None:
    assert read_strings(saved(tmp_path / "a.pkl", ["p1", "p2"])) == ["p1", "p2"]
    for value in ("p1", ["p1", 2], ("p1",), {"p1": 1}, None):
        with pytest.raises(UsageError, match="list of strings"):
            read_strings(saved(tmp_path / "b.pkl", value))


@pytest.mark.parametrize("content", [
    b"", b"\x80\x04", b"\x80\x04]", b".", b"\x80\x04N0.", b"\x80\x04]]\x86", b"hello", b"\x80\x04h\x05.", b"\x80\x04Nt.", b"\x80\x04NNs.",
    b"\x80\x04]]].", b"\x80\x04)}s.", b"\x80\x02I99999x\n.", b"\x80\x04K\x01K\x02e.", b"\x80\x04}]K\x01s."])
def test_damaged_pickles_are_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.pkl").write_bytes(content)
    with pytest.raises(UsageError, match="d.pkl is not a complete pickle"):
        read_pickle(tmp_path / "d.pkl")


def test_declared_sizes_and_memo_numbers_take_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    for program in (b"\x80\x04\x8e" + (10 << 30).to_bytes(8, "little") + b"x.", b"\x80\x04\x8d" + (10 << 30).to_bytes(8, "little") + b"x.",
                    b"\x80\x04Nr" + (2**32 - 1).to_bytes(4, "little") + b"."):
        path = saved(tmp_path / "b.pkl", program)
        try:
            read_pickle(path)
        except UsageError as error:
            assert "b.pkl" in str(error)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_large_files_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x.pkl has \d+ bytes; legal: a pickle of at most 10"):
        read_pickle(saved(tmp_path / "x.pkl", ["a"] * 100), max_bytes=10)
    with pytest.raises(UsageError, match="none.pkl cannot be read"):
        read_pickle(tmp_path / "none.pkl")
