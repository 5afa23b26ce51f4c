"""Builds a small corpus of series: `python build_series.py OUT [PAUSE]`; prints a line a block. Import `plan` to have it in-process."""

import sys
import time
from pathlib import Path

import numpy as np

from dsengine.corpus.build.series_plan import SeriesPlan, build_series
from dsengine.corpus.build.series_writer import SeriesBlock
from dsengine.corpus.schema import LabelSpec
from dsengine.corpus.series_schema import SeriesLayout, SeriesSpec

ROWS, STEPS = 421, 7
BANDS = ("B02", "B03", "B04")


def layout(codec: str = "lz4", kind: str = "series") -> SeriesLayout:
    """Shared times, own times, int16 and float32."""
    steps = STEPS if kind == "series" else 0
    return SeriesLayout(kind=kind, codec=codec, block_rows=64, labels=(
        LabelSpec(name="crop", kind="class", classes={0: "none", 7: "rye"}, dtype="int64"),
        LabelSpec(name="tags", kind="multilabel", classes={0: "a", 1: "b"})), arrays=(
        SeriesSpec(sensor="s2", bands=BANDS, units="reflectance", scale_factor=1e-4, steps=steps, time=tuple(range(steps))),
        SeriesSpec(sensor="rain", bands=("rain",), units="mm", dtype="float32", steps=steps)))


def values() -> dict[str, np.ndarray]:
    """Everything that the corpus holds, by key of a series corpus."""
    rng = np.random.default_rng(0)
    s2, rain = rng.integers(-500, 9000, (ROWS, STEPS, 3)).astype(np.int16), rng.gamma(2, 3, (ROWS, STEPS, 1)).astype(np.float32)
    s2[rng.random((ROWS, STEPS)) < 0.2] = -32768
    s2[:, :, 1][rng.random((ROWS, STEPS)) < 0.1] = -32768
    rain[rng.random(ROWS) < 0.1] = -32768
    clear = rng.random((ROWS, STEPS)) < 0.8
    return {"series/s2": s2, "series/rain": rain, "time/rain": rng.integers(0, 10**17, (ROWS, STEPS)),
            "valid/s2": clear & (s2 != -32768).any(axis=2), "valid/rain": (rain != -32768).any(axis=2), "clear": clear,
            "index/lon": rng.uniform(-180, 180, ROWS), "index/lat": rng.uniform(-80, 80, ROWS), "index/field": rng.integers(0, 40, ROWS),
            "labels/crop": rng.choice([0, 7], ROWS), "labels/tags": rng.integers(0, 2, (ROWS, 2)).astype(np.uint8)}


class Cut:
    """Blocks of `values`."""

    def __init__(self, kind: str = "series", pause: float = 0.0) -> None:
        self.kind, self.pause = kind, pause

    def __call__(self, rows: range) -> SeriesBlock:
        time.sleep(self.pause)
        v = {key: value[rows.start:rows.stop] for key, value in values().items()}
        index = {"lon": v["index/lon"], "lat": v["index/lat"], "field": v["index/field"], "name": [f"Feld né {row}" for row in rows]}
        labels = {"crop": v["labels/crop"], "tags": v["labels/tags"]}
        if self.kind == "pixels":
            return SeriesBlock({"s2": v["series/s2"][:, 0], "rain": v["series/rain"][:, 0]}, index, labels)
        return SeriesBlock({"s2": v["series/s2"], "rain": v["series/rain"]}, index, labels, {"rain": v["time/rain"]}, {"s2": v["clear"]},
                           {"s2": [1, 0, 2]})


def plan(codec: str = "lz4", *, kind: str = "series", pause: float = 0.0, split: str = "block") -> SeriesPlan:
    """The build."""
    return SeriesPlan(layout=layout(codec, kind), num_rows=ROWS, cut=Cut(kind, pause), made_by={"by": "test"},
                      columns={"field": "int64", "name": "str"}, split=split)


if __name__ == "__main__":
    build_series(Path(sys.argv[1]), plan(pause=float(sys.argv[2])), progress=lambda done, total: print(done, flush=True))
