"""Reads the published HDF5 in blocks of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.corpus.build.hdf5 import dataset, open_file
from dsengine.corpus.build.pair_test import PairTest, pair_test
from dsengine.corpus.build.series_plan import SeriesPlan
from dsengine.corpus.build.series_writer import SeriesBlock
from dsengine.corpus.schema import S2_BANDS, UNKNOWN_TIME, LabelSpec
from dsengine.corpus.series_schema import SeriesLayout
from dsengine.corpus.sources import _planet
from dsengine.errors import RunError, UsageError

FILES = {"points": "pretraining_point2.h5", "times": "pretraining_time2.h5"}
CROP_FILES = {"train": ("train_sentinel_ts.hdf5", "val_sentinel_ts.hdf5"),
              "test": ("validation_train_sentinel_ts.hdf5", "validation_val_sentinel_ts.hdf5")}
RUN_ROWS = 256  # of one run of the pairing test
RUNS = {"points": 64, "times": 4}
DAYS = 365  # of 2018, which the Planet series of the train tile covers
VALID = "some band has data; the files have no cloud mask"


@dataclass(frozen=True)
class Part:
    """Some rows of a corpus in one file."""

    path: str
    num_rows: int
    split: int  # position in schema.SPLITS


def plan_pairs(root: Path, *, which: str, scales: Mapping[str, str], allow_scrambled: bool, seed: int) -> SeriesPlan:
    """Pretraining pairs, all in train. UsageError when the file is not as published, or its pairs are scrambled and that is not allowed."""
    path = _existing(root, FILES[which])
    with open_file(path) as file:
        s2, planet = dataset(file, "sentinel2_data", path), dataset(file, "planet_data", path)
        steps, num_rows = _check_pairs(s2, planet, which, path), len(s2)
        sample = [(s2[rows], planet[rows]) for rows in _runs(len(s2), RUNS[which])]
    decided = {"s2": _planet.decided_scale(scales["s2"], np.concatenate([a.reshape(-1) for a, _ in sample]), "--s2-scale"),
               "planet": _planet.decided_scale(scales["planet"], np.concatenate([b.reshape(-1) for _, b in sample]), "--planet-scale")}
    result = pair_test([(_over_time(a, 2), _over_time(b, 3)) for a, b in sample], S2_BANDS, _planet.PLANET_BANDS)
    if not result.paired and not allow_scrambled:
        raise UsageError(f"{path}: {_scrambled(result)}; give --allow-scrambled to take it all the same")
    arrays = (_planet.sentinel2(steps[0], _unknown(steps[0]), VALID if steps[0] else ""),
              _planet.planet(steps[1], _days(steps[1]), VALID if steps[1] else ""))
    layout = SeriesLayout(kind="series" if steps[0] else "pixels", arrays=arrays)
    made_by = {**_made_by(which, [path], decided), "pair_test": result.described(), "allow_scrambled": allow_scrambled}
    names = {"s2": "sentinel2_data", "planet": "planet_data"}
    parts = (Part(str(path), num_rows, 0),)
    return SeriesPlan(layout=layout, num_rows=num_rows, cut=_Cut(parts, names, decided), made_by=made_by, split="given", seed=seed)


def plan_crops(root: Path, *, tile: str, scales: Mapping[str, str], seed: int) -> SeriesPlan:
    """Series with crop labels; the first file is train, the second val. UsageError when they are not as published."""
    paths = [_existing(root, name) for name in CROP_FILES[tile]]
    parts, steps, sample = [], set(), []
    for split, path in enumerate(paths):
        with open_file(path) as file:
            values, labels = dataset(file, "time_series", path), dataset(file, "crop_labels", path)
            if values.ndim != 3 or values.shape[2] != len(S2_BANDS) or labels.shape[:1] != values.shape[:1] or labels.size != len(values):
                raise UsageError(f"{path}: time_series {values.shape}, crop_labels {labels.shape}; legal: (n, T, 12) and (n, 1)")
            _check_labels(labels, path)
            parts.append(Part(str(path), len(values), split))
            steps.add(values.shape[1])
            sample += [values[rows].reshape(-1) for rows in _runs(len(values), 4)]
    if len(steps) > 1:
        raise UsageError(f"{root}: {paths[0].name} and {paths[1].name} have {sorted(steps)} time steps; legal: the same number")
    decided = {"s2": _planet.decided_scale(scales["s2"], np.concatenate(sample), "--s2-scale")}
    num_steps = steps.pop()
    layout = SeriesLayout(kind="series", arrays=(_planet.sentinel2(num_steps, _unknown(num_steps), VALID),),
                          labels=(LabelSpec(name="crop", kind="class", classes=_planet.CROPS),))
    return SeriesPlan(layout=layout, num_rows=sum(part.num_rows for part in parts), cut=_Cut(tuple(parts), {"s2": "time_series"}, decided),
                      made_by={**_made_by("crops", paths, decided), "tile": tile}, split="given", seed=seed)


@dataclass(frozen=True)
class _Cut:
    parts: tuple[Part, ...]
    names: Mapping[str, str]  # sensor -> dataset
    scales: Mapping[str, float]

    def __call__(self, rows: range) -> SeriesBlock:
        read: dict[str, list[np.ndarray]] = {name: [] for name in (*self.names.values(), "crop_labels", "split")}
        start = 0
        for part in self.parts:
            inside = slice(max(rows.start - start, 0), min(rows.stop - start, part.num_rows))
            start += part.num_rows
            if inside.start < inside.stop:
                self._read(part, inside, read)
        made = {}
        for sensor, name in self.names.items():
            make = _planet.stored_planet if sensor == "planet" else _planet.stored
            made[sensor] = make(np.concatenate(read[name]), scale=self.scales[sensor])
        labels = {"crop": np.concatenate(read["crop_labels"]).astype(np.uint8)} if read["crop_labels"] else {}
        return SeriesBlock({sensor: values for sensor, (values, _) in made.items()},
                           {"lon": np.nan, "lat": np.nan, "split": np.concatenate(read["split"])}, labels,
                           saturated={sensor: cut for sensor, (_, cut) in made.items()})

    def _read(self, part: Part, inside: slice, read: dict[str, list[np.ndarray]]) -> None:
        try:
            with open_file(Path(part.path)) as file:
                for name in self.names.values():
                    read[name].append(file[name][inside])
                if "crop_labels" in file:
                    read["crop_labels"].append(file["crop_labels"][inside].reshape(-1))
        except OSError as error:
            raise RunError(f"{part.path}: rows {inside.start} to {inside.stop - 1} cannot be read: {error}") from error
        read["split"].append(np.full(inside.stop - inside.start, part.split, np.uint8))


def _existing(root: Path, name: str) -> Path:
    if not (root / name).is_file():
        raise UsageError(f"{root / name}: there is no such file; legal: the files as published, "
                         f"{', '.join([*FILES.values(), *CROP_FILES['train'], *CROP_FILES['test']])}")
    return root / name


def _check_pairs(s2: Any, planet: Any, which: str, path: Path) -> tuple[int, int]:
    legal = "(N, 12) and (N, 4, 9)" if which == "points" else "(N, T, 12) and (N, T', 4, 9)"
    tails = (s2.shape[-1:], planet.shape[-2:]) == ((12,), (4, 9))
    if not tails or (s2.ndim, planet.ndim) != ((2, 3) if which == "points" else (3, 4)) or len(s2) != len(planet) or not len(s2):
        raise UsageError(f"{path}: sentinel2_data {s2.shape}, planet_data {planet.shape}; legal: {legal}")
    return (0, 0) if which == "points" else (s2.shape[1], planet.shape[1])


def _check_labels(labels: Any, path: Path) -> None:
    found = set(np.unique(labels[...]).tolist())
    if wrong := sorted(found - set(_planet.CROPS)):
        raise UsageError(f"{path}: crop_labels has {', '.join(map(str, wrong[:5]))}; legal: 1 to {max(_planet.CROPS)}")


def _runs(num_rows: int, most: int) -> list[slice]:
    """Up to `most` runs of consecutive rows, spread over the file."""
    starts = np.unique(np.linspace(0, max(0, num_rows - RUN_ROWS), most).astype(np.int64))
    return [slice(int(start), int(start) + RUN_ROWS) for start in starts]


def _over_time(x: np.ndarray, ndim: int) -> np.ndarray:
    """Series as their medians over time, which clouds do not move; points as they are."""
    return np.median(x, axis=1) if x.ndim > ndim else x


def _scrambled(result: PairTest) -> str:
    by_band = ", ".join(f"{name} {value:.2f}" for name, value in result.by_band.items())
    return (f"Sentinel-2 and Planet do not see the same places: correlation {result.correlation:.2f} ({by_band}) "
            f"over {result.num_runs} runs of {RUN_ROWS} rows")


def _unknown(steps: int) -> tuple[int, ...]:
    return (UNKNOWN_TIME,) * steps


def _days(steps: int) -> tuple[int, ...]:
    """The days of 2018 where there are as many; unknown for any other number."""
    if steps != DAYS:
        return _unknown(steps)
    return tuple((np.datetime64("2018-01-01") + np.arange(DAYS)).astype("M8[ns]").astype(np.int64).tolist())


def _made_by(which: str, paths: list[Path], scales: Mapping[str, float]) -> dict[str, Any]:
    return {"command": "corpus build", "source": "planet_sentinel", "set": which, "files": [str(path) for path in paths],
            "scales": dict(scales)}
