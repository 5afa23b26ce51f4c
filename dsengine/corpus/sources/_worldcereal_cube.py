"""WorldCereal NetCDF-4 cubes (t, y, x), read as HDF5: every pixel is a series."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsengine.corpus.build.hdf5 import dataset, open_file, size
from dsengine.corpus.build.series_plan import SeriesPlan
from dsengine.corpus.build.series_writer import SeriesBlock
from dsengine.corpus.schema import LabelSpec
from dsengine.corpus.series_schema import SeriesLayout
from dsengine.corpus.sources._worldcereal import MISSING, TERRAIN, quantity, specs, stored, terrain
from dsengine.errors import RunError, UsageError

PREDICTED = "__xarray_dataarray_variable__"  # what xarray calls an array without a name


def plan(path: Path, *, predictions: Path | None, seed: int, max_gib: float) -> SeriesPlan:
    """Series of all pixels, row by row from the upper left. UsageError when the cube is not one, or the predictions lie elsewhere."""
    with open_file(path) as file:
        names = {found[:2]: name for name in sorted(file) if (found := quantity(name))}
        variables = {key: dataset(file, name, path) for key, name in names.items()}
        if not variables:
            raise UsageError(f"{path}: no variable of Sentinel-2, Sentinel-1 or weather; it has {', '.join(sorted(file))}")
        shape = _common_shape(variables, path, max_gib)
        time = np.broadcast_to(_times(dataset(file, "t", path), path), (1, shape[0]))
        found = {key: _has_data(variable) for key, variable in variables.items() if key[0] not in TERRAIN}
        x, y = (dataset(file, axis, path)[...].astype(np.float64) for axis in "xy")
        epsg = _epsg(file, path)
    labels = (_prediction_label(predictions, x, y),) if predictions else ()
    layout = SeriesLayout(kind="series", arrays=specs(found, time), labels=labels)
    columns = {"epsg": "int32", "x": "float64", "y": "float64", **dict.fromkeys([name for name in TERRAIN if (name, name) in names], "float32")}
    made_by = {"command": "corpus build", "source": "worldcereal", "layout": "cube", "files": [str(path)], "shape": list(shape),
               "predictions": str(predictions) if predictions else None,
               "without_data": [" ".join(key) for key, has in sorted(found.items()) if not has]}
    cut = _Cut(str(path), str(predictions) if predictions else "", layout, tuple(sorted(names.items())), epsg)
    return SeriesPlan(layout=layout, num_rows=shape[1] * shape[2], cut=cut, made_by=made_by, columns=columns, split="block", seed=seed)


@dataclass(frozen=True)
class _Cut:
    path: str
    predictions: str
    layout: SeriesLayout
    names: tuple[tuple[tuple[str, str], str], ...]
    epsg: int

    def __call__(self, rows: range) -> SeriesBlock:
        names = dict(self.names)
        try:
            with open_file(Path(self.path)) as file:
                x, y = (file[axis][...].astype(np.float64) for axis in "xy")
                band = _Band(rows, len(x))
                made = {spec.sensor: stored(spec, [band.read(file[names[spec.sensor, name]]).T for name in spec.bands])
                        for spec in self.layout.arrays}
                ground = {name: terrain(_constant(band.read(file[names[name, name]]), name, self.path)) for name in TERRAIN if (name, name) in names}
        except OSError as error:
            raise RunError(f"{self.path}: pixels {rows.start} to {rows.stop - 1} cannot be read: {error}") from error
        index = {"epsg": self.epsg, "x": x[band.columns], "y": y[band.rows], **ground}
        index["lon"], index["lat"] = _lonlat(self.epsg, index["x"], index["y"])
        labels = {label.name: _predicted(Path(self.predictions), band) for label in self.layout.labels}
        return SeriesBlock({sensor: values for sensor, (values, _) in made.items()}, index, labels,
                           saturated={sensor: cut for sensor, (_, cut) in made.items()})


class _Band:
    """The image lines that hold some consecutive pixels."""

    def __init__(self, pixels: range, width: int) -> None:
        self.rows, self.columns = np.divmod(np.arange(pixels.start, pixels.stop), width)
        self._lines = slice(int(self.rows[0]), int(self.rows[-1]) + 1)
        self._inside = slice(int(self.columns[0]), int(self.columns[0]) + len(pixels))

    def read(self, variable: Any) -> np.ndarray:
        """(T, n) uint16 with 65535 for no data."""
        raw = variable[:, self._lines, :]
        return numbers(raw.reshape(len(raw), -1)[:, self._inside], variable)


def numbers(raw: np.ndarray, variable: Any) -> np.ndarray:
    """uint16 of what a variable stores, as its attributes say: `_Unsigned`, fill values, scale and offset."""
    unsigned = str(_text(variable.attrs.get("_Unsigned", ""))).lower() == "true"
    wide = raw.view(f"u{raw.itemsize}").astype(np.float64) if unsigned and raw.dtype.kind == "i" else raw.astype(np.float64)
    missing = (wide == MISSING) | ~np.isfinite(wide)
    for name in ("_FillValue", "missing_value"):
        for value in np.atleast_1d(variable.attrs.get(name, [])):
            fill = np.asarray(value, raw.dtype)
            missing |= (raw == fill) if not np.isnan(np.float64(fill)) else np.isnan(raw.astype(np.float64))
    scaled = np.rint(wide * float(np.ravel(variable.attrs.get("scale_factor", 1.0))[0]) + float(np.ravel(variable.attrs.get("add_offset", 0.0))[0]))
    missing |= (scaled < 0) | (scaled >= MISSING)
    return np.where(missing, MISSING, scaled).astype(np.uint16)


def _common_shape(variables: dict[tuple[str, str], Any], path: Path, max_gib: float) -> tuple[int, int, int]:
    shapes = {variable.shape for variable in variables.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 3 or 0 in next(iter(shapes)):
        raise UsageError(f"{path}: variables have shapes {', '.join(map(str, sorted(shapes)))}; legal: one shape (t, y, x)")
    declared = sum(variable.nbytes for variable in variables.values())
    if declared > max_gib * 2**30:
        raise UsageError(f"{path} declares {size(declared)}; legal: at most {max_gib:g} GiB (--max-gib)")
    return shapes.pop()


def _has_data(variable: Any) -> bool:
    return any((numbers(variable[step], variable) != MISSING).any() for step in range(len(variable)))


def _times(axis: Any, path: Path) -> np.ndarray:
    """(T,) int64 ns of a CF time axis."""
    units = str(_text(axis.attrs.get("units", "")))
    match = re.fullmatch(r"(day|hour|minute|second)s? since (\d{4}-\d{1,2}-\d{1,2})(?:[T ](\d{2}:\d{2}(?::\d{2})?).*)?", units)
    if not match:
        raise UsageError(f"{path}: units of t are {units!r}; legal: days, hours, minutes or seconds since a date")
    seconds = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}[match[1]]
    year, month, day = match[2].split("-")
    origin = np.datetime64(f"{year}-{month:>02}-{day:>02}T{match[3] or '00:00'}", "ns").astype(np.int64)
    return origin + np.rint(axis[...].astype(np.float64) * seconds).astype(np.int64) * 10**9


def _epsg(file: Any, path: Path) -> int:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        attrs = file["crs"].attrs
        code = CRS.from_wkt(str(_text(attrs.get("crs_wkt", attrs.get("spatial_ref"))))).to_epsg()
    except (KeyError, CRSError) as error:
        raise UsageError(f"{path}: variable crs has no legal crs_wkt: {error}") from error
    if code is None:
        raise UsageError(f"{path}: crs is no EPSG code; legal: a CRS with one")
    return int(code)


def _lonlat(epsg: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from rasterio.crs import CRS

    from dsengine.corpus.build.raster import lonlat

    return lonlat(CRS.from_epsg(epsg), x, y)


def _constant(values: np.ndarray, name: str, path: str) -> np.ndarray:
    if (values != values[0]).any():
        raise RunError(f"{path}: {name} changes with time; legal: the same at every step")
    return values[0]


def _prediction_label(path: Path, x: np.ndarray, y: np.ndarray) -> LabelSpec:
    with open_file(path) as file:
        variable, bands = dataset(file, PREDICTED, path), [_text(name) for name in dataset(file, "bands", path)[...]]
        same = all(np.array_equal(dataset(file, axis, path)[...], ours) for axis, ours in (("x", x), ("y", y)))
        if "classification" not in bands or variable.shape != (len(bands), len(y), len(x)) or not same:
            raise UsageError(f"--predictions {path}: bands {', '.join(map(str, bands))}, shape {variable.shape}; "
                             f"legal: a band classification on the grid of --root, {(len(y), len(x))}")
        values = np.unique(variable[bands.index("classification")])
    return LabelSpec(name="predicted", kind="class", classes={int(v): f"class {v}" for v in values}, dtype="uint16")


def _predicted(path: Path, band: _Band) -> np.ndarray:
    with open_file(path) as file:
        names = [_text(name) for name in file["bands"][...]]
        return file[PREDICTED][names.index("classification")][band.rows, band.columns].astype(np.uint16)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
