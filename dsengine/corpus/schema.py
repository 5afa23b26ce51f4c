"""The on-disk contract of a corpus: names, dtypes and attributes, and the part of it that travels with weights.

A corpus is a Zarr v3 group. `docs/corpus.md` shows the layout; every reader goes through the band table
(`Band`), so nothing assumes that a sensor is one array or that all bands share one ground resolution.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dsengine.errors import UsageError

VERSION = 1
NODATA = -32768  # stored value of a pixel without data; valid values saturate at +-32767
UNKNOWN_TIME = np.iinfo(np.int64).min  # ns UTC
UNKNOWN_EPSG = 0
SPLITS = ("train", "val", "test")  # index/split holds the position in this tuple
SHARD_PATCHES = 64
MAX_PATCH_BYTES = 256 << 20  # decoded patch of one array; 14 bands of 3000 x 3000 pixels
S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S1_BANDS = ("VV", "VH")
LABEL_KINDS = ("class", "multilabel", "classmap")

# Columns of index/, one value a patch; all but id, split and nodata_fraction come from whoever builds the corpus.
INDEX_DTYPES = {
    "id": "int64", "lon": "float64", "lat": "float64", "epsg": "int32", "x": "float64", "y": "float64",
    "time_s2": "int64", "time_s1": "int64", "split": "uint8", "nodata_fraction": "float32",
    "cloud_fraction": "float32", "source": "str", "shift_y": "float32", "shift_x": "float32", "quarantine": "uint8",
}
OPTIONAL_COLUMNS = {"shift_y": np.nan, "shift_x": np.nan, "quarantine": 0}  # value where an older corpus has no such column


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # of an array or label: it becomes a folder


RESERVED = ("index", "labels", "manifest", "neighbours")  # folders of a corpus that are no image arrays


def check_name(name: object, what: str) -> None:
    """UsageError unless `name` can be the name of an array: letters, digits, _ . - and no folder."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"{what} {name!r} is not legal: letters, digits, _ . -, not beginning with a dot or -, and no folder")


class Band(NamedTuple):
    """Where one band lives: channel `channel` of array `array`, repeated `factor` times along y and x."""

    name: str
    sensor: str
    array: str
    channel: int
    factor: int  # pixels of the finest grid per pixel of this array


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One image array, (N, C, H, W) int16. Physical value = stored * scale_factor + add_offset."""

    name: str
    sensor: str
    bands: tuple[str, ...]
    units: str
    scale_factor: float
    add_offset: float = 0.0
    factor: int = 1


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """One label array: (N,) `class`, (N, num_classes) `multilabel`, or (N, H, W) `classmap`."""

    name: str
    kind: str
    classes: dict[int, str]
    ignore: int | None = None
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        check_name(self.name, "label")
        if self.kind not in LABEL_KINDS:
            raise UsageError(f"label {self.name}: kind={self.kind!r} is not legal: {', '.join(LABEL_KINDS)}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a corpus will hold, before the number of patches is known."""

    arrays: tuple[ArraySpec, ...]
    patch_size: int  # pixels of the finest grid
    resolution_m: float  # metres a pixel of the finest grid
    labels: tuple[LabelSpec, ...] = ()
    codec: str = "lz4"  # one of shards.CODECS
    shard_patches: int = SHARD_PATCHES

    def __post_init__(self) -> None:
        for array in self.arrays:
            check_name(array.name, "array")
            if array.name in RESERVED:
                raise UsageError(f"array {array.name}: a corpus has a folder of that name; legal: any other than {', '.join(RESERVED)}")
            if self.patch_size % array.factor:
                raise UsageError(f"patch size {self.patch_size} is not a multiple of {array.factor}, the factor of array {array.name}")
            if (size := 2 * len(array.bands) * self.side(array) ** 2) > MAX_PATCH_BYTES:
                raise UsageError(f"patch size {self.patch_size}: a patch of array {array.name} has {size:,} bytes; legal: up to {MAX_PATCH_BYTES:,}")

    def bands(self) -> tuple[Band, ...]:
        """The band table, in corpus order."""
        return tuple(Band(name, array.sensor, array.name, channel, array.factor)
                     for array in self.arrays for channel, name in enumerate(array.bands))

    def side(self, array: ArraySpec) -> int:
        """Height and width in pixels of one patch in `array`."""
        return self.patch_size // array.factor


def standard_layout(patch_size: int, *, sensors: tuple[str, ...] = ("s2", "s1"), resolution_m: float = 10.0,
                    labels: tuple[LabelSpec, ...] = (), codec: str = "lz4") -> Layout:
    """S2 L2A reflectance x 10000 (12 bands) and S1 dB x 100 (VV, VH), on one grid."""
    known = {
        "s2": ArraySpec(name="s2", sensor="s2", bands=S2_BANDS, units="reflectance", scale_factor=1e-4),
        "s1": ArraySpec(name="s1", sensor="s1", bands=S1_BANDS, units="dB", scale_factor=0.01),
    }
    arrays = tuple(known[name] for name in ("s2", "s1") if name in sensors)
    return Layout(arrays=arrays, patch_size=patch_size, resolution_m=resolution_m, labels=labels, codec=codec)


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model must know about its input; stored in every checkpoint. Sequences have one entry a band."""

    bands: tuple[Band, ...]
    units: tuple[str, ...]
    scale: tuple[float, ...]  # physical = stored * scale + offset
    offset: tuple[float, ...]
    mean: tuple[float, ...]  # physical units, nodata left out
    std: tuple[float, ...]
    nodata: int
    patch_size: int  # pixels of the finest grid
    resolution_m: float  # metres a pixel of the finest grid

    def to_json(self) -> dict[str, Any]:
        """Plain lists and scalars; floats survive JSON exactly."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**fields, "bands": [band._asdict() for band in self.bands]}

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> "Contract":
        """The inverse of `to_json`."""
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in d.items()}
        return cls(**{**fields, "bands": tuple(Band(**band) for band in d["bands"])})

    def check(self, other: "Contract", *, what: str) -> None:
        """Refuse `other` (named by `what`) unless it equals this contract: UsageError with every difference and the legal value."""
        ours, theirs = [[b.name for b in c.bands] for c in (self, other)]
        if ours != theirs:
            raise UsageError(f"{what}: bands differ: {', '.join(theirs)}; legal, in this order: {', '.join(ours)}")
        differences = [line for key, value in self.to_json().items() if (line := _difference(key, value, other.to_json()[key], ours))]
        if differences:
            raise UsageError(f"{what}: {'; '.join(differences)}")


def _difference(key: str, ours: Any, theirs: Any, bands: list[str]) -> str:
    if ours == theirs:
        return ""
    if not isinstance(ours, list):
        return f"{key} is {theirs}, legal: {ours}"
    each = [f"{band} {got} (legal: {want})" for band, want, got in zip(bands, ours, theirs, strict=True) if want != got]
    return f"{key} differs for {', '.join(each)}"
