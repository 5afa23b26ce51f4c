"""What will be drawn from a tile, decided before anything is written."""

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus.build.pair_test import pair_test
from dsengine.corpus.build.series_plan import SeriesPlan
from dsengine.corpus.schema import S2_BANDS, UNKNOWN_TIME, LabelSpec
from dsengine.corpus.series_schema import SeriesLayout
from dsengine.corpus.sources import _denethor_fields as fields_of
from dsengine.corpus.sources import _denethor_tile, _planet
from dsengine.corpus.sources._denethor_cut import Images, PointsCut, SeriesCut, Step, planet
from dsengine.corpus.storage import located
from dsengine.errors import RunError, UsageError

COLUMNS = {"row": "int32", "column": "int32", "field": "int64"}
POINT_COLUMNS = {**COLUMNS, "time_s2": "int64", "time_planet": "int64", "clp": "float32"}
CROP_LABEL = LabelSpec(name="crop", kind="class", classes=_planet.CROPS)
SERIES_BLOCK = 4096  # rows: a block reads a strip of every image once, so larger blocks decode tiled images less often
TEST_PIXELS, TEST_STEPS = 512, 16  # of the pairing test
SAMPLE_BYTES = 1 << 24


class Pixels(NamedTuple):
    """Pixels of fields, ascending by pixel."""

    pixel: np.ndarray  # (n,) int64, row * width + column
    field: np.ndarray  # (n,) int64 position of the field

    def of(self, wanted: np.ndarray) -> "Pixels":
        """Those whose field is in the mask `wanted` (F,)."""
        keep = wanted[self.field]
        return Pixels(self.pixel[keep], self.field[keep])


def make(args: argparse.Namespace, *, pixels: int, per_class: tuple[int, int]) -> SeriesPlan:
    """The plan for parsed flags. UsageError for what the flags or files get wrong."""
    tile = _denethor_tile.find(args.root, args.tile, dates=args.s2_dates)
    fields = fields_of.read(tile.labels, tile.box.epsg)
    of_pixel = fields_of.raster(fields, tile.box, tile.bands.shape[1:3], all_touched=args.touched == "all").reshape(-1)
    inside = np.flatnonzero(of_pixel >= 0)
    everything = Pixels(inside.astype(np.int64), of_pixel[inside].astype(np.int64))
    part = fields_of.parts(fields, tile=args.tile, seed=args.seed)
    scratch = _scratch(args, tile)
    images = Images(tile.pack.staged(tile.names.bands, scratch), tile.pack.staged(tile.names.clp, scratch), tile.box,
                    _s2_scale(tile, args.s2_scale), _planet_scale(tile, args.planet_scale))
    made_by = {"command": "corpus build", "source": "denethor", "set": args.set, "tile": args.tile, "layout": tile.layout,
               "s2": tile.bands.path, "labels": str(tile.labels), "planet_days": len(tile.planet), "box": tile.box._asdict(),
               "touched": args.touched, "min_area_m2": fields_of.MIN_AREA_M2, "fields": len(fields.ids), "fields_left_out": fields.left_out,
               "fields_a_part": np.bincount(part, minlength=3).tolist(), "max_clp": args.max_clp,
               "scales": {"s2": images.s2_scale, "planet": images.planet_scale}, "seed": args.seed}
    draw = {"points": _points, "times": _times, "crops": _crops}[args.set]
    return draw(_Setting(args, tile, fields, part, everything, images, made_by, scratch), pixels or per_class)


class _Setting(NamedTuple):
    """What all sets are drawn from."""

    args: argparse.Namespace
    tile: _denethor_tile.Tile
    fields: fields_of.Fields
    part: np.ndarray
    pixels: Pixels
    images: Images
    made_by: dict[str, Any]
    scratch: Path

    def plan(self, layout: SeriesLayout, num_rows: int, cut: Callable[[range], Any], columns: dict[str, str], **more: Any) -> SeriesPlan:
        """The plan, with unpacking and the pairing test where Planet takes part."""
        paired = any(spec.sensor == "planet" for spec in layout.arrays)
        return SeriesPlan(layout=layout, num_rows=num_rows, cut=cut, made_by={**self.made_by, **more}, columns=columns, split="given",
                          seed=self.args.seed, prepare=lambda: _prepare(self, test=paired), cleanup=lambda: _cleanup(self))


def _points(setting: _Setting, count: int) -> SeriesPlan:
    steps, without = same_days(setting.tile)
    if not steps:
        raise UsageError(f"{setting.tile.pack.path}: no Sentinel-2 step has a Planet image of its day; legal: a tile with timestamp.pkl, "
                         "or --s2-dates FILE")
    pool = setting.pixels.of(setting.part == 0)
    if count > len(pool.pixel):
        raise UsageError(f"--pixels {count}: the pretraining fields have {len(pool.pixel)} pixels; legal: 1 to {len(pool.pixel)}")
    layout = SeriesLayout(kind="pixels", arrays=(_planet.sentinel2(0), _planet.planet(0)), labels=(CROP_LABEL,))
    cut = PointsCut(setting.images, steps, pool.pixel, setting.fields.ids[pool.field], setting.fields.crops[pool.field], count, setting.args.seed)
    return setting.plan(layout, len(steps) * count, cut, POINT_COLUMNS, pixels_a_date=count, dates=len(steps), dates_without_planet=without)


def _times(setting: _Setting, count: int) -> SeriesPlan:
    pool = setting.pixels.of(setting.part == 0)
    if count > len(pool.pixel):
        raise UsageError(f"--pixels {count}: the pretraining fields have {len(pool.pixel)} pixels; legal: 1 to {len(pool.pixel)}")
    member = fields_of.choose(np.arange(len(pool.pixel)), count, seed=setting.args.seed, site="times")
    return _series(setting, Pixels(pool.pixel[member], pool.field[member]), np.zeros(count, np.uint8), with_planet=True, pixels=count)


def _crops(setting: _Setting, counts: tuple[int, int]) -> SeriesPlan:
    drawn, split, repeated = [], [], {}
    for code, (part, count) in enumerate(zip((1, 2), counts, strict=True)):
        for crop in np.unique(setting.fields.crops).tolist():
            pool = setting.pixels.of((setting.part == part) & (setting.fields.crops == crop))
            name = f"{('train', 'val')[code]} {_planet.CROPS[crop]}"
            if not len(pool.pixel):
                raise UsageError(f"--set crops: no pixel for {name}; legal: fields of each crop in train and val ({setting.tile.labels})")
            if len(pool.pixel) < count:
                repeated[name] = len(pool.pixel)
            member = fields_of.choose(np.arange(len(pool.pixel)), count, seed=setting.args.seed, site=f"crops {name}", replace=True)
            drawn.append(Pixels(pool.pixel[member], pool.field[member]))
            split.append(np.full(count, code, np.uint8))
    together = Pixels(*(np.concatenate(values) for values in zip(*drawn, strict=True)))
    codes = np.concatenate(split)
    order = np.lexsort((codes, together.pixel))
    return _series(setting, Pixels(together.pixel[order], together.field[order]), codes[order], with_planet=setting.args.with_planet,
                   pixels_a_class=list(counts), drawn_with_replacement=repeated)


def _series(setting: _Setting, chosen: Pixels, split: np.ndarray, *, with_planet: bool, **more: Any) -> SeriesPlan:
    tile, days = setting.tile, setting.tile.planet if with_planet else ()
    arrays = [_planet.sentinel2(tile.bands.shape[0], tuple(tile.time_s2.tolist()), f"cloud probability below {setting.args.max_clp:g} of 255")]
    if days:
        arrays.append(_planet.planet(len(days), tuple(day for day, _ in days), "some band has data"))
    layout = SeriesLayout(kind="series", arrays=tuple(arrays), labels=(CROP_LABEL,), block_rows=SERIES_BLOCK)
    cut = SeriesCut(setting.images, tuple(path for _, path in days), chosen.pixel, setting.fields.ids[chosen.field],
                    setting.fields.crops[chosen.field], split, setting.args.max_clp)
    return setting.plan(layout, len(chosen.pixel), cut, COLUMNS, **more)


def same_days(tile: _denethor_tile.Tile) -> tuple[tuple[Step, ...], list[str]]:
    """Sentinel-2 steps with the Planet image of their UTC day, and the steps that have none."""
    days, steps, without = dict(tile.planet), [], []
    for number, moment in enumerate(tile.time_s2.tolist()):
        day = moment - moment % _denethor_tile.DAY_NS
        if moment != UNKNOWN_TIME and day in days:
            steps.append(Step(number, moment, day, days[day]))
        else:
            without.append("unknown" if moment == UNKNOWN_TIME else str(np.datetime64(moment, "ns").astype("M8[D]")))
    return tuple(steps), without


def _prepare(setting: _Setting, *, test: bool) -> None:
    for name in setting.tile.names:
        setting.tile.pack.unpack(name, setting.scratch)
    steps, _ = same_days(setting.tile)
    if not test or not steps or setting.args.allow_unpaired:
        return
    middle = max(0, len(setting.pixels.pixel) // 2 - TEST_PIXELS // 2)
    row, column = setting.images.grid(setting.pixels.pixel[middle:middle + TEST_PIXELS])
    shape = setting.images.bands.shape[1:3]
    runs = [(_planet.stored(setting.images.s2(step.number, row, column)[0], scale=setting.images.s2_scale)[0],
             planet(step.planet, row, column, shape)[0]) for step in _spread(steps, TEST_STEPS)]
    result = pair_test(runs, S2_BANDS, _planet.PLANET_BANDS)
    if not result.paired:
        raise RunError(f"{setting.args.root}: Sentinel-2 and Planet bands do not correlate ({result.correlation:.2f} over {result.num_runs} dates), "
                       "so the images may not lie on each other; --allow-unpaired goes on")


def _cleanup(setting: _Setting) -> None:
    if setting.args.scratch is None and setting.scratch.is_dir():
        shutil.rmtree(setting.scratch)


def _spread(steps: Sequence[Step], most: int) -> list[Step]:
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, most).astype(np.int64))]


def _scratch(args: argparse.Namespace, tile: _denethor_tile.Tile) -> Path:
    if args.scratch is not None:
        return args.scratch
    if not isinstance(located(args.out), Path) and not all(tile.pack.is_plain(name) for name in tile.names):
        raise UsageError(f"{tile.pack.path}: packed arrays are unpacked on the way to a URL; legal: --scratch DIR")
    return Path(f"{args.out}.scratch")


def _s2_scale(tile: _denethor_tile.Tile, given: str) -> float:
    dtype = np.dtype(tile.bands.dtype)
    content = tile.pack.start(tile.names.bands, SAMPLE_BYTES)
    start = np.frombuffer(content, dtype, len(content) // dtype.itemsize).astype(np.float64)
    return _planet.decided_scale(given, start, "--s2-scale")


def _planet_scale(tile: _denethor_tile.Tile, given: str) -> float:
    """Reflectance per Planet number, once the first image is known to lie on the Sentinel-2 grid."""
    import rasterio

    path = tile.planet[0][1]
    try:
        with rasterio.open(path, driver="GTiff") as file:
            shape, crs, bounds, count = file.shape, file.crs, file.bounds, file.count
            values = file.read(out_shape=(count, min(shape[0], 512), min(shape[1], 512)))
    except rasterio.errors.RasterioError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    expected = tuple(round(side * _planet.RATIO) for side in tile.bands.shape[1:3])
    shift = np.abs(np.subtract(bounds, tile.box[:4])).max()
    if crs is None or crs.to_epsg() != tile.box.epsg or shape != expected or count != len(_planet.PLANET_BANDS) or shift > 1.5:
        raise UsageError(f"{path}: {count} bands of {shape}, {crs}, off the Sentinel-2 grid by {shift:g} m; "
                         f"legal: {len(_planet.PLANET_BANDS)} bands of {expected}, EPSG:{tile.box.epsg}, at most 1.5 m off")
    return _planet.decided_scale(given, values.astype(np.float64), "--planet-scale")
