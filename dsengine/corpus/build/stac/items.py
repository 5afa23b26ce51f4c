"""What a STAC item says: time, footprint, grid, assets, and the offset of Sentinel-2's digital numbers."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from dsengine.corpus.build import offset
from dsengine.corpus.build.archive.http import clean
from dsengine.corpus.build.archive.scenes import Scene
from dsengine.corpus.build.dates import to_ns
from dsengine.corpus.build.stac.providers import Collection
from dsengine.corpus.schema import S1_BANDS

SCL = "SCL"


def scene(item: Mapping[str, Any], collection: Collection, sensor: str, *, max_cloud: float, orbit: str, s2_offset: str) -> Scene | None:
    """An item as a scene, `unfit` where the filters or missing metadata speak against it; None for what is no item with a time."""
    try:
        properties, assets = dict(item["properties"]), dict(item["assets"])
        time = to_ns(properties.get("start_datetime") or properties["datetime"])
        found = {band: dict(assets[key]) for band, key in collection.assets.items() if key in assets}
        if collection.scl in assets:
            found[SCL] = dict(assets[collection.scl])
        hrefs = {band: str(asset["href"]) for band, asset in found.items()}
        payload = {"collection": str(item.get("collection", collection.collection)), **_shortened(hrefs)}
        unfit = _missing(hrefs, collection) or (_unfit_s2(properties, max_cloud) if sensor == "s2" else _unfit_s1(properties, orbit))
        if sensor == "s2":
            decision, scale = s2_numbers(item, [asset for band, asset in found.items() if band != SCL], s2_offset)
            payload |= {"offset": decision.offset, "scale": scale, "reason": decision.reason}
            unfit = unfit or ("" if decision.offset is not None else f"offset is not known: {decision.reason}")
        else:
            payload["orbit"] = str(properties.get("sat:orbit_state", ""))
        return Scene(str(item["id"]), time, item.get("geometry") or {}, _same(item["id"], properties, time, sensor), _version(properties),
                     payload, _tile(properties, next(iter(found.values()), {})), unfit)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def assets(payload: Mapping[str, Any]) -> dict[str, str]:
    """Band -> URL of a decided scene."""
    return {band: payload["base"] + rest for band, rest in payload["assets"].items()}


def s2_numbers(item: Mapping[str, Any], used: Sequence[Mapping[str, Any]], choice: str) -> tuple[offset.Decision, float]:
    """The offset to add to digital numbers and why, and reflectance per number.

    In this order: `choice` (0 or -1000), earthsearch:boa_offset_applied (then the numbers have none left, whatever raster:bands says), the
    offset that the assets declare, the processing baseline, the baseline in the product's name.
    """
    properties = item["properties"]
    declared = {_declared(asset) for asset in used}
    if len(declared) != 1:
        return offset.Decision(None, f"its bands declare different scales or offsets: {sorted(map(str, declared))}"), 1e-4
    scale, add = declared.pop()
    if choice != "auto":
        return offset.Decision(int(choice), f"--s2-offset {choice}"), scale or 1e-4
    if properties.get("earthsearch:boa_offset_applied") is True:
        return offset.Decision(0, "earthsearch:boa_offset_applied"), scale or 1e-4
    tags = {key: str(properties[key]) for key in ("s2:processing_baseline", "processing:version") if key in properties}
    if "processing:version" in tags:
        tags.setdefault("s2:processing_baseline", tags.pop("processing:version"))
    names = [str(properties.get("s2:product_uri", "")), str(item["id"])]
    decision = offset.from_metadata(names, tags, scale=scale or 1.0, offset=add or 0.0)
    if add == 0.0 and decision.offset:
        decision = offset.Decision(None, f"its bands declare no offset, but {decision.reason} says {decision.offset}")
    return decision, scale or 1e-4


def _declared(asset: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Scale and offset of an asset, None where it declares none: raster extension 1 and 2, and the bands of STAC 1.1."""
    bands = asset.get("raster:bands") or asset.get("bands") or [{}]
    values = {**asset, **bands[0]}
    found = [next((float(values[key]) for key in (name, f"raster:{name}") if values.get(key) is not None), None) for name in ("scale", "offset")]
    return found[0], found[1]


def _shortened(hrefs: Mapping[str, str]) -> dict[str, Any]:
    """The URLs, without what may hold a token, split in what they share and the rest."""
    shown = {band: clean(href) if urlsplit(href).scheme in ("http", "https", "s3") else "" for band, href in hrefs.items()}
    base = os.path.commonprefix(list(shown.values()))
    return {"base": base, "assets": {band: href[len(base):] for band, href in shown.items()}}


def _missing(hrefs: Mapping[str, str], collection: Collection) -> str:
    lost = [band for band in collection.assets if band not in hrefs]
    other = [href for href in hrefs.values() if urlsplit(href).scheme not in ("http", "https", "s3")]
    return f"has no asset for {', '.join(lost)}" if lost else f"has assets that are no http(s) or s3 URLs: {other[0][:80]}" if other else ""


def _unfit_s2(properties: Mapping[str, Any], max_cloud: float) -> str:
    cloud = properties.get("eo:cloud_cover")
    if max_cloud < 100 and cloud is None:
        return "states no cloud cover"
    return f"cloud cover above {max_cloud:g} %" if cloud is not None and float(cloud) > max_cloud else ""


def _unfit_s1(properties: Mapping[str, Any], orbit: str) -> str:
    if properties.get("sar:instrument_mode", "IW") != "IW":
        return "is not of mode IW"
    if not set(properties.get("sar:polarizations", S1_BANDS)) >= set(S1_BANDS):
        return "lacks VV or VH"
    return f"is not from an {orbit} orbit" if orbit != "any" and properties.get("sat:orbit_state") != orbit else ""


def _same(name: str, properties: Mapping[str, Any], time: int, sensor: str) -> tuple[str, ...]:
    tile = properties.get("s2:mgrs_tile") or properties.get("grid:code") or ""
    return (str(tile).removeprefix("MGRS-"), str(time // 10**9)) if sensor == "s2" and tile else (str(name),)


def _version(properties: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("s2:processing_baseline", "processing:version", "s2:generation_time", "created")
    return tuple(str(properties.get(key, "")) for key in keys)


def _tile(properties: Mapping[str, Any], asset: Mapping[str, Any]) -> tuple[int, float, float, float, float] | None:
    """EPSG and bounds of the raster that an asset states."""
    values = {**properties, **asset}
    code = values.get("proj:epsg") or str(values.get("proj:code", "")).removeprefix("EPSG:")
    shape, t = values.get("proj:shape"), values.get("proj:transform")
    if not re.fullmatch(r"\d+", str(code)) or not shape or not t:
        return None
    return int(code), t[2], t[5] + t[4] * shape[0], t[2] + t[0] * shape[1], t[5]
