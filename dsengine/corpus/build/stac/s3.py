"""Rasters in an S3 bucket, GeoTIFF or JPEG 2000, read by GDAL: it signs each request with the keys in the AWS_* environment variables.

Used for archives that hand out s3:// addresses, such as CDSE's JPEG 2000 files.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np
import rasterio
from rasterio.windows import Window

from dsengine.corpus.build.archive.http import Patience, Refused, Unreachable

Result = TypeVar("Result")


class S3Raster:
    """One raster behind an s3:// address, with `window` and `file` as `RemoteRaster` has them. `options` are GDAL's, such as AWS_S3_ENDPOINT."""

    def __init__(self, url: str, options: Mapping[str, str], patience: Patience) -> None:
        parts = urlsplit(url)
        self._url, self._patience, self._opened = url, patience, ExitStack()
        self._path = f"/vsis3/{parts.netloc}{parts.path}"
        # No driver of GDAL's choice: some formats can name further files to read.
        self._driver = "JP2OpenJPEG" if parts.path.lower().endswith(".jp2") else "GTiff"
        seconds = f"{patience.timeout_s:g}"
        self._options = {
            **options, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MAX_RETRY": str(patience.tries - 1),
            "GDAL_HTTP_RETRY_DELAY": f"{patience.backoff_s:g}", "GDAL_HTTP_TIMEOUT": seconds, "GDAL_HTTP_CONNECTTIMEOUT": "10",
            "CPL_VSIL_CURL_NON_CACHED": self._path}  # GDAL would remember for good that a file could not be opened

    def __enter__(self) -> "S3Raster":
        self._again(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def window(self, window: Window) -> np.ndarray:
        """(H, W) numbers of band 1 in a window that lies within the raster."""
        return self._again(lambda: self.file.read(1, window=window))

    def _open(self) -> None:
        self._opened.close()
        self._opened.enter_context(rasterio.Env(**self._options))
        self.file = self._opened.enter_context(rasterio.open(self._path, driver=self._driver))

    def _again(self, act: Callable[[], Result]) -> Result:
        """What `act` returns; after a fault the file is opened again. Refused where GDAL says that it is missing or not allowed."""
        for attempt in range(self._patience.tries):
            try:
                if attempt and act != self._open:
                    self._open()
                return act()
            except rasterio.errors.RasterioIOError as error:
                fault = self._fault(str(error))
            if isinstance(fault, Refused) or attempt == self._patience.tries - 1:
                self._opened.close()
                raise fault
            time.sleep(min(self._patience.backoff_s * 2.0**attempt, self._patience.longest_s))
        raise AssertionError("unreachable: the last try returns or raises")

    def _fault(self, text: str) -> Refused | Unreachable:
        lower = text.lower()
        if any(word in lower for word in ("does not exist", "no such", "404")):
            return Refused(f"{self._url}: {text}", status=404)
        if any(word in lower for word in ("403", "denied", "credentials", "accesskey", "access_key", "signature")):
            return Refused(f"{self._url}: {text}; keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", status=403)
        return Unreachable(f"{self._url}: {text}, after {self._patience.tries} tries")
