"""The layout of a corpus that is there, the same with other codecs or resolution groups, and whether two corpora agree."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import zarr
from zarr.codecs import ShardingCodec

from dsengine.corpus import bitpack
from dsengine.corpus.index import Corpus
from dsengine.corpus.schema import ArraySpec, LabelSpec, Layout
from dsengine.corpus.shards import BITPACK, CODECS
from dsengine.errors import UsageError, nearest


class Group(NamedTuple):
    """Bands that will share one array with `factor` finest pixels a pixel."""

    array: str
    factor: int
    bands: tuple[str, ...]


def layout_of(corpus: Corpus) -> Layout:
    """What `corpus` was built with. UsageError when its codec is none of ours."""
    first = corpus.arrays[corpus.bands[0].array]
    return Layout(arrays=tuple(_array_spec(corpus, name) for name in dict.fromkeys(band.array for band in corpus.bands)),
                  patch_size=corpus.patch_size, resolution_m=corpus.resolution_m, labels=tuple(_label_spec(*item) for item in corpus.labels.items()),
                  codec=_codec(corpus, first), shard_patches=int(first.shards[0]) if first.shards else Layout.shard_patches)


def column_dtypes(corpus: Corpus) -> dict[str, str]:
    """dtype of each index column beyond the standard ones."""
    return {name: "str" if array.dtype.kind in "OTU" else str(array.dtype) for name, array in corpus.columns.items()}


def parse_group(text: str) -> Group:
    """`s2_20m:2=B05,B06` -> Group. UsageError when it is written otherwise."""
    match = re.fullmatch(r"([A-Za-z]\w*):([1-9]\d*)=(\w+(?:,\w+)*)", text)
    if not match:
        raise UsageError(f"--group {text}: legal: ARRAY:FACTOR=BAND,BAND,..., such as s2_20m:2=B05,B06,B07,B8A,B11,B12")
    return Group(match[1], int(match[2]), tuple(match[3].split(",")))


def regroup(layout: Layout, groups: Sequence[Group]) -> Layout:
    """`layout` with the bands of each group in an array of their own; sensors and the order of arrays otherwise stay."""
    owner = {band: spec for spec in layout.arrays for band in spec.bands}
    moved = [band for group in groups for band in group.bands]
    for band in moved:
        if band not in owner:
            raise UsageError(f"--group: band {band!r} is not in the corpus; {nearest(band, owner)}")
        if moved.count(band) > 1:
            raise UsageError(f"--group: band {band} is named twice")
    kept = [replace(spec, bands=tuple(b for b in spec.bands if b not in moved)) for spec in layout.arrays]
    made = [_grouped(group, [owner[band] for band in group.bands]) for group in groups]
    arrays = sorted((spec for spec in (*kept, *made) if spec.bands), key=lambda spec: (_sensor_order(layout, spec.sensor), spec.factor, spec.name))
    names = [spec.name for spec in arrays]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--group: array {twice[0]} still holds other bands; give another name, or move all bands of {twice[0]}")
    return replace(layout, arrays=tuple(arrays))


def check_alike(layouts: Mapping[str, Layout]) -> Layout:
    """The layout that all corpora (path -> layout) share, up to codec and shard size. UsageError naming the first difference."""
    (first, ours), *rest = layouts.items()
    for path, theirs in rest:
        for key in ("patch_size", "resolution_m", "arrays", "labels"):
            mine, other = (_plain(getattr(layout, key)) for layout in (ours, theirs))
            if mine != other:
                raise UsageError(f"{path} and {first} differ in {key}: {_shortest(other, mine)}; corpora to join have equal bands, units, sizes and "
                                 "labels (`dsengine corpus convert` regroups bands, cuts to a size and drops labels and columns)")
    return ours


def _array_spec(corpus: Corpus, name: str) -> ArraySpec:
    attrs, bands = dict(corpus.arrays[name].attrs), [band for band in corpus.bands if band.array == name]
    return ArraySpec(name=name, sensor=bands[0].sensor, bands=tuple(band.name for band in bands), units=attrs["units"],
                     scale_factor=attrs["scale_factor"], add_offset=attrs["add_offset"], factor=bands[0].factor)


def _label_spec(name: str, array: zarr.Array) -> LabelSpec:
    attrs = dict(array.attrs)
    return LabelSpec(name=name, kind=attrs["kind"], classes={int(value): text for value, text in attrs["classes"].items()},
                     ignore=attrs["ignore"], dtype=str(array.dtype))


def _codec(corpus: Corpus, array: zarr.Array) -> str:
    codec = array.metadata.codecs[0]
    names = [inner.to_dict()["name"] for inner in codec.codecs] if isinstance(codec, ShardingCodec) else []
    if names == [bitpack.NAME, "crc32c"]:
        return next(name for name, predictor in BITPACK.items() if predictor == codec.codecs[0].predictor)
    found = {("bytes", "blosc", "crc32c"): "lz4", ("bytes", "zstd", "crc32c"): "zstd", ("bytes", "crc32c"): "none"}.get(tuple(names))
    if found is None:
        raise UsageError(f"{corpus.path}: codecs {', '.join(names) or 'without sharding'}; name the codec to write: --codec {'|'.join(CODECS)}")
    return found


def _grouped(group: Group, owners: Sequence[ArraySpec]) -> ArraySpec:
    alike = {(spec.sensor, spec.units, spec.scale_factor, spec.add_offset) for spec in owners}
    if len(alike) > 1:
        raise UsageError(f"--group {group.array}: its bands differ in sensor, units, scale or offset: {', '.join(map(str, sorted(alike)))}")
    return replace(owners[0], name=group.array, factor=group.factor, bands=group.bands)


def _sensor_order(layout: Layout, sensor: str) -> int:
    return list(dict.fromkeys(spec.sensor for spec in layout.arrays)).index(sensor)


def _plain(value: object) -> object:
    return [asdict(item) for item in value] if isinstance(value, tuple) else value


def _shortest(theirs: object, ours: object) -> str:
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return f"{theirs} against {ours}"
    if len(ours) != len(theirs):
        return f"{[item['name'] for item in theirs]} against {[item['name'] for item in ours]}"
    return "; ".join(f"{b['name']}: {key} {b[key]} against {a[key]}" for a, b in zip(ours, theirs) for key in a if a[key] != b[key])
