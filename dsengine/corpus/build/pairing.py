"""From globs to sites: which files belong together, which channel of which file is which band, and whether the grids agree."""

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dsengine.corpus.build.raster import RasterInfo, describe
from dsengine.errors import UsageError, nearest


class Channel(NamedTuple):
    """Band `index` (from 1) of a raster file."""

    path: Path
    index: int


class Layer(NamedTuple):
    """One sensor or label at one site."""

    channels: tuple[Channel, ...]  # in the order of the wanted bands
    files: tuple[RasterInfo, ...]


Site = dict[str, Layer]  # sensor or `label NAME` -> layer


def canonical_band(name: str) -> str:
    """B1 -> B01, b8a -> B8A, vv -> VV."""
    upper = name.strip().upper()
    return f"B0{upper[1]}" if re.fullmatch(r"B\d", upper) else upper


def layers(patterns: Sequence[str], bands: Sequence[str], *, what: str, names: Sequence[str] | None = None) -> dict[str, Layer]:
    """Site -> layer for the files of `patterns`. `what` is the flag that errors name.

    A file with several bands is a site by its stem. A file with one band ends in the band's name: `site_B02.tif`, or
    `site/B02.tif`; where only one band is wanted, the stem alone is the site. `names` are the bands of each file in file
    order (--s2-bands); without it the file's own descriptions count, then the standard order.
    """
    infos = [describe(path) for path in _expand(patterns, what)]
    found: dict[str, dict[str, Channel]] = {}
    files: dict[str, list[RasterInfo]] = {}
    for info in infos:
        site, order = _identify(info, bands, what=what, names=names)
        for index, band in enumerate(order, start=1):
            taken = found.setdefault(site, {}).setdefault(band, Channel(info.path, index))
            if taken != Channel(info.path, index):
                raise UsageError(f"{what}: site {site} has band {band} twice: {taken.path} and {info.path}")
        files.setdefault(site, []).append(info)
    for site, channels in found.items():
        if missing := [band for band in bands if band not in channels]:
            raise UsageError(f"{what}: site {site} lacks band {', '.join(missing)}; {_paths(files[site])} has {', '.join(channels)}")
        _check_alike(site, files[site], what)
    return {site: Layer(tuple(channels[band] for band in bands), tuple(files[site])) for site, channels in sorted(found.items())}


def pair(parts: Mapping[str, Mapping[str, Layer]]) -> dict[str, Site]:
    """Site -> {part: layer}; UsageError naming the sites that a part lacks, or a file that is not on its site's grid."""
    every = sorted(set().union(*(part.keys() for part in parts.values())))
    for name, part in parts.items():
        if missing := [site for site in every if site not in part]:
            owner = next(other for other in parts if missing[0] in parts[other])
            raise UsageError(f"{_flag(name)} has no file for site {', '.join(missing)}, which {_flag(owner)} has; files are paired by stem, "
                             f"{nearest(missing[0], part)}")
    sites = {site: {name: part[site] for name, part in parts.items()} for site in every}
    for site, site_layers in sites.items():
        _check_grid(site, [info for layer in site_layers.values() for info in layer.files])
    return sites


def _flag(part: str) -> str:
    return f"--{part}"


def _expand(patterns: Sequence[str], what: str) -> list[Path]:
    paths = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UsageError(f"{what} {pattern}: no file matches")
        paths += [Path(match) for match in matches]
    return sorted(dict.fromkeys(paths))


def _identify(info: RasterInfo, bands: Sequence[str], *, what: str, names: Sequence[str] | None) -> tuple[str, Sequence[str]]:
    stem = info.path.stem
    if info.count == 1 and len(bands) > 1 and not (names and len(names) == 1):
        return _single_band(info.path, bands, what)
    if names:
        if len(names) != info.count:
            raise UsageError(f"{what}-bands names {len(names)} bands, but {info.path} has {info.count}")
        return stem, names
    described = [canonical_band(text or "") for text in info.descriptions]
    if set(described) & set(bands):
        return stem, described
    if info.count != len(bands):
        raise UsageError(f"{info.path} has {info.count} unnamed bands, {what} needs {', '.join(bands)}; name them in file order with {what}-bands")
    return stem, bands


def _single_band(path: Path, bands: Sequence[str], what: str) -> tuple[str, Sequence[str]]:
    head, tail = re.fullmatch(r"(?:(.*)[_.\-])?([^_.\-]*)", path.stem).groups()
    if canonical_band(tail) not in bands:
        known = re.fullmatch(r"B\d{1,2}A?|[VH][VH]", tail.upper())  # a band that is not wanted, such as B10
        if not known:
            raise UsageError(f"{path} has one band and its name does not end in one; {what} {nearest(tail, bands)}")
    return head or path.parent.name, (canonical_band(tail),)


def _check_alike(site: str, infos: Sequence[RasterInfo], what: str) -> None:
    """The files of one layer are read with one scale, offset and nodata value."""
    for info in infos[1:]:
        for key in ("nodata", "scale", "offset"):
            mine, first = getattr(info, key), getattr(infos[0], key)
            if mine != first and not (mine != mine and first != first):  # NaN equals NaN here
                raise UsageError(f"{what}: site {site}: {info.path} declares {key} {mine}, {infos[0].path} {first}; files of a site must agree")


def _check_grid(site: str, infos: Sequence[RasterInfo]) -> None:
    first = infos[0]
    for info in infos[1:]:
        tolerance = 1e-3 * abs(first.transform.a)  # a thousandth of a pixel
        same = {"CRS": info.crs == first.crs, "shape": info.shape == first.shape,
                "transform": first.transform.almost_equals(info.transform, precision=tolerance)}
        for what, equal in same.items():
            if not equal:
                mine, theirs = (getattr(i, what.lower()) for i in (info, first))
                mine, theirs = (tuple(v)[:6] if what == "transform" else v for v in (mine, theirs))
                raise UsageError(f"site {site}: {info.path} is not on the grid of {first.path}: {what} {mine}, legal: {theirs}")


def _paths(infos: Sequence[RasterInfo]) -> str:
    return str(infos[0].path) if len(infos) == 1 else f"{infos[0].path} and {len(infos) - 1} more"
