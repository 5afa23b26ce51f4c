"""Class tables of a label: a file that the user gives, or one that comes with the package."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsengine.corpus.labels import class_table
from dsengine.errors import UsageError

MAX_BYTES = 2**20
SUFFIXES = (".csv", ".yaml", ".yml")


def find_table(text: str | None, name: str) -> tuple[dict[int, str], int | None] | None:
    """(classes, ignored value or None) of option classes=`text`: a file, or a table of the package; without it the table called `name`, if any."""
    if text is None:
        return class_table(name)
    if Path(text).suffix in SUFFIXES:
        return _read(Path(text), name), None
    if (found := class_table(text)) is None:
        raise UsageError(f"--label {name}: classes={text}: legal: a .csv or .yaml file, or a table that comes with the package, "
                         "such as lulc or corine")
    return found


def _read(path: Path, label: str) -> dict[int, str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"--label {label}: {path} has more than {MAX_BYTES} bytes; a class table is small")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--label {label}: classes={path} cannot be read: {error}") from error
    rows = _csv_rows(text) if path.suffix == ".csv" else _yaml_rows(text, path, label)
    classes = {}
    for value, name in rows.items():
        try:
            classes[int(str(value))] = str(name).strip()
        except ValueError:
            raise UsageError(f"--label {label}: {path}: {value!r} is not a whole number; legal: lines of VALUE,NAME below a header value,name, "
                             "or YAML VALUE: NAME") from None
    if not classes:
        raise UsageError(f"--label {label}: {path} names no class; legal: lines of VALUE,NAME below a header value,name, or YAML VALUE: NAME")
    return classes


def _csv_rows(text: str) -> dict[str, str]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if rows and rows[0][0].strip().lower() == "value":
        rows = rows[1:]
    return {row[0].strip(): row[1] if len(row) > 1 else f"class {row[0].strip()}" for row in rows}


def _yaml_rows(text: str, path: Path, label: str) -> Mapping[Any, Any]:
    loaded = safe_yaml(text, path, label)
    if not isinstance(loaded, dict):
        raise UsageError(f"--label {label}: {path}: legal: VALUE: NAME lines")
    return loaded


def safe_yaml(text: str, path: Path, label: str) -> Any:
    """Plain YAML values. A tag that would make an object is an error, and so is an alias: a few can grow to gigabytes."""
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UsageError(f"--label {label}: {path}: YAML aliases are not legal")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--label {label}: {path} is not plain YAML: {error}") from error
