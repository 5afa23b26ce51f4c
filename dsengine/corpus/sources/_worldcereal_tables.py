"""WorldCereal parquet extractions: long (a row a sample and time) and wide (a row a sample, a column a band and time step)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.optional import need
from dsengine.corpus.build.places import places
from dsengine.corpus.build.series_plan import SeriesPlan
from dsengine.corpus.build.series_writer import SeriesBlock
from dsengine.corpus.schema import UNKNOWN_TIME, LabelSpec
from dsengine.corpus.series_schema import SeriesLayout
from dsengine.corpus.sources._worldcereal import MISSING, TERRAIN, instant, quantity, specs, step_times, stored, terrain
from dsengine.errors import UsageError

TEXT_LABELS = ("sampling_label", "finetune_class", "balancing_class")
DATES = ("valid_time", "start_date", "end_date")
KEPT = {"sample_id": "str", "ref_id": "str", "tile": "str", "h3_l3_cell": "str", "year": "int64", "irrigation_status": "int64",
        "quality_score_lc": "int64", "quality_score_ct": "int64", "extract": "int64", **dict.fromkeys(DATES, "int64")}


class Samples(NamedTuple):
    """All samples of some files, in the order in which they first occur."""

    numbers: dict[tuple[str, str], np.ndarray]  # (sensor, band) -> (P, T) uint16
    time: np.ndarray  # (P, T) int64 ns UTC, int64 min where a sample has fewer steps
    columns: dict[str, np.ndarray]  # (P,)
    layout: str


def plan(files: Sequence[Path], *, place_m: float, seed: int, max_gib: float) -> SeriesPlan:
    """Series, labels and index of `files`, which have one layout. UsageError when they do not, or a table is wrong."""
    paths = tuple(str(path) for path in files)
    samples = load(paths, max_gib)
    found = {key: bool((numbers != MISSING).any()) for key, numbers in samples.numbers.items() if key[0] not in TERRAIN}
    layout = SeriesLayout(kind="series", arrays=specs(found, samples.time), labels=tuple(_labels(samples.columns)))
    kept = {name: dtype for name, dtype in KEPT.items() if name in samples.columns}
    columns = {**kept, **dict.fromkeys([name for name in TERRAIN if (name, name) in samples.numbers], "float32"), "place": "int64"}
    made_by = {"command": "corpus build", "source": "worldcereal", "layout": samples.layout, "files": list(paths), "place_m": place_m,
               "without_data": [f"{sensor} {band}" for (sensor, band), has in sorted(found.items()) if not has]}
    return SeriesPlan(layout=layout, num_rows=len(samples.time), cut=_Cut(paths, max_gib, layout, tuple(columns), place_m), made_by=made_by,
                      columns=columns, split="block", seed=seed)


@lru_cache(maxsize=1)
def load(paths: tuple[str, ...], max_gib: float) -> Samples:
    """Read the tables. Kept for the next block of the same build."""
    tables = [_read(path, max_gib / len(paths)) for path in paths]
    steps = {name: quantity(name) for table in tables for name in table}
    wide = any(found and found.step is not None for found in steps.values())
    if wide and any("timestamp" in table for table in tables):
        raise UsageError(f"{Path(paths[0]).parent}: some tables have a column timestamp, others time steps in column names; legal: one layout")
    common = set.intersection(*(set(table) for table in tables))
    if lost := sorted({name for name, found in steps.items() if found} - common):
        raise UsageError(f"{Path(paths[0]).parent}: not every table has {', '.join(lost)}; legal: tables with the same bands")
    table = {name: np.concatenate([table[name] for table in tables]) for name in tables[0] if name in common}
    for name in ("sample_id", "lon", "lat"):
        if name not in table:
            raise UsageError(f"{paths[0]}: no column {name}; legal: a WorldCereal extraction")
    return _wide(table, paths[0]) if wide else _long(table, paths[0])


@dataclass(frozen=True)
class _Cut:
    paths: tuple[str, ...]
    max_gib: float
    layout: SeriesLayout
    columns: tuple[str, ...]
    place_m: float

    def __call__(self, rows: range) -> SeriesBlock:
        samples, part = load(self.paths, self.max_gib), slice(rows.start, rows.stop)
        place = places(samples.columns["lon"], samples.columns["lat"], within_m=self.place_m)
        made = {spec.sensor: stored(spec, [samples.numbers[spec.sensor, band][part] for band in spec.bands]) for spec in self.layout.arrays}
        available = {**samples.columns, **{name: terrain(samples.numbers[name, name][:, 0]) for name in TERRAIN if (name, name) in samples.numbers},
                     "place": place}
        index = {name: available[name][part] for name in (*self.columns, "lon", "lat")}
        index.update(split_lon=samples.columns["lon"][place[part]], split_lat=samples.columns["lat"][place[part]])
        labels = {label.name: _codes(label, samples.columns["ewoc_code" if label.name == "crop" else label.name][part])
                  for label in self.layout.labels}
        return SeriesBlock({sensor: values for sensor, (values, _) in made.items()}, index, labels,
                           time={spec.sensor: samples.time[part] for spec in self.layout.arrays},
                           saturated={sensor: cut for sensor, (_, cut) in made.items()})


def _labels(columns: dict[str, np.ndarray]) -> list[LabelSpec]:
    made = []
    if "ewoc_code" in columns:
        codes = columns["ewoc_code"]
        names = dict(zip(codes.tolist(), columns["label_full"].tolist(), strict=True)) if "label_full" in columns else {}
        classes = {code: names.get(code, f"ewoc {code}") for code in sorted(set(codes.tolist()))}
        made.append(LabelSpec(name="crop", kind="class", classes=classes, dtype="int64"))
    return made + [LabelSpec(name=name, kind="class", classes=dict(enumerate(sorted(set(columns[name].tolist())))), dtype="uint8")
                   for name in TEXT_LABELS if name in columns and len(set(columns[name].tolist())) < 256]


def _codes(label: LabelSpec, values: np.ndarray) -> np.ndarray:
    if label.name == "crop":
        return values.astype(np.int64)
    code = {text: value for value, text in label.classes.items()}
    return np.array([code[text] for text in values.tolist()], label.dtype)


def _read(path: str, max_gib: float) -> dict[str, np.ndarray]:
    """The columns that are used, text as objects, dates as int64 ns."""
    parquet, arrow = need("pyarrow.parquet", "series"), need("pyarrow", "series")
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names
                      if quantity(name) or name in {*KEPT, *TEXT_LABELS, "label_full", "ewoc_code", "lon", "lat", "timestamp"}]
            declared = file.metadata.num_rows * len(wanted) * 8
            if declared > max_gib * 2**30:
                raise UsageError(f"{path} declares {file.metadata.num_rows} rows, {declared / 2**30:.1f} GiB; "
                                 f"legal: at most {max_gib:g} GiB (--max-gib)")
            table = file.read(columns=wanted)
    except (arrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read as parquet: {error}") from error
    return {name: _column(table[name].combine_chunks(), name, path) for name in wanted}


def _column(column: Any, name: str, path: str) -> np.ndarray:
    arrow = need("pyarrow", "series")
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count and not arrow.types.is_string(column.type):
        raise UsageError(f"{path}: column {name} has {column.null_count} empty cells; legal: a number in each")
    if arrow.types.is_timestamp(column.type):
        return column.cast(arrow.timestamp("ns")).to_numpy(zero_copy_only=False).astype(np.int64)
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        texts = [text or "" for text in column.to_pylist()]
        return np.array([instant(text) for text in texts], np.int64) if name in DATES else np.array(texts, object)
    values = column.to_numpy(zero_copy_only=False)
    if not quantity(name):
        return values
    if len(values) and (values.min() < 0 or values.max() > MISSING):
        raise UsageError(f"{path}: column {name} has values from {values.min()} to {values.max()}; legal: 0 to {MISSING}")
    return values.astype(np.uint16)


def _wide(table: dict[str, np.ndarray], what: str) -> Samples:
    columns = {name: quantity(name) for name in table if quantity(name)}
    counts = Counter((found.sensor, found.band) for found in columns.values() if found.step is not None)
    num_steps = max(counts.values())
    numbers: dict[tuple[str, str], np.ndarray] = {}
    for key, count in counts.items():
        at = {found.step: name for name, found in columns.items() if (found.sensor, found.band) == key}
        if sorted(at) != list(range(num_steps)):
            raise UsageError(f"{what}: {key[0]} {key[1]} has time steps {sorted(at)}; legal: 0 to {num_steps - 1}, as others have")
        numbers[key] = np.stack([table[at[step]] for step in range(num_steps)], axis=1)
    for name, found in columns.items():
        if found.step is None:
            numbers[found.sensor, found.band] = table[name][:, None]
    ids, counts_of = np.unique(_keys(table), return_counts=True)
    if (counts_of > 1).any():
        raise UsageError(f"{what}: sample {ids[counts_of > 1][0]} is there twice; legal: one row a sample")
    spans = {(start, end): step_times(np.datetime64(start, "ns"), np.datetime64(end, "ns"), num_steps, what)
             for start, end in set(zip(table["start_date"].tolist(), table["end_date"].tolist(), strict=True))}
    time = np.stack([spans[span] for span in zip(table["start_date"].tolist(), table["end_date"].tolist(), strict=True)])
    return Samples(numbers, time, {name: values for name, values in table.items() if name not in columns}, "wide")


def _long(table: dict[str, np.ndarray], what: str) -> Samples:
    if "timestamp" not in table:
        raise UsageError(f"{what}: neither a column timestamp nor time steps in column names; legal: a WorldCereal extraction")
    keys, first, sample = np.unique(_keys(table), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # samples in the order in which they first occur
    sample, first, keys = rank[sample], np.sort(first), keys[np.argsort(first)]
    order = np.lexsort((table["timestamp"], sample))
    sample, stamps = sample[order], table["timestamp"][order]
    twice = np.flatnonzero((sample[1:] == sample[:-1]) & (stamps[1:] == stamps[:-1]))
    if twice.size:
        when = np.datetime64(int(stamps[twice[0]]), "ns")
        raise UsageError(f"{what}: sample {keys[sample[twice[0]]]} has two rows for {when}; legal: one row a time")
    starts = np.searchsorted(sample, np.arange(len(keys)))
    position = np.arange(len(sample)) - starts[sample]
    shape = (len(keys), int(position.max()) + 1)
    time = np.full(shape, UNKNOWN_TIME, np.int64)
    time[sample, position] = stamps
    numbers = {}
    for name in table:
        if found := quantity(name):
            numbers[found.sensor, found.band] = np.full(shape, MISSING, np.uint16)
            numbers[found.sensor, found.band][sample, position] = table[name][order]
    return Samples(numbers, time, {name: values[first] for name, values in table.items() if not quantity(name) and name != "timestamp"}, "long")


def _keys(table: dict[str, np.ndarray]) -> np.ndarray:
    """A sample is named by its id within its reference set."""
    ids = table["sample_id"].astype(str)
    return np.char.add(np.char.add(table["ref_id"].astype(str), "/"), ids) if "ref_id" in table else ids
