"""A fake of Earth Engine's REST interface: tokens, lists of assets, pixels of the archive's imagery; it notes every request."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import rasterio

PAGE = 2  # assets a page, whatever is asked
TOKENS = ("ya29.FIRSTSECRET", "ya29.SECONDSECRET")


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: Any
    headers: dict[str, str]


class EarthEngine:
    """Holds assets made from STAC items. `change(bytes) -> bytes` may damage what pixels are answered."""

    def __init__(self, folder: Path, items: list[dict[str, Any]]) -> None:
        self.folder, self.assets = folder, [_asset(item) for item in items]
        self.asked: list[Asked] = []
        self.tokens = 0  # given out
        self.valid = 1  # tokens up to this number are refused with 401 while smaller than the number given out
        self.change: Callable[[bytes], bytes] = bytes
        self.lock = threading.Lock()

    def listed(self, parent: str, asked: dict[str, list[str]]) -> dict[str, Any]:
        """A page of all assets of a collection; the caller filters by time and place itself."""
        mine = [asset for asset in self.assets if asset["name"].startswith(f"{parent}/")]
        at = int(asked.get("pageToken", ["0"])[0])
        return {"assets": mine[at:at + PAGE], **({"nextPageToken": str(at + PAGE)} if at + PAGE < len(mine) else {})}

    def pixels(self, name: str, body: dict[str, Any]) -> bytes:
        """A .npy file of one record a pixel."""
        t, size = body["grid"]["affineTransform"], body["grid"]["dimensions"]
        bounds = (t["translateX"], t["translateY"] + t["scaleY"] * size["height"], t["translateX"] + t["scaleX"] * size["width"], t["translateY"])
        planes = {}
        for band in body["bandIds"]:
            with rasterio.open(self.folder / "_".join(name.split("_")[-4:]) / f"{_file(band)}.tif") as file:
                assert file.crs.to_epsg() == int(body["grid"]["crsCode"][5:]) and file.transform.a == t["scaleX"]
                plane = file.read(1, window=rasterio.windows.from_bounds(*bounds, file.transform))
            planes[band] = np.where(plane > 0, 10 * np.log10(np.maximum(plane, 1e-9)), -9999).astype(np.float32) if band in ("VV", "VH") else plane
        out = np.empty((size["height"], size["width"]), [(band, plane.dtype) for band, plane in planes.items()])
        for band, plane in planes.items():
            out[band] = plane
        buffer = io.BytesIO()
        np.save(buffer, out)
        return self.change(buffer.getvalue())


def _file(band: str) -> str:
    return f"B0{band[1]}" if len(band) == 2 and band[0] == "B" else band


def _asset(item: dict[str, Any]) -> dict[str, Any]:
    properties, s2 = item["properties"], item["collection"] == "sentinel-2-l2a"
    name = f"projects/earthengine-public/assets/COPERNICUS/{'S2_SR_HARMONIZED' if s2 else 'S1_GRD'}/{item['id'].removesuffix('_rtc')}"
    time = properties.get("start_datetime", properties["datetime"]).replace("+00:00", "Z")
    asset = {"type": "IMAGE", "name": name, "id": name.removeprefix("projects/earthengine-public/assets/"), "startTime": time, "endTime": time}
    if not s2:
        ring = item["geometry"]["coordinates"][0]
        return {**asset, "geometry": {"type": "LinearRing", "coordinates": ring}, "properties": {
            "instrumentMode": "IW", "transmitterReceiverPolarisation": ["VV", "VH"], "orbitProperties_pass": properties["sat:orbit_state"].upper()}}
    t, shape = item["assets"]["B02"]["proj:transform"], item["assets"]["B02"]["proj:shape"]
    grid = {"crsCode": f"EPSG:{properties['proj:epsg']}", "dimensions": {"width": shape[1], "height": shape[0]},
            "affineTransform": {"scaleX": t[0], "translateX": t[2], "scaleY": t[4], "translateY": t[5]}}
    return {**asset, "geometry": item["geometry"], "bands": [{"id": "B1"}, {"id": "B2", "grid": grid}], "properties": {
        "CLOUDY_PIXEL_PERCENTAGE": properties["eo:cloud_cover"], "MGRS_TILE": properties["s2:mgrs_tile"],
        "PROCESSING_BASELINE": properties["s2:processing_baseline"]}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its head to be acknowledged
    engine: EarthEngine

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer("GET", None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer("POST", raw if self.path == "/token" else json.loads(raw))

    def _answer(self, method: str, body: Any) -> None:
        parts = urlsplit(self.path)
        path, engine = unquote(parts.path), self.engine
        with engine.lock:
            engine.asked.append(Asked(method, path, parse_qs(parts.query), body, dict(self.headers)))
            if path == "/token":
                engine.tokens += 1
                return self._send(200, json.dumps({"access_token": TOKENS[min(engine.tokens, 2) - 1], "expires_in": 3600, "token_type": "Bearer"}).encode())
        if self.headers["Authorization"] not in [f"Bearer {token}" for token in TOKENS[engine.valid - 1:]]:
            return self._send(401, b"{}")
        if path.endswith(":listAssets"):
            return self._send(200, json.dumps(engine.listed(path.removeprefix("/v1/").removesuffix(":listAssets"), parse_qs(parts.query))).encode())
        name = path.removesuffix(":getPixels") if path.endswith(":getPixels") else \
            body["expression"]["values"]["0"]["functionInvocationValue"]["arguments"]["input"]["functionInvocationValue"]["arguments"]["id"]["constantValue"]
        self._send(200, engine.pixels(name, body))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(engine: EarthEngine) -> Iterator[str]:
    """The server's address while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"engine": engine}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
