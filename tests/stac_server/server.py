"""The HTTP server: landing page, paged POST search, ranges of files, tokens; and faults planted by the request's number."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import shapely

PAGE = 3  # items a page, so that searches have several


class Archive:
    """What the server holds, what it was asked, and how it fails: `fault(number, path)` names what happens to a request, or ''."""

    def __init__(self, folder: Path, items: list[dict[str, Any]], *, fault: Callable[[int, str], str] = lambda number, path: "") -> None:
        self.folder, self.items, self.fault = folder, items, fault
        self.token = ""  # when set, files need `?` + it
        self.requests: list[tuple[str, str]] = []  # method and path with query
        self.root = ""
        self._lock = threading.Lock()

    def number(self, method: str, path: str) -> int:
        """Note a request; its number."""
        with self._lock:
            self.requests.append((method, path))
            return len(self.requests)

    def page(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One page of a search, with the `next` link of the item search specification."""
        start, end = asked["datetime"].split("/")
        point = shapely.geometry.shape(asked["intersects"])
        found = [item for item in self.items if item["collection"] in asked["collections"] and start <= item["properties"]["datetime"] <= end
                 and shapely.geometry.shape(item["geometry"]).intersects(point)]
        at = int(asked.get("token", 0))
        links = [{"rel": "next", "method": "POST", "href": f"{self.root}/search", "body": {**asked, "token": at + PAGE}}] if at + PAGE < len(found) else []
        text = json.dumps({"type": "FeatureCollection", "features": found[at:at + PAGE], "links": links})
        return json.loads(text.replace("{root}", self.root + "/files"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its head to be acknowledged
    archive: Archive

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        fault = self._planted("GET")
        path, _, query = self.path.partition("?")
        if fault is None:
            return
        if path == "/":
            root = self.archive.root
            self._json({"type": "Catalog", "stac_version": "1.0.0", "id": "loopback", "description": "test", "conformsTo": [
                "https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
                "links": [{"rel": "root", "href": root + "/"}, {"rel": "search", "href": f"{root}/search", "type": "application/geo+json", "method": "POST"}]}, fault)
        elif path.startswith("/token/"):
            self._json({"msft:expiry": "2099-01-01T00:00:00Z", "token": self.archive.token}, fault)
        elif self.archive.token and query != self.archive.token:
            self._send(403, b"signature")
        else:
            self._file(self.archive.folder / path.removeprefix("/files/"), fault)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self._planted("POST")
        if fault is not None:
            self._json(self.archive.page(asked), fault)

    def _planted(self, method: str) -> str | None:
        fault = self.archive.fault(self.archive.number(method, self.path), self.path)
        if fault == "429":
            self._send(429, b"slow down", {"Retry-After": "0"})
        elif fault in ("404", "500", "503"):
            self._send(int(fault), b"no")
        else:
            return fault
        return None

    def _json(self, value: Any, fault: str) -> None:
        self._send(200, json.dumps(value).encode(), fault=fault)

    def _file(self, path: Path, fault: str) -> None:
        if not path.is_file():
            return self._send(404, b"no such file")
        data = path.read_bytes()
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        part = data[int(first):int(last) + 1]
        if fault == "damaged":
            part = bytes(len(part))
        self._send(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"}, fault=fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, fault: str = "") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            if fault == "truncated":
                self.wfile.write(body[:len(body) // 2])
                self.close_connection = True
            elif fault == "slow":
                for byte in body[:200]:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.02)
                self.close_connection = True
            else:
                self.wfile.write(body)
        except OSError:
            self.close_connection = True


@contextmanager
def serving(archive: Archive) -> Iterator[str]:
    """The server's address while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"archive": archive}))
    server.daemon_threads = True
    archive.root = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield archive.root
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
