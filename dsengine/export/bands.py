"""Which channel of a raster is which band of a contract: by description, by file name, else by the standard order. Nothing else is guessed."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from dsengine.corpus.build.pairing import canonical_band
from dsengine.corpus.build.raster import RasterInfo
from dsengine.corpus.schema import S1_BANDS, S2_BANDS, Contract
from dsengine.errors import UsageError


class Channel(NamedTuple):
    """Band `index` (from 1) of a raster."""

    info: RasterInfo
    index: int


def assigned(info: RasterInfo, contract: Contract) -> dict[str, Channel]:
    """Band -> channel of one file; bands that the contract does not have are left out. UsageError with the legal bands."""
    legal = tuple(band.name for band in contract.bands)
    if info.count == 1 and (name := _from_name(info, legal)) is not None:
        return {name: Channel(info, 1)} if name in legal else {}
    described = [canonical_band(text or "") for text in info.descriptions]
    if set(described) & set(legal):
        return _described(info, described, legal)
    for order in (legal, S2_BANDS, S1_BANDS):
        if info.count == len(order) and set(order) <= set(legal):
            return {name: Channel(info, index) for index, name in enumerate(order, start=1)}
    raise UsageError(f"{info.path}: {info.count} bands without names that are known ({', '.join(map(str, info.descriptions))}); legal: "
                     f"{', '.join(legal)}, as descriptions, as ends of file names (site_{legal[0]}.tif), or all of them in this order")


def site_of(info: RasterInfo, contract: Contract) -> str:
    """The stem without the band; the folder's name where nothing else is left."""
    if info.count == 1 and _from_name(info, [band.name for band in contract.bands]) is not None:
        return re.sub(r"[_.\-]?[^_.\-]*$", "", info.path.stem) or info.path.parent.name
    return info.path.stem


def _described(info: RasterInfo, described: list[str], legal: tuple[str, ...]) -> dict[str, Channel]:
    if "B10" in described and "B10" not in legal and set(legal) & set(S2_BANDS):
        raise UsageError(f"{info.path}: it has band B10, so it is Sentinel-2 L1C, top of the atmosphere; legal: L2A, {', '.join(legal)}")
    found: dict[str, Channel] = {}
    for index, name in enumerate(described, start=1):
        if name in found and name in legal:
            raise UsageError(f"{info.path}: bands {found[name].index} and {index} are both named {name}; legal: each of {', '.join(legal)} once")
        if name in legal:
            found[name] = Channel(info, index)
    return found


def _from_name(info: RasterInfo, legal: Sequence[str]) -> str | None:
    """The band that a file with one band is named after, by the end of its stem, else by its description."""
    texts = (re.split(r"[_.\-]", info.path.stem)[-1], info.descriptions[0] or "")
    return next((name for name in map(canonical_band, texts) if name in (*legal, *S2_BANDS, *S1_BANDS, "B10")), None)
