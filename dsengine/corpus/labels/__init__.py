"""Class tables. The file name is the label name under which `corpus build --label NAME=GLOB` finds it."""

from importlib import import_module
from importlib.util import find_spec


def class_table(name: str) -> tuple[dict[int, str], int | None] | None:
    """(classes {value: name}, ignored value or None) of labels/<name>.py, or None when there is no such file."""
    if not name.isidentifier() or find_spec(f"{__name__}.{name}") is None:
        return None
    module = import_module(f"{__name__}.{name}")
    return module.CLASSES, module.IGNORE
