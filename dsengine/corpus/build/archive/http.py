"""HTTP requests that wait and try again, end in bounded time and memory, and never let a URL's query string into a message or a log."""

import json
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from dsengine.corpus.build.optional import need
from dsengine.errors import RunError

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # status codes that a later try may not meet
MAX_JSON_BYTES = 64 << 20
_PIECE = 1 << 16
Answer = TypeVar("Answer")


class Unreachable(RunError):
    """Every try failed, in a way that another day may not."""


class Refused(RunError):
    """The server answered, and will answer the same again: not found, not allowed, not what was asked for."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Broken(Exception):
    """An answer that is not whole; raised by `accept` functions so that the request is made again."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on trying."""

    tries: int = 6
    backoff_s: float = 1.0  # after the first failure; doubles with each further one
    longest_s: float = 60.0  # between two tries, whatever Retry-After says
    timeout_s: float = 60.0  # for one request, from connecting to the last byte


class Reply(NamedTuple):
    """A complete answer with a status below 300."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def clean(url: str) -> str:
    """A URL without query, fragment, user name and password: what may be shown and stored."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path


def _without_query(record: logging.LogRecord) -> bool:
    """urllib3 logs whole URLs at level DEBUG, and tokens travel in them."""
    if isinstance(record.args, tuple):
        record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
    return True


class Http:
    """A pool of connections for threads of one process; close it, or use it in a `with`. `extra` is the extra that brings `requests`."""

    def __init__(self, patience: Patience, *, at_once: int = 8, extra: str = "stac") -> None:
        requests = need("requests", extra)
        self.patience = patience
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_connections=at_once, pool_maxsize=at_once, max_retries=0)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._failures = (requests.exceptions.RequestException, need("urllib3", extra).exceptions.HTTPError, OSError)
        for name in ("urllib3.connectionpool", "urllib3.util.retry"):
            logging.getLogger(name).addFilter(_without_query)

    def __enter__(self) -> "Http":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._session.close()

    def fetch(self, url: str, accept: Callable[[Reply], Answer], *, method: str = "GET", headers: Mapping[str, str] | None = None,
              body: Any = None, max_bytes: int = MAX_JSON_BYTES) -> Answer:
        """What `accept` makes of the reply. `body` is sent as JSON.

        Tries again after connection faults, slow or short answers, `Broken` from `accept`, and the status codes in AGAIN, waiting as long
        as Retry-After asks. Raises Unreachable when all tries fail, Refused for any other status or more than `max_bytes`.
        """
        reason = ""
        for attempt in range(self.patience.tries):
            wait = self.patience.backoff_s * 2.0**attempt
            try:
                reply = self._once(url, method=method, headers=headers, body=body, max_bytes=max_bytes)
                if reply.status not in AGAIN:
                    return accept(reply)
                reason, wait = f"status {reply.status}", max(wait, _retry_after(reply.headers))
            except Broken as error:
                reason = str(error)
            except self._failures as error:
                reason = type(error).__name__  # its text would hold the URL
            if attempt + 1 < self.patience.tries:
                # Threads that failed together spread out; by the URL, so that nothing random is needed.
                time.sleep(min(wait, self.patience.longest_s) * (1.0 - 0.25 * (zlib.crc32(f"{url} {attempt}".encode()) / 2**32)))
        raise Unreachable(f"{clean(url)}: {reason}, after {self.patience.tries} tries")

    def json(self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: Any = None) -> Any:
        """The JSON of a reply; what does not parse is asked for again."""
        return self.fetch(url, _parse_json, method=method, headers=headers, body=body)

    def _once(self, url: str, *, method: str, headers: Mapping[str, str] | None, body: Any, max_bytes: int) -> Reply:
        end = time.monotonic() + self.patience.timeout_s
        timeout = (min(10.0, self.patience.timeout_s), min(30.0, self.patience.timeout_s))
        content = None if body is None else json.dumps(body).encode()
        sent = {**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
        with self._session.request(method, url, data=content, headers=sent, timeout=timeout, stream=True) as response:
            status, pieces, size = response.status_code, [], 0
            if status >= 300 and status not in AGAIN:
                raise Refused(f"{clean(url)}: status {status}", status=status)
            while piece := response.raw.read1(_PIECE, decode_content=True):  # read1: a trickle must not hide the clock
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    raise Refused(f"{clean(url)}: more than {max_bytes} bytes")
                if time.monotonic() > end:
                    raise Broken(f"not complete after {self.patience.timeout_s:g} s")
            stated = response.headers.get("Content-Length")
            if stated and "Content-Encoding" not in response.headers and stated.isdigit() and int(stated) != size:
                raise Broken(f"{size} of {stated} bytes")
            return Reply(status, response.headers, b"".join(pieces))


def _parse_json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        raise Broken(f"no JSON, {len(reply.body)} bytes") from error


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: a number or a date; 0 when it does not say."""
    text = headers.get("Retry-After", "").strip()
    try:
        return float(text) if text[:1].isdigit() else max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
