"""Reads pickles of plain values from strangers: the opcodes are interpreted here, so nothing is imported and nothing is called.

A pickle is a program for a small stack machine, and `pickle.load` runs whatever function it names. This machine knows the opcodes
that build numbers, strings, bytes, lists, tuples, dicts and sets. A class or function is legal only by a name in `allowed`, and even
then it is not looked up: its instances come back as `Record`, the name with its arguments and state, for the caller to interpret.
"""

import io
import os
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dsengine.errors import UsageError

MAX_BYTES = 32 << 20
MAX_OPCODES = 4_000_000  # one opcode of one byte makes at most an object of some 60 bytes
DATETIME = "datetime.datetime"
# Protocol 2 writes bytes as a call of this function on text; it is computed here, not called.
_ENCODE = "_codecs.encode"


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names; it stands for itself."""

    dotted: str


@dataclass
class Record:
    """What the pickle would make by calling `name` on `args`; `state` is what it would set on the object afterwards."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


def read_pickle(path: str | os.PathLike[str], *, allowed: Collection[str] = (), max_bytes: int = MAX_BYTES) -> Any:
    """The value in the pickle at `path`. `allowed` are dotted names whose instances may occur, as `Record`.

    Raises UsageError naming the file when it cannot be read, is larger than `max_bytes`, is not a complete pickle, or holds anything else.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise UsageError(f"{path} has {size} bytes; legal: a pickle of at most {max_bytes}")
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return parse_pickle(content, str(path), allowed=allowed)


def parse_pickle(content: bytes, source: str, *, allowed: Collection[str] = ()) -> Any:
    """As `read_pickle`, of bytes from a file that messages call `source`."""
    try:
        return _Machine(allowed, source).run(content)
    except UsageError:
        raise
    # The parser and the stack operations fail in many ways on a damaged pickle; all of them mean the same here.
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError) as error:
        raise UsageError(f"{source} is not a complete pickle of plain values: {error}") from error


def read_strings(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> list[str]:
    """A pickled list of strings and nothing else. Raises UsageError as `read_pickle` does, or when it holds another value."""
    values = read_pickle(path, max_bytes=max_bytes)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"{path} holds something else than a list of strings")
    return values


def as_datetime(record: Any) -> datetime:
    """The moment that a `Record` of `datetime.datetime` means, without time zone. Raises ValueError for anything else."""
    packed = record.args[0] if isinstance(record, Record) and record.name == DATETIME and len(record.args) == 1 else None
    packed = packed.encode("latin-1") if isinstance(packed, str) else packed  # Python 2
    if not isinstance(packed, bytes) or len(packed) != 10:
        raise ValueError(f"{record!r:.100} is not a datetime without time zone")
    # datetime.__reduce__: year in two bytes, month (its highest bit is `fold`), day, hour, minute, second, microseconds in three.
    return datetime(int.from_bytes(packed[:2], "big"), packed[2] & 0x7F, *packed[3:7], int.from_bytes(packed[7:], "big"))


class _Machine:
    """The stack machine: one `run`, one pickle."""

    def __init__(self, allowed: Collection[str], source: str) -> None:
        self.allowed = frozenset(allowed) | {_ENCODE}
        self.source = source
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count >= MAX_OPCODES:
                raise UsageError(f"{self.source}: more than {MAX_OPCODES} opcodes; legal: a smaller pickle")
            if opcode.name == "STOP":
                return self._result()
            if opcode.name in _PUSH:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise UsageError(f"{self.source}: opcode {opcode.name} is not legal; a pickle may hold numbers, text, lists, tuples, dicts and sets")

    def _result(self) -> Any:
        value, = self.stack
        if isinstance(value, Name):
            raise ValueError(f"it holds only the name {value.dotted}")
        return value

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """What was pushed since the last mark, taken off the stack."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def collect(self, make: Callable[[list[Any]], Any]) -> None:
        """Push `make` of what was pushed since the last mark."""
        items = self.since_mark()
        self.stack.append(make(items))

    def memoize(self, number: Any) -> None:
        self.memo[len(self.memo) if number is None else int(number)] = self.stack[-1]

    def drop(self) -> None:
        self.since_mark()

    def recall(self, number: Any) -> None:
        self.stack.append(self.memo[int(number)])

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pack_tuple(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError("a tuple of more values than there are")
        items = self.stack[len(self.stack) - count:]
        del self.stack[len(self.stack) - count:]
        self.stack.append(tuple(items))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError(f"values are appended to a {type(target).__name__}")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError(f"keys are set on a {type(target).__name__}")
        target.update(_pairs(items))

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise TypeError(f"values are added to a {type(target).__name__}")
        target.update(items)

    def name(self, module: Any, name: Any) -> None:
        dotted = f"{module}.{name}"
        if dotted not in self.allowed:
            legal = ", ".join(sorted(self.allowed - {_ENCODE})) or "plain values only"
            raise UsageError(f"{self.source} is refused: it names {dotted}, which could run code; legal: {legal}")
        self.stack.append(Name(dotted))

    def stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise TypeError("a call of something that is not a name")
        if function.dotted != _ENCODE:
            self.stack.append(Record(function.dotted, args))
        elif len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
            self.stack.append(args[0].encode("latin-1"))
        else:
            raise UsageError(f"{self.source} is refused: it calls {_ENCODE} on something else than text in latin1")

    def build(self, _: Any) -> None:
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, Record):
            raise TypeError(f"a state is set on a {type(record).__name__}")
        record.state = state


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


_PUSH = frozenset({
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.drop(),
    "LIST": lambda machine, _: machine.collect(list),
    "TUPLE": lambda machine, _: machine.collect(tuple),
    "DICT": lambda machine, _: machine.collect(_pairs),
    "FROZENSET": lambda machine, _: machine.collect(frozenset),
    "TUPLE1": lambda machine, _: machine.pack_tuple(1),
    "TUPLE2": lambda machine, _: machine.pack_tuple(2),
    "TUPLE3": lambda machine, _: machine.pack_tuple(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.since_mark()),
    "PUT": _Machine.memoize, "BINPUT": _Machine.memoize, "LONG_BINPUT": _Machine.memoize, "MEMOIZE": _Machine.memoize,
    "GET": _Machine.recall, "BINGET": _Machine.recall, "LONG_BINGET": _Machine.recall,
    "GLOBAL": lambda machine, text: machine.name(*text.split(" ", 1)),
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call, "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
