"""Any vector file with a class column, drawn as a class map."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsengine.corpus.build.labellers._base import Labeller, Options, fitting_dtype, unused_value
from dsengine.corpus.build.labellers._layers import Layer, distinct, may_cover, one_column, open_layer
from dsengine.corpus.build.labellers._shapes import ShapeLabeller, class_key
from dsengine.corpus.build.labellers._tables import find_table
from dsengine.corpus.schema import LabelSpec
from dsengine.errors import UsageError

OPTIONS = {
    "column": "column that holds the class, text or a whole number (default: the only one there is)",
    "layer": "layer of the file, where it has several",
    "crs": "CRS of the file, where it names none or a wrong one",
    "classes": "table of values and names, .csv or .yaml (default: every distinct value is a class)",
    "background": "name of a class for pixels in no shape (default: they are ignored)",
    "buffer": "metres by which shapes are widened; lines and points need it",
    "all_touched": "yes: a pixel counts when a shape touches it; no: when its centre lies in the shape (default)",
    "others": "error (default) or ignore: shapes whose class is not in the table",
}


def labeller(name: str, path: Path, options: Mapping[str, str]) -> Labeller:
    """Numbers from 0 to 65535 stand for themselves; other numbers and texts are numbered from 1 in their order, unless `classes` says otherwise."""
    given = Options(name, options)
    layer = open_layer(path, label=name, layer=given.text("layer"), crs=given.text("crs"))
    column = _column(layer, given)
    buffer_m = given.number("buffer", 0.0, low=0)
    if not (may_cover(layer) or buffer_m):
        raise UsageError(f"--label {name}: {path} layer {layer.name} holds {layer.geometry}, which covers no pixel; give buffer=METRES")
    found = distinct(layer, column)
    if not found:
        raise UsageError(f"--label {name}: {path} layer {layer.name}: column {column} is empty")
    others = given.choice("others", ("error", "ignore"))
    classes, values = _classes(found, given, where=f"{path} layer {layer.name}: column {column}", strict=others == "error")
    ignore, fill = None, 0
    if background := given.text("background"):
        if 0 in classes:
            raise UsageError(f"--label {name}: background={background}: value 0 is already {classes[0]} of column {column}; "
                             "number the classes with classes=FILE")
        classes = {0: background, **classes}
    else:
        ignore = fill = unused_value(classes)
    dtype = fitting_dtype([*classes, fill], label=name)
    return ShapeLabeller(
        spec=LabelSpec(name=name, kind="classmap", classes=classes, ignore=ignore, dtype=dtype), layer=layer, column=column, values=values,
        known=frozenset([""]), fill=fill, buffer_m=buffer_m, all_touched=given.flag("all_touched"), others_ignored=others == "ignore")


def _column(layer: Layer, given: Options) -> str:
    if (named := given.text("column")) is not None:
        return one_column(layer, named, label=given.label)
    if len(layer.columns) != 1:
        raise UsageError(f"--label {given.label}: {layer.path} layer {layer.name} has columns {', '.join(layer.columns) or '(none)'}; "
                         "name the class with column=NAME")
    return layer.columns[0]


def _classes(found: list[Any], given: Options, *, where: str, strict: bool) -> tuple[dict[int, str], dict[str, int]]:
    """(value -> name, key of the column -> value)."""
    keys = [class_key(value) for value in found]
    if given.text("classes") is None:
        small = isinstance(found[0], int) and 0 <= found[0] and found[-1] <= 65535
        numbers = found if small else range(1, len(found) + 1)
        names = [f"class {value}" if isinstance(value, int) else value for value in found]
        return dict(zip(numbers, names, strict=True)), dict(zip(keys, numbers, strict=True))
    classes, _ = find_table(given.text("classes"), given.label)
    by_value, by_name = {str(value): value for value in classes}, {name: value for value, name in classes.items()}
    # A code that is no label value, such as 3301010101, stands in the table as the name of its class.
    values = max((by_name, by_value), key=lambda table: len(table.keys() & set(keys)))
    if strict and (unknown := [key for key in keys if key not in values]):
        raise UsageError(f"--label {given.label}: {where} holds {', '.join(unknown[:5])}; legal: {', '.join(values)}; others=ignore leaves them out")
    return classes, values
