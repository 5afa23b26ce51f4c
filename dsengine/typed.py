"""Frozen dataclasses from untyped settings (YAML, the command line, keyword arguments): one place that checks names and types."""

import re
import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dsengine.errors import UsageError, nearest

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def fill(cls: type, settings: dict, *, prefix: str, elsewhere: dict[str, str] | None = None) -> Any:
    """cls(**settings), each value as its annotated type; UsageError names `prefix.key` and what is legal.

    elsewhere: {key: full name} of settings that live in other sections, offered when a key is found there.
    """
    hints = get_type_hints(cls)
    legal = [field.name for field in fields(cls)]
    for key in settings:
        if key not in legal:
            hint = f"did you mean {elsewhere[key]}?" if elsewhere and key in elsewhere else nearest(str(key), legal) if legal else "there are none"
            raise UsageError(f"{prefix}.{key} is not a setting; {hint}")
    values = {key: coerce(value, hints[key], f"{prefix}.{key}") for key, value in settings.items()}
    try:
        return cls(**values)
    except UsageError as error:
        raise UsageError(f"{prefix}.{error}") from error


def coerce(value: Any, hint: Any, key: str) -> Any:
    """`value` (text, or a YAML scalar or list) as the annotated type `hint`; UsageError names `key`."""
    text = value
    if isinstance(value, str) and hint is not str:
        value = from_text(value)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if str in args and isinstance(text, str):  # as it stands: YAML would cut off a comment, or make a mapping of "a: b"
            return text
        words = [word for a in args if get_origin(a) is Literal for word in get_args(a)]
        if isinstance(text, str) and value in words:
            return value
        return _or_word(value, next(a for a in args if a is not type(None)), key, words)
    if origin is Literal:
        if value not in args:
            raise UsageError(f"{key}={value!r} is not legal; {nearest(str(value), map(str, args))}")
        return value
    if origin is tuple and args[-1] is Ellipsis:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{key} must be a list like [{args[0].__name__}, ...], got {value!r}")
        return tuple(coerce(v, args[0], key) for v in value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise UsageError(f"{key} must be {len(args)} values like [{', '.join(a.__name__ for a in args)}], got {value!r}")
        return tuple(coerce(v, a, key) for v, a in zip(value, args))
    return _scalar(value, hint, key)


def _or_word(value: Any, hint: Any, key: str, words: list[str]) -> Any:
    """`value` as `hint`; the UsageError names `words` too, which are legal beside it."""
    try:
        return coerce(value, hint, key)
    except UsageError as error:
        raise UsageError(f"{error}; or {', '.join(words)}" if words else str(error)) from error


def from_text(value: str) -> Any:
    """Text as a number where Python would read one, else as YAML (lists, true, null), else as it is."""
    text = value.strip()
    # Before YAML: it takes 1e-3 for text, 010 for eight and 1:30 for ninety.
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError:
        return value
    return value if isinstance(parsed, (int, float)) and not isinstance(parsed, bool) else parsed


def _scalar(value: Any, hint: type, key: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UsageError(f"{key} must be {hint.__name__}, got {value!r}")
    return value
