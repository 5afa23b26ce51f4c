"""The on-disk contract of time series and of pixel sets: what `schema` is for image patches.

A corpus holds one kind: patches (no `kind` in its root), `series` or `pixels`. The band table, the codecs, nodata and the statistics
are those of `schema`; `docs/corpus.md` shows the layout.
"""

from dataclasses import dataclass

import numpy as np

from dsengine.corpus.schema import Band, LabelSpec
from dsengine.errors import UsageError

KINDS = ("series", "pixels")
DTYPES = ("int16", "float32")  # int16 where the product is reflectance or dB; both store -32768 where there is no data
LABEL_KINDS = ("class", "multilabel")
CODECS = ("lz4", "zstd", "none")  # rows are too short for tiles
CHUNK_BYTES = 65536  # of raw series in one inner chunk, or one series where that is longer
BLOCK_BYTES = 32 << 20  # of raw series in one shard of all arrays together
MAX_BLOCK_ROWS = 65536
MIN_BLOCK_ROWS = 64
SERIES_INDEX = {"id": "int64", "lon": "float64", "lat": "float64", "split": "uint8", "nodata_fraction": "float32", "quarantine": "uint8"}


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """One sensor: (P, T, C) or, with `steps` 0, (M, C). Physical value = stored * scale_factor + add_offset."""

    sensor: str
    bands: tuple[str, ...]
    units: str
    scale_factor: float = 1.0
    add_offset: float = 0.0
    dtype: str = "int16"
    steps: int = 0  # T
    time: tuple[int, ...] = ()  # ns UTC, T values where all series share them; empty: every row has its own
    resolution_m: float = 10.0
    valid: str = ""  # what makes a time step valid, for the reader

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"sensor {self.sensor}: dtype={self.dtype!r} is not legal: {', '.join(DTYPES)}")
        if self.time and len(self.time) != self.steps:
            raise UsageError(f"sensor {self.sensor}: {len(self.time)} times for {self.steps} time steps; legal: one a step, or none")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row: (T, C) or (C,)."""
        return (self.steps, len(self.bands)) if self.steps else (len(self.bands),)

    @property
    def row_bytes(self) -> int:
        """Bytes of one raw row."""
        return int(np.prod(self.row_shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class SeriesLayout:
    """What a corpus of series or pixels will hold, before the number of rows is known."""

    kind: str
    arrays: tuple[SeriesSpec, ...]
    labels: tuple[LabelSpec, ...] = ()
    codec: str = "lz4"  # one of CODECS
    block_rows: int = 0  # rows of one file of every array; 0: by size

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind={self.kind!r} is not legal: {', '.join(KINDS)}")
        if self.codec not in CODECS:
            raise UsageError(f"codec={self.codec!r} is not legal in a corpus of {self.kind}: {', '.join(CODECS)}")
        for spec in self.arrays:
            if bool(spec.steps) != (self.kind == "series"):
                raise UsageError(f"sensor {spec.sensor}: steps={spec.steps} is not legal in a corpus of {self.kind}")
        for label in self.labels:
            if label.kind not in LABEL_KINDS:
                raise UsageError(f"label {label.name}: kind={label.kind!r} is not legal in a corpus of {self.kind}: {', '.join(LABEL_KINDS)}")

    def bands(self) -> tuple[Band, ...]:
        """The band table, in corpus order."""
        return tuple(Band(name, spec.sensor, self.array(spec), channel, 1)
                     for spec in self.arrays for channel, name in enumerate(spec.bands))

    def array(self, spec: SeriesSpec) -> str:
        """Name of the array: series/<sensor> or pixels/<sensor>."""
        return f"{self.kind}/{spec.sensor}"

    def rows_a_block(self) -> int:
        """Rows that are written, committed and continued together, one shard of each array: a power of two unless `block_rows` says otherwise."""
        if self.block_rows:
            return self.block_rows
        if self.kind == "pixels":
            return MAX_BLOCK_ROWS
        fitting = max(1, BLOCK_BYTES // sum(spec.row_bytes for spec in self.arrays))
        return min(MAX_BLOCK_ROWS, max(MIN_BLOCK_ROWS, 1 << (fitting.bit_length() - 1)))

    def rows_a_chunk(self, spec: SeriesSpec) -> int:
        """Rows of one inner chunk: a whole block of pixels, or series of about 64 KiB together."""
        if self.kind == "pixels":
            return self.rows_a_block()
        fitting = max(1, CHUNK_BYTES // spec.row_bytes)
        rows = min(self.rows_a_block(), 1 << (fitting.bit_length() - 1))
        while self.rows_a_block() % rows:
            rows //= 2
        return rows
