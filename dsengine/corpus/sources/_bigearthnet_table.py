"""Release 2.0 of BigEarthNet by its metadata.parquet: pairs, labels, official split, country and flags, a column at a time."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsengine.corpus.build.optional import need
from dsengine.corpus.schema import SPLITS
from dsengine.corpus.sources._bigearthnet_classes import NAMES_19
from dsengine.corpus.sources._bigearthnet_release import NAMES, TABLE, Release, group_of, usable
from dsengine.corpus.sources._patches import listed
from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    import pyarrow

FLAGGED = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
MAX_ROWS = 5_000_000
EXTRA = {"country": "country", "snow": "contains_seasonal_snow", "cloud_or_shadow": "contains_cloud_or_shadow"}  # index column -> table column
EXTRA_DTYPES = {"country": "str", "snow": "uint8", "cloud_or_shadow": "uint8"}
_REQUIRED = ("patch_id", "labels", "s1_name")
_SPLIT = {**{name: code for code, name in enumerate(SPLITS)}, "validation": SPLITS.index("val")}


def read_v2(root: Path, roots: dict[str, Path], *, sensors: Sequence[str], flagged: bool, exclude: frozenset[str], partial: bool) -> Release:
    """The patches of the table that are on disk, by name of the S2 patch. UsageError names what is missing or unknown.

    `flagged` adds the patches of the second table, with snow, cloud or shadow. Every folder named is listed once; no image is opened.
    """
    table = _read(root / TABLE)
    if flagged:
        table = need("pyarrow", "series").concat_tables([table, _read(root / FLAGGED)], promote_options="default")
    names = {"s2": table["patch_id"].to_pylist(), "s1": table["s1_name"].to_pylist()}
    for sensor, found in names.items():
        if bad := next((name for name in found if not re.fullmatch(NAMES["2.0", sensor], str(name))), None):
            raise UsageError(f"{root / TABLE}: {bad!r} is not the name of a patch of {sensor}")  # names become paths
    present = {sensor: _on_disk(roots[sensor], {group_of("2.0", sensor, name) for name in names[sensor]}) for sensor in sensors}
    keep = usable(names, present, exclude=exclude, partial=partial, table=root / TABLE)
    keep = keep[np.argsort(np.array(names["s2"])[keep], kind="stable")]
    table = table.take(keep)
    extra = {name: tuple(table[column].to_pylist()) for name, column in EXTRA.items() if column in table.column_names}
    return Release(version="2.0", roots=roots, names={sensor: tuple(np.array(names[sensor])[keep].tolist()) for sensor in sensors},
                   split=_split(table), hot=_hot(table, root / TABLE), columns=extra)


def _read(path: Path) -> "pyarrow.Table":
    parquet, errors = need("pyarrow.parquet", "series"), need("pyarrow", "series").ArrowException
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise UsageError(f"{path} says it has {file.metadata.num_rows} rows; legal: up to {MAX_ROWS}")
            columns = [name for name in (*_REQUIRED, "split", *EXTRA.values()) if name in file.schema_arrow.names]
            table = file.read(columns=columns)
    except (OSError, errors) as error:
        raise UsageError(f"{path} cannot be read as a table of release 2.0: {error}") from error
    if missing := set(_REQUIRED) - set(columns):
        raise UsageError(f"{path} has no column {', '.join(sorted(missing))}; legal: {', '.join(_REQUIRED)}, split, {', '.join(EXTRA.values())}")
    splits = set(table["split"].unique().to_pylist()) if "split" in columns else set()
    if unknown := splits - {*_SPLIT, None}:
        raise UsageError(f"{path}: split {min(unknown)!r} is not legal: {', '.join(_SPLIT)}")
    return table


def _on_disk(root: Path, groups: set[str]) -> list[str]:
    return [name for group in sorted(groups) if os.path.isdir(root / group) for name in listed(root / group)]


def _split(table: "pyarrow.Table") -> np.ndarray | None:
    """(N,) codes, or None when the table does not give a split to every patch."""
    if "split" not in table.column_names or table["split"].null_count:
        return None
    return np.array([_SPLIT[name] for name in table["split"].to_pylist()], np.uint8)


def _hot(table: "pyarrow.Table", path: Path) -> np.ndarray:
    """(N, 19) uint8 from the lists of names."""
    pyarrow, compute = need("pyarrow", "series"), need("pyarrow.compute", "series")
    labels = table["labels"].combine_chunks()
    names = compute.list_flatten(labels)
    codes = compute.index_in(names, value_set=pyarrow.array(NAMES_19))
    if codes.null_count:
        bad = names.filter(compute.is_null(codes))[0].as_py()
        raise UsageError(f"{path}: unknown class {bad!r}; {nearest(str(bad), NAMES_19)}")
    hot = np.zeros((len(labels), len(NAMES_19)), np.uint8)
    hot[compute.list_parent_indices(labels).to_numpy(), codes.to_numpy()] = 1
    return hot
