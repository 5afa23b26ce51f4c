"""Corpora in S3, Google Cloud Storage and Azure through obstore; credentials, region and endpoint come from the usual environment variables.

obstore tries a request again when the connection or the server fails; what it cannot see, a body that ends early, is tried
again here. Reads run many at once, because a request costs tens of milliseconds whatever its size.
"""

import asyncio
import errno
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from dsengine.corpus.build.optional import need
from dsengine.corpus.storage import Storage, Url, storage_at

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")
CONCURRENT = 16  # requests at once
# A server that is gone is given up after about half a minute: each of the attempts here is six of obstore's, 100 ms doubling.
PAUSES_S = (1.0, 2.0, 4.0)
RETRIES = 6
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ERRNO = {"PermissionDeniedError": errno.EACCES, "UnauthenticatedError": errno.EACCES}


class Truncated(Exception):
    """A body with another number of bytes than was asked for."""


class ObjectStorage(Storage):
    """All objects below a URL. It pickles as its URL alone."""

    local = False

    def __init__(self, url: Url) -> None:
        self.path: Url = url
        self._obstore = need("obstore", "object")
        self._store = self._open(url)
        # Threads start when they are first needed and end with this object.
        self._pool = ThreadPoolExecutor(CONCURRENT, thread_name_prefix="dsengine-object")

    def __reduce__(self) -> tuple[Any, ...]:
        return storage_at, (str(self.path),)

    def get(self, key: str) -> bytes:
        return self._try(key, lambda: self._body(key, {})[0])

    def get_range(self, key: str, *, start: int, size: int) -> bytes:
        if not size:
            return b""
        return self._try(key, lambda: self._body(key, {"range": (start, start + size)})[0])

    def get_tail(self, key: str, *, size: int) -> tuple[bytes, int]:
        try:
            return self._try(key, lambda: self._body(key, {"range": {"suffix": size}}))
        except self._obstore.exceptions.NotSupportedError:  # Azure has no suffix ranges
            total = self._try(key, lambda: self._obstore.head(self._store, key)["size"])
            return self.get_range(key, start=max(0, total - size), size=min(size, total)), total

    def put(self, key: str, parts: Sequence[bytes]) -> None:
        self._try(key, lambda: self._obstore.put(self._store, key, b"".join(parts)))

    def exists(self, key: str) -> bool:
        try:
            self._try(key, lambda: self._obstore.head(self._store, key))
        except FileNotFoundError:
            return False
        return True

    def keys(self, prefix: str = "") -> Iterator[str]:
        return (found["path"] for found in self._listed(prefix))

    def sizes(self, prefix: str = "") -> Iterator[int]:
        return (found["size"] for found in self._listed(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        self.concurrently(self._delete, keys)

    def concurrently(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self._pool.map(work, items))

    def zarr_store(self) -> "Store":
        return _ZarrStore(self._store, read_only=True)

    def _open(self, url: Url) -> Any:
        options = {"connect_timeout": "10 s", "read_timeout": "30 s", "timeout": "10 min"}
        if any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS):
            options["allow_http"] = True  # the user wrote http://, as for a server on the own machine
        retry = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=60),
                 "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2}}
        try:
            return self._obstore.store.from_url(str(url), client_options=options, retry_config=retry)
        except self._obstore.exceptions.BaseError as error:
            raise _plain(error, str(url)) from None

    def _body(self, key: str, options: dict[str, Any]) -> tuple[bytes, int]:
        """The bytes asked for and the size of the whole object."""
        found = self._obstore.get(self._store, key, options=options)
        (start, stop), total = found.range, found.meta["size"]
        body = bytes(found.bytes())
        if len(body) != stop - start:
            raise Truncated(f"{len(body)} of {stop - start} bytes came")
        return body, total

    def _delete(self, key: str) -> None:
        try:
            self._try(key, lambda: self._obstore.delete(self._store, key))
        except FileNotFoundError:
            pass

    def _listed(self, prefix: str) -> list[dict[str, Any]]:
        return self._try(prefix, lambda: [found for batch in self._obstore.list(self._store, prefix=prefix or None) for found in batch])

    def _try(self, key: str, work: Callable[[], T]) -> T:
        for pause_s in (*PAUSES_S, None):
            try:
                return work()
            except self._obstore.exceptions.NotSupportedError:
                raise
            except (FileNotFoundError, self._obstore.exceptions.BaseError, Truncated) as error:
                if pause_s is None or not _transient(error):
                    raise _plain(error, str(self.path / key)) from None
                time.sleep(pause_s)
        raise AssertionError("unreachable")


class _ZarrStore(ObjectStore):
    """zarr-python's store with this module's patience and errors."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        for pause_s in (*PAUSES_S, None):
            try:
                return await super().get(key, prototype, byte_range)
            except Exception as error:
                if not _is_obstore(error):
                    raise
                if pause_s is None or not _transient(error):
                    raise _plain(error, key) from None
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        try:
            async for name in super().list_dir(prefix):
                yield name
        except Exception as error:
            if not _is_obstore(error):
                raise
            raise _plain(error, prefix) from None


def _is_obstore(error: Exception) -> bool:
    return type(error).__module__.startswith("obstore")


def _transient(error: Exception) -> bool:
    """Whether another attempt may succeed: everything that obstore has no name for, but for what a server refused by name."""
    if isinstance(error, Truncated):
        return True
    refused = re.search(r"status code: 4(?!08|29)\d\d", str(error))
    return type(error).__name__ == "GenericError" and not refused


def _plain(error: Exception, where: str) -> OSError:
    """One line without the body of the answer, which may name the key's owner, and without queries of URLs, which may hold signatures."""
    text = str(error)
    named = re.search(r"<Code>(\w+)</Code>", text)
    code = named[1] if named else ""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object" if code in ("", "NoSuchKey", "BlobNotFound") else code, where)
    if status := re.search(r"status code: (\d+(?: [A-Z]\w*)*)", text):
        line = f"the server answers {status[1]}" + (f" ({code})" if code else "")
    else:
        line = re.sub(r"\?[^\s)]*", "", text.partition("\n")[0].partition("<")[0]).rstrip(" :")
    return OSError(_ERRNO.get(type(error).__name__, errno.EIO), line, where)
