"""What the tables and the cube of WorldCereal share: names of bands, units, and numbers to stored values."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dsengine.corpus.schema import NODATA, S1_BANDS, S2_BANDS, UNKNOWN_TIME
from dsengine.corpus.series_schema import SeriesSpec
from dsengine.errors import UsageError

MISSING = 65535
VALID = "some band has data"
IMAGERY = {"s2": ("reflectance", 1e-4, "int16"), "s1": ("dB", 0.01, "int16")}
WEATHER = {"temperature": "K", "precipitation": "mm"}
TERRAIN = ("elevation", "slope")  # metres, degrees
# Names of one quantity in the generations of the product; `tsN` is the time step of the wide layout.
_NAMES = (
    (re.compile(r"(?:S2-L2A|OPTICAL)-(B\d[\dA])(?:-ts(\d+)-\d+m)?"), "s2"),
    (re.compile(r"(?:S1-SIGMA0|SAR)-(V[VH])(?:-ts(\d+)-\d+m)?"), "s1"),
    (re.compile(r"(?:AGERA5-TMEAN|AGERA5-temperature-mean|METEO-temperature_mean)()(?:-ts(\d+)-\d+m)?"), "temperature"),
    (re.compile(r"(?:AGERA5-PRECIP|AGERA5-precipitation-flux|METEO-precipitation_flux)()(?:-ts(\d+)-\d+m)?"), "precipitation"),
    (re.compile(r"(?:elevation|DEM-alt-20m)()()"), "elevation"),
    (re.compile(r"(?:slope|DEM-slo-20m)()()"), "slope"),
)


class Quantity(NamedTuple):
    """What one column or variable holds."""

    sensor: str
    band: str
    step: int | None  # of the wide layout


def quantity(name: str) -> Quantity | None:
    """The meaning of a column's name; None where it is not imagery, weather or terrain."""
    for pattern, sensor in _NAMES:
        if match := pattern.fullmatch(name):
            return Quantity(sensor, match[1] or sensor, int(match[2]) if match[2] else None)
    return None


def specs(found: Mapping[tuple[str, str], bool], time: np.ndarray) -> tuple[SeriesSpec, ...]:
    """Arrays for the (sensor, band) that have data, in corpus order. `time` is (P, T) ns UTC. UsageError when nothing has data."""
    shared = tuple(time[0].tolist()) if (time == time[0]).all() else ()
    made = []
    for sensor, order in (("s2", S2_BANDS), ("s1", S1_BANDS), *((name, (name,)) for name in WEATHER)):
        bands = tuple(band for band in order if found.get((sensor, band)))
        if not bands:
            continue
        units, scale, dtype = IMAGERY.get(sensor, (WEATHER.get(sensor, ""), 1.0, "float32"))
        made.append(SeriesSpec(sensor=sensor, bands=bands, units=units, scale_factor=scale, dtype=dtype, steps=time.shape[1], time=shared,
                               valid=VALID))
    if not made:
        raise UsageError("no band of Sentinel-2, Sentinel-1 or weather has data; legal: columns such as S2-L2A-B02, SAR-VV-ts0-20m")
    return tuple(made)


def stored(spec: SeriesSpec, bands: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """(n, T, C) as stored of uint16 (n, T) a band, and how many values a band did not fit in int16."""
    made = [_stored_band(spec.sensor, numbers) for numbers in bands]
    return np.stack([values for values, _ in made], axis=-1), [cut for _, cut in made]


def terrain(numbers: np.ndarray) -> np.ndarray:
    """float32 metres or degrees, NaN where there is no data."""
    return np.where(numbers == MISSING, np.nan, numbers).astype(np.float32)


def step_times(origin: np.datetime64, end: np.datetime64, num_steps: int, what: str) -> np.ndarray:
    """(T,) int64 ns: the first days of months, or of dekads, from `origin` to `end`. UsageError naming `what` when neither gives T steps."""
    months = np.arange(origin.astype("M8[M]"), end.astype("M8[M]") + 1)
    if len(months) == num_steps:
        return months.astype("M8[ns]").astype(np.int64)
    dekads = np.concatenate([month.astype("M8[D]") + np.array([0, 10, 20]) for month in months])
    dekads = dekads[(dekads >= origin.astype("M8[D]")) & (dekads <= end.astype("M8[D]"))]
    if len(dekads) != num_steps:
        raise UsageError(f"{what}: {num_steps} time steps between {origin} and {end}; "
                         f"legal: one a month ({len(months)}) or one a dekad ({len(dekads)})")
    return dekads.astype("M8[ns]").astype(np.int64)


def instant(text: str) -> int:
    """ns UTC of an ISO date; int64 min when it is empty or not a date."""
    try:
        return int(np.datetime64(text, "ns").astype(np.int64)) if text else UNKNOWN_TIME
    except ValueError:
        return UNKNOWN_TIME


def _stored_band(sensor: str, numbers: np.ndarray) -> tuple[np.ndarray, int]:
    has = numbers != MISSING
    if sensor in WEATHER:
        return np.where(has, numbers / 100.0, NODATA).astype(np.float32), 0
    if sensor == "s1":
        has = has & (numbers > 0)  # no dB of nothing
        decibel = 20.0 * np.log10(np.where(has, numbers, 1).astype(np.float64)) - 83.0
        return np.where(has, np.rint(decibel * 100.0), NODATA).astype(np.int16), 0
    values = numbers.astype(np.int32)
    return np.where(has, np.minimum(values, 32767), NODATA).astype(np.int16), int((has & (values > 32767)).sum())
