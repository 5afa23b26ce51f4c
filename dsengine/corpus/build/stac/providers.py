"""What differs between STAC archives: addresses, names of collections and assets, units, and how URLs are signed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dsengine.corpus.schema import S1_BANDS, S2_BANDS
from dsengine.errors import UsageError, nearest

MAX_FILE_BYTES = 1 << 20
_BANDS = {"s2": S2_BANDS, "s1": S1_BANDS}


@dataclass(frozen=True, kw_only=True)
class Signing:
    """How an asset's URL becomes one that the store answers."""

    kind: str = "none"  # none; sas: append a token that `url`/account/container hands out
    url: str = ""
    hosts: tuple[str, ...] = ()  # only these hosts, or hosts that end in them, are given a token

    def __post_init__(self) -> None:
        if self.kind not in ("none", "sas") or (self.kind == "sas" and not (self.url and self.hosts)):
            raise UsageError(f"sign: kind {self.kind!r}; legal: none, or sas with url and hosts")


@dataclass(frozen=True, kw_only=True)
class Collection:
    """One sensor's collection."""

    collection: str
    assets: Mapping[str, str]  # band -> asset key
    scl: str = ""  # asset key of the scene classification; Sentinel-2 only
    units: str = ""  # of Sentinel-1: linear (power) or dB


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A STAC API and what of it is used."""

    name: str
    api: str
    s2: Collection | None = None
    s1: Collection | None = None
    sign: Signing = field(default_factory=Signing)
    s3: Mapping[str, str] = field(default_factory=dict)  # GDAL options for s3:// assets; keys come from the AWS_* environment

    def collection(self, sensor: str) -> Collection:
        """UsageError when this archive has none."""
        found = {"s2": self.s2, "s1": self.s1}[sensor]
        if found is None:
            flag = {"s2": "--provider", "s1": "--s1-provider"}[sensor]
            raise UsageError(f"provider {self.name} has no {_WHAT[sensor]} collection; give {flag} one that has, such as planetary_computer, or "
                             f"--sensors without {sensor}")
        return found


_WHAT = {"s2": "Sentinel-2 L2A", "s1": "Sentinel-1 RTC"}
_PLAIN = {band: band for band in S2_BANDS}
_COMMON = dict(zip(S2_BANDS, ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16", "swir22"),
                   strict=True))
_RESOLUTION = {band: {"B01": 60, "B09": 60, "B02": 10, "B03": 10, "B04": 10, "B08": 10}.get(band, 20) for band in S2_BANDS}
PRESETS = {
    "planetary_computer": Provider(
        name="planetary_computer", api="https://planetarycomputer.microsoft.com/api/stac/v1",
        s2=Collection(collection="sentinel-2-l2a", assets=_PLAIN, scl="SCL"),
        s1=Collection(collection="sentinel-1-rtc", assets={"VV": "vv", "VH": "vh"}, units="linear"),
        sign=Signing(kind="sas", url="https://planetarycomputer.microsoft.com/api/sas/v1/token", hosts=(".blob.core.windows.net",))),
    "earth_search": Provider(
        name="earth_search", api="https://earth-search.aws.element84.com/v1",
        s2=Collection(collection="sentinel-2-c1-l2a", assets=_COMMON, scl="scl")),
    "cdse": Provider(
        name="cdse", api="https://stac.dataspace.copernicus.eu/v1",
        s2=Collection(collection="sentinel-2-l2a", assets={band: f"{band}_{metres}m" for band, metres in _RESOLUTION.items()}, scl="SCL_20m"),
        s3={"AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_HTTPS": "YES"}),
}


def load_provider(text: str, *, flag: str) -> Provider:
    """A preset by name or a YAML file with the fields of `Provider`. UsageError names the flag, the file and what is legal."""
    if text in PRESETS:
        return PRESETS[text]
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{flag} {text}: {nearest(text, PRESETS)}, or a .yaml file")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{flag} {text}: larger than {MAX_FILE_BYTES} bytes")
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{flag} {text}: cannot be read as YAML: {error}") from error
    try:
        parts = {**_mapping(content, "the file", Provider)}
        for sensor in ("s2", "s1"):
            if parts.get(sensor) is not None:
                parts[sensor] = Collection(**_mapping(parts[sensor], sensor, Collection))
                _check_assets(parts[sensor], sensor)
        if "sign" in parts:
            sign = _mapping(parts["sign"], "sign", Signing)
            parts["sign"] = Signing(**{**sign, "hosts": tuple(sign.get("hosts", ()))})
        return Provider(**{"name": path.stem, **parts})
    except (TypeError, UsageError) as error:
        raise UsageError(f"{flag} {text}: {error}") from error


def _mapping(value: Any, what: str, kind: type) -> dict[str, Any]:
    legal = [f.name for f in fields(kind)]
    if not isinstance(value, dict):
        raise UsageError(f"{what} is not a mapping; legal keys: {', '.join(legal)}")
    for key in value:
        if key not in legal:
            raise UsageError(f"{what}: key {key}: {nearest(str(key), legal)}")
    return value


def _check_assets(collection: Collection, sensor: str) -> None:
    assets = collection.assets
    if not isinstance(assets, dict) or set(assets) != set(_BANDS[sensor]) or not all(isinstance(key, str) for key in assets.values()):
        raise UsageError(f"{sensor}: assets must map each of {', '.join(_BANDS[sensor])} to an asset key")
    if sensor == "s1" and collection.units not in ("linear", "dB"):
        raise UsageError(f"s1: units {collection.units!r}; legal: linear, dB")
