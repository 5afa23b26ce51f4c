"""Groups of OpenStreetMap tags: which features count, for which geometry, drawn how wide and in which order."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dsengine.corpus.build.labellers._tables import MAX_BYTES, safe_yaml
from dsengine.corpus.labels.osm import GROUPS
from dsengine.errors import UsageError, nearest

SHAPES = ("points", "lines", "polygons")  # position = dimension
BUFFERS = {"points": "point_buffer_m", "lines": "line_buffer_m"}
MAX_BUFFER_M = 1000


class Group(NamedTuple):
    """One class. `tags` has an entry a dimension (points, lines, polygons): pairs of key and legal values, None for any but `no`."""

    name: str
    tags: tuple[tuple[tuple[str, tuple[str, ...] | None], ...], ...]
    buffer_m: tuple[float, float, float]  # by dimension

    def takes(self, tags: Mapping[str, str], dimension: int) -> bool:
        """Does a feature with these tags belong to the group?"""
        return any(key in tags and (tags[key] != "no" if legal is None else tags[key] in legal) for key, legal in self.tags[dimension])


def default_groups() -> tuple[Group, ...]:
    """Those of labels/osm.py."""
    return tuple(_group(entry, f"group {entry['name']}") for entry in GROUPS)


def read_groups(path: Path, label: str) -> tuple[Group, ...]:
    """Groups of a YAML file, a list of entries as in labels/osm.py. UsageError naming the entry and what is legal."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"--label {label}: {path} has more than {MAX_BYTES} bytes; a list of tag groups is small")
        loaded = safe_yaml(path.read_text(), path, label)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--label {label}: groups={path} cannot be read: {error}") from error
    if not isinstance(loaded, list) or not 1 <= len(loaded) <= 254:
        raise UsageError(f"--label {label}: {path}: legal: a YAML list of 1 to 254 groups, each with name and polygons, lines or points")
    groups = tuple(_group(entry, f"--label {label}: {path} group {number}") for number, entry in enumerate(loaded, start=1))
    if len({group.name for group in groups}) < len(groups):
        raise UsageError(f"--label {label}: {path}: two groups have one name")
    return groups


def keys(groups: Iterable[Group]) -> set[str]:
    """Every tag key that any group looks at."""
    return {key for group in groups for tags in group.tags for key, _ in tags}


def _group(entry: Any, where: str) -> Group:
    legal = ("name", *SHAPES, *BUFFERS.values())
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError(f"{where}: legal: name and some of {', '.join(legal[1:])}")
    if unknown := [key for key in entry if key not in legal]:
        raise UsageError(f"{where} ({entry['name']}): {unknown[0]}: {nearest(str(unknown[0]), legal)}")
    tags = tuple(_tags(entry.get(shape, {}), f"{where} ({entry['name']}) {shape}") for shape in SHAPES)
    if not any(tags):
        raise UsageError(f"{where} ({entry['name']}): names no tag; legal: some of {', '.join(SHAPES)}")
    return Group(entry["name"], tags, tuple(_buffer(entry, shape, where) for shape in SHAPES))


def _tags(entry: Any, where: str) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: legal: KEY: [VALUE, ...], or KEY: true for any value but no")
    made = []
    for key, values in entry.items():
        # YAML reads an unquoted yes as true: `building: yes` would then mean any value.
        if values is not True and not (isinstance(values, Sequence) and not isinstance(values, str) and values
                                       and all(isinstance(value, str) for value in values)):
            raise UsageError(f"{where}: {key}: {values!r}: legal: a list of texts (\"yes\" in quotes), or true for any value but no")
        made.append((str(key), None if values is True else tuple(values)))
    return tuple(made)


def _buffer(entry: Mapping[str, Any], shape: str, where: str) -> float:
    if shape not in BUFFERS:
        return 0.0
    value = entry.get(BUFFERS[shape])
    if value is None and not entry.get(shape):
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_BUFFER_M:
        raise UsageError(f"{where} ({entry['name']}): {BUFFERS[shape]}={value}: {shape} need a width; legal: metres above 0, up to {MAX_BUFFER_M}")
    return float(value)
