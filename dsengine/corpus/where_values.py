"""What conditions (`corpus.where`) are about: index columns under short names, and how one compares with a number, a text or another."""

import operator
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dsengine.corpus.schema import SPLITS, UNKNOWN_TIME
from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus.index import Corpus
    from dsengine.corpus.series import SeriesCorpus

DAY_NS = 86_400 * 10**9
SIGNS: dict[str, Callable] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:[T ](\d{1,2}):(\d{2})(?::(\d{2}))?Z?)?)?)?")


class Column(NamedTuple):
    """One value a patch."""

    kind: str  # number (NaN unknown) | time (ns UTC, UNKNOWN_TIME unknown) | text (empty unknown)
    values: np.ndarray  # (N,)
    legal: tuple[str, ...] = ()  # the only texts there are, where that is known


class Value(NamedTuple):
    """One side of a comparison."""

    kind: str  # column | number | text | unknown
    value: Column | int | float | str | None
    name: str = ""  # of a column

    def shown(self) -> str:
        """As in the user's text."""
        return self.name if self.kind == "column" else "unknown" if self.kind == "unknown" else repr(self.value)


def legal_names(corpus: "Corpus | SeriesCorpus") -> list[str]:
    """Every name that a condition on `corpus` may use."""
    if isinstance(corpus.index, Mapping):  # series and pixels
        return list(corpus.index)
    return [*corpus.index._fields, *_SHORT, *(name for name in corpus.columns if name not in _SHORT)]


def column(corpus: "Corpus | SeriesCorpus", name: str) -> Column:
    """The column behind a legal name, standard columns and short names first."""
    if isinstance(corpus.index, Mapping):
        return _stored(name, corpus.index[name])
    if name in _SHORT:
        return _SHORT[name](corpus)
    if name in corpus.index._fields:
        return _stored(name, getattr(corpus.index, name))
    return _stored(name, np.asarray(corpus.columns[name][...]))


def compare(sign: str, left: Value, right: Value) -> np.ndarray:
    """(N,) bool: rows for which `left sign right` holds; what is unknown compares false. UsageError for two things that do not compare."""
    if left.kind != "column":
        if right.kind != "column":
            raise UsageError(f"{left.shown()} {sign} {right.shown()} is about no column")
        return compare(MIRRORED[sign], right, left)
    mine = left.value
    if right.kind == "unknown":
        return _unknown(sign, mine)
    if right.kind == "column":
        theirs = right.value
        if theirs.kind != mine.kind:
            raise UsageError(f"{left.name} is a {mine.kind} and {right.name} a {theirs.kind}")
        return _known(mine) & _known(theirs) & SIGNS[sign](mine.values, theirs.values).astype(bool)
    if mine.kind == "time" and right.kind == "text":
        return _known(mine) & _during(sign, mine.values, *_period(right.value))
    if mine.kind != right.kind:
        legal = {"number": "a number", "time": "a date such as '2020-06-01'", "text": "a 'text' in quotes"}[mine.kind]
        raise UsageError(f"{left.name} is a {mine.kind} and {right.shown()} a {right.kind}; legal: {legal}")
    if mine.kind == "text":
        return _text(sign, left.name, mine, right.value)
    return _known(mine) & SIGNS[sign](mine.values, right.value)


def _stored(name: str, values: np.ndarray) -> Column:
    if name == "split":
        return Column("text", np.array([*SPLITS, "?"], object)[np.minimum(values, len(SPLITS))], SPLITS)
    if name.startswith("time_") and values.dtype == np.int64:
        return Column("time", values)
    if values.dtype.kind in "OTU":
        return Column("text", values.astype(object))
    return Column("number", values)


def _gap(corpus: "Corpus") -> Column:
    first, second = corpus.index.time_s1, corpus.index.time_s2
    known = (first != UNKNOWN_TIME) & (second != UNKNOWN_TIME)
    return Column("number", np.where(known, np.abs(np.where(known, first - second, 0)) / DAY_NS, np.nan))


_SHORT: dict[str, Callable[["Corpus"], Column]] = {
    "cloud": lambda corpus: Column("number", corpus.index.cloud_fraction),
    "nodata": lambda corpus: Column("number", corpus.index.nodata_fraction),
    "gap": _gap,  # days between S1 and S2
    "shift": lambda corpus: Column("number", np.hypot(corpus.index.shift_y, corpus.index.shift_x)),  # finest pixels
}


def _known(column: Column) -> np.ndarray:
    if column.kind == "time":
        return column.values != UNKNOWN_TIME
    if column.kind == "number" and column.values.dtype.kind == "f":
        return ~np.isnan(column.values)
    return np.ones(len(column.values), bool)


def _unknown(sign: str, column: Column) -> np.ndarray:
    if sign not in ("==", "!="):
        raise UsageError(f"unknown has no order: {sign} is not legal with it, == and != are")
    known = column.values != "" if column.kind == "text" else _known(column)
    return np.asarray(known if sign == "!=" else ~known, dtype=bool)


def _text(sign: str, name: str, column: Column, text: str) -> np.ndarray:
    if sign not in ("==", "!="):
        raise UsageError(f"{name} is a text: {sign} is not legal with it; ==, != and in are")
    if column.legal and text not in column.legal:
        raise UsageError(f"{name} is never {text!r}; {nearest(text, column.legal)}")
    return np.asarray(SIGNS[sign](column.values, text), dtype=bool)


def _period(text: str) -> tuple[int, int]:
    """First ns of the date, and of what comes after it."""
    match = _DATE.fullmatch(text.strip())
    try:
        parts = [int(part) for part in match.groups() if part is not None]
        start = datetime(*(parts + [1, 1][len(parts) - 1:] if len(parts) < 3 else parts), tzinfo=UTC)
        stop = _after(start, len(parts))
    except (AttributeError, ValueError, OverflowError):
        raise UsageError(f"{text!r} is no date; legal: '2020', '2020-06', '2020-06-01', '2020-06-01T10:20', '2020-06-01T10:20:30'") from None
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return tuple(((at - epoch) // timedelta(seconds=1)) * 10**9 for at in (start, stop))


def _after(start: datetime, num_parts: int) -> datetime:
    if num_parts == 1:
        return start.replace(year=start.year + 1)
    if num_parts == 2:
        return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return start + {3: timedelta(days=1), 5: timedelta(minutes=1), 6: timedelta(seconds=1)}[num_parts]


def _during(sign: str, times: np.ndarray, start: int, stop: int) -> np.ndarray:
    inside = (times >= start) & (times < stop)
    return {"==": inside, "!=": ~inside, "<": times < start, "<=": times < stop, ">": times >= stop, ">=": times >= start}[sign]
