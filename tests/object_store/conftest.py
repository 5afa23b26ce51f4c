"""An S3 server on loopback, and a proxy before it that fails as real ones do."""

import http.client
import logging
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SECRET = "s3cr3t-key-that-must-not-show"
ACCESS = "AKIDTHATMUSTNOTSHOW"


class FaultyProxy(ThreadingHTTPServer):
    """Forwards to the S3 server; while `faults` is not empty, each request whose path holds `only` takes one of it instead.

    A fault is a status (answered at once), "drop" (the connection closes), "truncate" (the body ends half way), "shorten" (half the
    body with headers to match) or "pass".
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.faults: deque[int | str] = deque()
        self.only = ""
        self.methods: tuple[str, ...] = ("GET", "PUT", "HEAD", "POST", "DELETE")
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.lock = threading.Lock()

    def take(self, method: str, path: str) -> int | str:
        with self.lock:
            if self.faults and self.only in path and method in self.methods:
                return self.faults.popleft()
            return "pass"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms for the first to be acknowledged

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        fault = self.server.take(self.command, self.path)
        if fault == "drop":
            self.close_connection = True
            return
        if isinstance(fault, int):
            self._answer(fault, [], b"<Error><Code>Injected</Code></Error>", b"")
            return
        upstream = http.client.HTTPConnection(self.server.target, timeout=20)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        upstream.request(self.command, self.path, body=body, headers=headers)
        answer = upstream.getresponse()
        data = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server")]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        upstream.close()
        sent = data[:len(data) // 2] if fault in ("truncate", "shorten") else data
        self._answer(answer.status, kept, data if fault == "truncate" else sent, sent, length=length)
        self.close_connection = fault == "truncate"

    def _answer(self, status: int, headers: list[tuple[str, str]], declared: bytes, sent: bytes, *, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(declared if sent or status < 400 else b"")))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is not a log."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """host:port of an S3 server with the bucket `bucket`."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("obstore")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", aws_access_key_id="x",
                 aws_secret_access_key="x").create_bucket(Bucket="bucket")
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The proxy that S3 clients of this test and of its child processes use; tries are a few milliseconds apart."""
    with FaultyProxy(s3_server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.server_address))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setattr("dsengine.corpus.objects.PAUSES_S", (0.01, 0.01, 0.01))
        monkeypatch.setattr("dsengine.corpus.objects.RETRIES", 2)
        yield server
        server.shutdown()


@pytest.fixture
def url(proxy: FaultyProxy, request: pytest.FixtureRequest) -> str:
    """An S3 URL of this test's own."""
    name = "".join(c if c.isalnum() else "-" for c in f"{request.path.stem} {request.node.name}")
    return f"s3://bucket/{name}/corpus"
