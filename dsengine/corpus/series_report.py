"""What `corpus info` says of a corpus of series or pixels."""

from datetime import UTC, datetime

import numpy as np
from rich.table import Table
from rich.text import Text

from dsengine.corpus.schema import SPLITS, UNKNOWN_TIME
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.storage import storage_at


def series_summary(corpus: SeriesCorpus) -> Table:
    """Rows, splits, place, times and size."""
    table = Table(show_header=False, title=Text(str(corpus.path)), title_justify="left")
    table.add_row(corpus.kind, f"{len(corpus):,}")
    for sensor, array in corpus.values.items():
        table.add_row(f"sensor {sensor}", " x ".join(map(str, array.shape)) + f" {array.dtype}")
    table.add_row("split", ", ".join(f"{name} {len(corpus.rows(name)):,}" for name in SPLITS))
    table.add_row("longitude", _range(corpus.index["lon"]))
    table.add_row("latitude", _range(corpus.index["lat"]))
    for sensor, array in corpus.time.items():
        table.add_row(f"time {sensor}", time_range(np.asarray(array[...]).reshape(-1)))
    for name in (name for name in corpus.index if name.startswith("time_")):
        table.add_row(f"time {name.removeprefix('time_')}", time_range(corpus.index[name]))
    nodata = corpus.index["nodata_fraction"]
    table.add_row("nodata", f"{nodata.mean():.2%} of all values, {np.count_nonzero(nodata):,} rows have some")
    if tested := corpus.attributes.get("made_by", {}).get("pair_test"):
        table.add_row("pairs", f"band correlation {tested['correlation']:.2f}" + ("" if tested["paired"] else ": scrambled"))
    table.add_row("on disk", f"{sum(storage_at(corpus.path).sizes()) / 2**20:,.1f} MiB")
    return table


def time_range(times: np.ndarray) -> str:
    """First and last of some times in ns UTC, and how many are unknown."""
    known = times[times != UNKNOWN_TIME]
    if not known.size:
        return "unknown"
    first, last = (datetime.fromtimestamp(int(t) / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M") for t in (known.min(), known.max()))
    return f"{first} to {last} UTC, unknown for {len(times) - len(known):,}"


def _range(degrees: np.ndarray) -> str:
    known = degrees[np.isfinite(degrees)]
    return f"{known.min():.4f} to {known.max():.4f}" if known.size else "unknown"
