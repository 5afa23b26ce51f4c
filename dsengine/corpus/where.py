"""`--where "cloud < 0.4 and gap <= 3"`: a small language of conditions on index columns, parsed here and never handed to Python.

    condition  := all ("or" all)*
    all        := one ("and" one)*
    one        := "not" one | "(" condition ")" | value comparison+ | value ["not"] "in" "(" value ("," value)* ")"
    comparison := ("<" | "<=" | ">" | ">=" | "==" | "!=") value
    value      := column | number | 'text' | "unknown"

A comparison with NaN, an unknown time or between such is false, `!=` too; `cloud == unknown` finds them. A text compared with a time is
a date in UTC, '2020', '2020-06', '2020-06-01' or '2020-06-01T10:20[:30]', and stands for all of that year, month, day, minute or second.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dsengine.corpus.where_values import Column, Value, column, compare, legal_names
from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus.index import Corpus
    from dsengine.corpus.series import SeriesCorpus

MOST_CHARACTERS = 10_000
MOST_DIGITS = 100  # of a whole number that is kept exact
DEEPEST = 50  # of parentheses and `not`
COMPARISONS = ("<=", ">=", "==", "!=", "<", ">")
WORDS = ("and", "or", "not", "in", "unknown")
_TOKEN = re.compile(r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<name>[A-Za-z_]\w*)
                        |(?P<text>'[^']*'|"[^"]*")|(?P<sign><=|>=|==|!=|<|>|\(|\)|,)|(?P<end>$))""", re.VERBOSE)


class Token(NamedTuple):
    """One word of the text; `kind` is number, name, text, sign or end."""

    kind: str
    text: str
    at: int  # position in the text, from 1


def where(corpus: "Corpus | SeriesCorpus", text: str) -> np.ndarray:
    """(N,) bool: the patches for which the condition `text` holds. UsageError says what is wrong with it, and where."""
    return _Parser(text, lambda name: column(corpus, name), lambda: legal_names(corpus)).parse()


class _Parser:
    """Recursive descent; each method returns the rows (N,) bool for which what it has read holds."""

    def __init__(self, text: str, read: Callable[[str], Column], legal: Callable[[], list[str]]) -> None:
        if len(text) > MOST_CHARACTERS:
            raise UsageError(f"where: {len(text)} characters; legal: at most {MOST_CHARACTERS}")
        self._text, self._read, self._legal = text, read, legal
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def parse(self) -> np.ndarray:
        found = self._condition()
        if self._peek().kind != "end":
            self._fail(f"{_shown(self._peek())} is not legal here: and, or, or the end")
        return found

    def _condition(self) -> np.ndarray:
        found = self._all()
        while self._accept("name", "or"):
            found = found | self._all()
        return found

    def _all(self) -> np.ndarray:
        found = self._one()
        while self._accept("name", "and"):
            found = found & self._one()
        return found

    def _one(self) -> np.ndarray:
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail(f"nested deeper than {DEEPEST}")
        if self._accept("name", "not"):
            found = ~self._one()
        elif self._accept("sign", "("):
            found = self._condition()
            self._expect(")")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> np.ndarray:
        start, left, found = self._peek(), self._value(), None
        negated = self._peek().text == "not"
        if negated or self._peek().text == "in":
            self._take()
            if negated and not self._accept("name", "in"):
                self._fail(f"{_shown(self._peek())} is not legal after `not` here: in")
            members = self._list(start, left)
            return self._known(left) & ~members if negated else members
        while self._peek().kind == "sign" and self._peek().text in COMPARISONS:
            sign = self._take()
            right = self._value()
            found = self._compare(sign, left, right) & (True if found is None else found)
            left = right
        if found is None:
            self._fail(f"{_shown(self._peek())} is not legal here: a comparison ({', '.join(COMPARISONS)}) or in")
        return found

    def _list(self, start: Token, left: Value) -> np.ndarray:
        self._expect("(")
        found = self._compare(start, left, self._value(), sign="==")
        while self._accept("sign", ","):
            found = found | self._compare(start, left, self._value(), sign="==")
        self._expect(")")
        return found

    def _known(self, value: Value) -> np.ndarray:
        return compare("!=", value, Value("unknown", None))

    def _compare(self, at: Token, left: Value, right: Value, *, sign: str | None = None) -> np.ndarray:
        try:
            return compare(sign or at.text, left, right)
        except UsageError as error:
            self._fail(str(error), at)

    def _value(self) -> Value:
        token = self._take()
        if token.kind == "number":
            # Python refuses to make an int of thousands of digits.
            whole = len(token.text) <= MOST_DIGITS and not re.search(r"[.eE]", token.text)
            return Value("number", int(token.text) if whole else float(token.text))
        if token.kind == "text":
            return Value("text", token.text[1:-1])
        if token.text == "unknown":
            return Value("unknown", None)
        if token.kind == "name" and token.text not in WORDS:
            if token.text not in self._legal():
                self._fail(f"no column {token.text!r}; {nearest(token.text, self._legal())}", token)
            return Value("column", self._read(token.text), token.text)
        self._fail(f"{_shown(token)} is not legal here: a column, a number, a 'text' or unknown", token)

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._peek()
        self._next += token.kind != "end"
        return token

    def _accept(self, kind: str, text: str) -> bool:
        found = self._peek()[:2] == (kind, text)
        self._next += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._accept("sign", sign):
            self._fail(f"{_shown(self._peek())} is not legal here: {sign}")

    def _fail(self, problem: str, token: Token | None = None) -> None:
        _fail(self._text, problem, (token or self._peek()).at)


def _tokens(text: str) -> list[Token]:
    found, at = [], 0
    while not found or found[-1].kind != "end":
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            hint = "a text without its closing quote" if text[at] in "'\"" else "did you mean ==?" if text[at] == "=" else "no part of a condition"
            _fail(text, f"{text[at]!r}: {hint}", at + 1)
        found.append(Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1))
        at = match.end()
    return found


def _shown(token: Token) -> str:
    return "the end" if token.kind == "end" else token.text


def _fail(text: str, problem: str, at: int) -> None:
    shown = text if len(text) <= 200 else text[:200] + "..."
    raise UsageError(f"where: {problem}, at character {at} of: {shown}")
