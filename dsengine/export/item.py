"""A STAC item as a scene: its assets say which file is which band, its metadata how numbers become reflectance.

Assets are local files, named relative to the item or absolutely, or GeoTIFFs of one band behind http(s) (`remote`). Sentinel-1 assets must
be local and in dB: archives hold linear power.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from dsengine.corpus.build.pairing import canonical_band
from dsengine.corpus.build.radiometry import S2_NODATA, S2_STORED
from dsengine.corpus.build.raster import Radiometry
from dsengine.corpus.build.stac.items import s2_numbers
from dsengine.corpus.build.stac.providers import PRESETS
from dsengine.corpus.schema import S2_BANDS, Contract
from dsengine.errors import UsageError
from dsengine.export.bands import Channel
from dsengine.export.numbers import radiometries
from dsengine.export.remote import RemoteFile
from dsengine.export.scene import Scene, make_scene, placed

MAX_ITEM_BYTES = 16 << 20
_PICTURES = {"visual", "overview", "thumbnail"}  # roles of assets that show bands and are no measurement


def item_scene(path: Path, contract: Contract, *, s2_offset: str) -> Scene:
    """The scene that the item in `path` describes. UsageError for a file that is no item, lacks a band, or has assets that cannot be read."""
    item = _read(path)
    found = _assets(item, [band.name for band in contract.bands])
    channels = {band: Channel(placed(_located(path, asset, band)), index) for band, (asset, index) in found.items()}
    name = str(item.get("id", path.stem))
    optical = {band: asset for band, (asset, _) in found.items() if band in S2_BANDS}
    if not optical or len(channels) < len(contract.bands):  # a lack is what make_scene says
        return make_scene(name, channels, contract, s2_offset=s2_offset)
    decision, scale = s2_numbers(item, list(optical.values()), s2_offset)
    if decision.offset is None:
        raise UsageError(f"--s2-offset auto cannot tell for {path}: {decision.reason}; legal: 0 or -1000")
    radiometry, facts = radiometries({b: c for b, c in channels.items() if b not in optical}, contract, s2_offset=s2_offset)
    gain = 1.0 if np.isclose(scale / S2_STORED, 1.0, rtol=1e-9) else scale / S2_STORED
    for band in optical:
        nodata = channels[band].info.nodata
        radiometry[band] = Radiometry(gain, 0.0, float(decision.offset), S2_NODATA if nodata is None else nodata)
    facts |= {"item": name, "s2_offset": decision.offset, "s2_offset_reason": decision.reason}
    return make_scene(name, channels, contract, s2_offset=s2_offset, stated=(radiometry, facts))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_ITEM_BYTES:
            raise UsageError(f"--raster {path}: larger than {MAX_ITEM_BYTES} bytes, so it is no STAC item")
        item = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"--raster {path}: cannot be read as JSON: {error}") from error
    parts = item if isinstance(item, dict) else {}
    if not all(isinstance(parts.get(key), dict) for key in ("properties", "assets")):
        raise UsageError(f"--raster {path}: not a STAC item; legal: one with properties and assets")
    return item


def _assets(item: Mapping[str, Any], legal: list[str]) -> dict[str, tuple[dict[str, Any], int]]:
    """Band -> asset and channel in it (from 1): by the keys of a known archive, else by key, else by the bands that an asset states."""
    assets = {key: asset for key, asset in item["assets"].items() if isinstance(asset, dict) and isinstance(asset.get("href"), str)}
    known = [c.assets for preset in PRESETS.values() for c in (preset.s2, preset.s1) if c]
    known.sort(key=lambda mapping: len(set(mapping.values()) & set(assets)))  # where archives differ, the one that has most of the keys
    found = {band: (assets[key], 1) for mapping in known for band, key in mapping.items() if band in legal and key in assets}
    for key, asset in assets.items():
        if canonical_band(key) in legal:
            found.setdefault(canonical_band(key), (asset, 1))
        if _PICTURES.isdisjoint(asset.get("roles") or ()) and key not in _PICTURES:
            for index, name in enumerate(_stated(asset), start=1):
                if name in legal:
                    found.setdefault(name, (asset, index))
    return found


def _stated(asset: Mapping[str, Any]) -> list[str]:
    """Names of the bands of an asset, by extension eo or STAC 1.1."""
    bands = asset.get("eo:bands") or asset.get("bands") or []
    return [canonical_band(str(band.get("name", ""))) for band in bands if isinstance(band, dict)]


def _located(path: Path, asset: Mapping[str, Any], band: str) -> Path | RemoteFile:
    """Where an asset lies. UsageError for what is neither local nor, for Sentinel-2, behind http(s)."""
    parts = urlsplit(asset["href"])
    if parts.scheme in ("http", "https") and band in S2_BANDS:
        return RemoteFile(asset["href"])
    if parts.scheme not in ("", "file"):
        raise UsageError(f"--raster {path}: asset {RemoteFile(asset['href'])} of band {band}; legal: local files, and http(s) for Sentinel-2 bands "
                         "(or build a corpus with `dsengine corpus build --source stac`)")
    return path.parent / unquote(parts.path if parts.scheme else asset["href"])
