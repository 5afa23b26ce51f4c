"""A small corpus of series and small runs for the tests of crop studies."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import dsengine
from dsengine.corpus.build.series_plan import SeriesPlan, build_series
from dsengine.corpus.build.series_writer import SeriesBlock
from dsengine.corpus.schema import LabelSpec
from dsengine.corpus.series_schema import SeriesLayout, SeriesSpec
from dsengine.engine.checkpoint import save

ROWS, DATES, BANDS = 240, 6, ("B02", "B03", "B04")
CLASSES = {0: "unknown", 10: "wheat", 20: "rye", 30: "maize", 40: "hops"}


def columns() -> dict[str, np.ndarray]:
    """Of all rows. 60 fields of 2018 in the north, 20 of 2019 in the south; a field has three rows, in more than one block of the split by place;
    hops on 3 fields, no label on field 4."""
    field = np.arange(ROWS) // 3
    crop = np.array([10, 20, 30])[field % 3]
    crop[np.isin(field, (7, 8, 9))], crop[field == 4] = 40, 0
    north = field < 60
    return {"field": field + 1000, "crop": crop, "year": np.where(north, 2018, 2019), "region": np.where(north, "north", "south").astype(object),
            "lon": 10 + (field % 10) * 0.6 + np.arange(ROWS) % 3 * 0.2, "lat": 50 + field // 10 * 0.6}


def values() -> dict[str, np.ndarray]:
    """Stored numbers: a class has its peak at a date of its own; a date in ten is missing, a single band in twenty."""
    rng, crop = np.random.default_rng(5), columns()["crop"]
    s2 = rng.normal(2000, 150, (ROWS, DATES, len(BANDS)))
    s2[np.arange(ROWS), np.searchsorted(list(CLASSES), crop), 0] += 1500
    s2[rng.random((ROWS, DATES)) < 0.1] = -32768
    s2[:, :, 1][rng.random((ROWS, DATES)) < 0.05] = -32768
    return {"s2": s2.astype(np.int16), "rain": rng.gamma(2, 3, (ROWS, DATES, 1)).astype(np.float32), "clear": rng.random((ROWS, DATES)) < 0.9}


def layout() -> SeriesLayout:
    return SeriesLayout(kind="series", labels=(LabelSpec(name="crop", kind="class", classes=CLASSES, ignore=0),), arrays=(
        SeriesSpec(sensor="s2", bands=BANDS, units="reflectance", scale_factor=1e-4, steps=DATES, time=tuple(range(DATES))),
        SeriesSpec(sensor="rain", bands=("rain",), units="mm", dtype="float32", steps=DATES, time=tuple(range(DATES)))))


def cut(rows: range) -> SeriesBlock:
    part, c, v = slice(rows.start, rows.stop), columns(), values()
    index = {name: c[name][part] for name in ("lon", "lat", "field", "year")}
    return SeriesBlock({"s2": v["s2"][part], "rain": v["rain"][part]}, {**index, "region": c["region"][part].tolist()},
                       {"crop": c["crop"][part].astype(np.uint8)}, {}, {"s2": v["clear"][part]}, {})


def planted(out: Path) -> Path:
    """The corpus, split row by row, so that its own split parts fields."""
    return build_series(out, SeriesPlan(layout=layout(), num_rows=ROWS, cut=cut, made_by={"source": "test"}, split="random",
                                        columns={"field": "int64", "year": "int64", "region": "str"}))


def run_of(folder: Path, opened: dsengine.corpus.SeriesCorpus, encoder: str, sensors: tuple[str, ...] = ("s2",), **settings: object) -> Path:
    """A run folder with one checkpoint of a fresh encoder of some sensors of a corpus, as training would have left it."""
    places = [k for k, band in enumerate(opened.bands) if band.sensor in sensors]
    torch.manual_seed(5)
    method = nn.Module()
    method.encoders = nn.ModuleDict({"all": dsengine.build_encoder(encoder, len(places), **settings)})
    config = {"encoder": {"name": encoder, **settings}, "encoders": {}, "method": {"name": "scarf"}, "corpus": str(opened.path), "train": {"seed": 0}}
    save(folder, step=1, method=method, optimizer=torch.optim.SGD(method.parameters(), lr=0.1), loader={}, config=config, contract=opened.contract(),
         keep=1, inputs={"all": {"bands": places, "in_channels": len(places)}})
    return folder
