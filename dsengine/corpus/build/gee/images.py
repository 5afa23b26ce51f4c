"""Scenes that Earth Engine lists at a place and time."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from dsengine.corpus.build import utm
from dsengine.corpus.build.archive.http import Http, Refused, clean
from dsengine.corpus.build.archive.scenes import Scene
from dsengine.corpus.build.dates import Window, to_iso, to_ns
from dsengine.corpus.build.gee.access import Access
from dsengine.corpus.build.plan import Grid
from dsengine.errors import RunError

API = "https://earthengine.googleapis.com"
COLLECTIONS = {"s2": "COPERNICUS/S2_SR_HARMONIZED", "s1": "COPERNICUS/S1_GRD"}
PUBLIC = "projects/earthengine-public/assets/"
PAGE, MAX_PAGES = 100, 20
_MINUTE_NS = 60 * 10**9


def request(http: Http, access: Access, url: str, *, body: Any = None, accept: Any = None, max_bytes: int = 1 << 26) -> Any:
    """JSON, or what `accept` makes of the reply; POST when there is a body. A token that was refused is renewed once."""
    for renew in (False, True):
        try:
            if accept is None:
                return http.json(url, method="GET" if body is None else "POST", headers=access.headers(renew), body=body)
            return http.fetch(url, accept, method="POST", headers=access.headers(renew), body=body, max_bytes=max_bytes)
        except Refused as error:
            if renew or error.status != 401:
                raise
    raise AssertionError("unreachable: the second try returns or raises")


class Finder:
    """`find` of scenes.decide."""

    def __init__(self, http: Http, access: Access, *, api: str, max_cloud: float, orbit: str) -> None:
        self._http, self._access, self._api = http, access, api.rstrip("/")
        self._max_cloud, self._orbit = max_cloud, orbit

    def __call__(self, sensor: str, grid: Grid, window: Window) -> Sequence[Scene]:
        """All scenes of a sensor over the middle of the patch that begin in the window."""
        lon, lat = utm.centre(grid)
        # The list is by the end of an image, which is seconds after its begin.
        asked = {"pageSize": PAGE, "view": "FULL", "filter": (
            f'startTime >= "{to_iso(window.start)}" AND endTime < "{to_iso(window.end + _MINUTE_NS)}" AND '
            f"intersects(\"{{'type': 'Point', 'coordinates': [{lon!r}, {lat!r}]}}\")")}
        found: list[Scene] = []
        for _ in range(MAX_PAGES):
            url = f"{self._api}/v1/{PUBLIC}{COLLECTIONS[sensor]}:listAssets?{urlencode(asked)}"
            page = request(self._http, self._access, url)
            if not isinstance(page, dict):
                raise RunError(f"{clean(url)}: the answer is no list of images")
            found += [s for asset in page.get("assets", []) if (s := scene(asset, sensor, max_cloud=self._max_cloud, orbit=self._orbit)) is not None]
            if not page.get("nextPageToken"):
                break
            asked["pageToken"] = str(page["nextPageToken"])
        return found


def scene(asset: Mapping[str, Any], sensor: str, *, max_cloud: float, orbit: str) -> Scene | None:
    """An asset as a scene; None for what is no image of the public catalogue with a time."""
    try:
        name, properties = str(asset["name"]), dict(asset.get("properties", {}))
        if not name.startswith(f"{PUBLIC}{COLLECTIONS[sensor]}/") or any(part in ("", ".", "..") for part in name.split("/")):
            return None
        time = to_ns(_microseconds(asset["startTime"]))
        last = name.rpartition("/")[2]
        payload: dict[str, Any] = {"name": name, "collection": COLLECTIONS[sensor]}
        if sensor == "s1":
            unfit = _unfit_s1(properties, orbit)
            payload["orbit"] = str(properties.get("orbitProperties_pass", "")).lower()
            return Scene(last, time, _footprint(asset), (last,), (last,), payload, None, unfit)
        cloud = properties.get("CLOUDY_PIXEL_PERCENTAGE")
        unfit = "states no cloud cover" if cloud is None and max_cloud < 100 else \
            f"cloud cover above {max_cloud:g} %" if cloud is not None and float(cloud) > max_cloud else ""
        version = (str(properties.get("PROCESSING_BASELINE", "")), str(properties.get("GENERATION_TIME", "")))
        return Scene(last, time, _footprint(asset), (str(properties.get("MGRS_TILE", last)), str(time // 10**9)), version, payload, _tile(asset), unfit)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _footprint(asset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The geometry; Earth Engine gives that of Sentinel-1 as the ring around it."""
    shape = asset.get("geometry") or asset.get("properties", {}).get("system:footprint") or {}
    shape = json.loads(shape) if isinstance(shape, str) else shape
    return {"type": "Polygon", "coordinates": [shape["coordinates"]]} if shape.get("type") in ("LinearRing", "LineString") else shape


def _unfit_s1(properties: Mapping[str, Any], orbit: str) -> str:
    if properties.get("instrumentMode", "IW") != "IW":
        return "is not of mode IW"
    if not {"VV", "VH"} <= set(properties.get("transmitterReceiverPolarisation", ("VV", "VH"))):
        return "lacks VV or VH"
    passed = str(properties.get("orbitProperties_pass", "")).lower()
    return f"is not from an {orbit} orbit" if orbit != "any" and passed != orbit else ""


def _tile(asset: Mapping[str, Any]) -> tuple[int, float, float, float, float] | None:
    """EPSG and bounds of band B2's raster."""
    grid = next((band["grid"] for band in asset.get("bands", []) if band.get("id") == "B2" and "grid" in band), None)
    if grid is None or not str(grid.get("crsCode", "")).startswith("EPSG:"):
        return None
    t, size = grid["affineTransform"], grid["dimensions"]
    left, top = float(t["translateX"]), float(t["translateY"])
    return int(grid["crsCode"][5:]), left, top + t["scaleY"] * size["height"], left + t["scaleX"] * size["width"], top


def _microseconds(text: str) -> str:
    """RFC 3339 with at most the six digits of seconds that Python takes."""
    head, dot, tail = str(text).partition(".")
    digits = tail.rstrip("Zz")
    return f"{head}.{digits[:6].ljust(6, '0')}Z" if dot and digits.isdigit() else text
