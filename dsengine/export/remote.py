"""Assets of a STAC item that lie behind http(s) URLs, with the face of a local raster: a header, and windows of the one band.

Requests, retries, checks and signing are those of `corpus build --source stac`. What was fetched lies in memory, so a file is opened
anew after REOPEN_PIXELS, and its header is fetched again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import numpy as np
from rasterio.windows import Window

from dsengine.corpus.build.archive.cog import RemoteRaster
from dsengine.corpus.build.archive.http import Http, Patience, clean
from dsengine.corpus.build.raster import RasterInfo
from dsengine.corpus.build.stac.providers import PRESETS, Signing
from dsengine.corpus.build.stac.signing import Signer
from dsengine.errors import RunError, UsageError

REOPEN_PIXELS = 1 << 26  # read since a file was opened; at most about 128 MB of blocks
AT_ONCE = 4  # requests


@dataclass(frozen=True, order=True)
class RemoteFile:
    """A GeoTIFF of one band behind a URL; shown and compared without what may be a token in it."""

    url: str

    def __str__(self) -> str:
        return clean(self.url)

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem


class RemoteReader:
    """Windows of a RemoteFile; made by `reading`."""

    def __init__(self, place: RemoteFile, http: Http) -> None:
        self.name = str(place)
        self._place, self._http = place, http
        self._signer = Signer(http, _signing(place.url))
        self._raster: RemoteRaster | None = None
        self._read = 0
        self.info = self._open()
        self.shape = self.info.shape

    def read(self, indexes: Sequence[int], *, window: Window) -> np.ndarray:
        """(1, h, w) numbers of the one band. RunError when they cannot be fetched, or are damaged."""
        assert list(indexes) == [1], f"{self.name} has one band, asked for {indexes}"
        try:
            if self._read > REOPEN_PIXELS:
                self._open()
            self._read += window.height * window.width
            return self._raster.window(window)[None]
        except RunError as error:
            raise RunError(f"{self.name}: {error}") from error

    def _open(self) -> RasterInfo:
        self.close()
        raster = RemoteRaster(self._http, lambda renew: self._signer.sign(self._place.url, renew))
        self._raster, self._read = raster.__enter__(), 0
        file = self._raster.file
        return RasterInfo(self._place, file.count, file.dtypes[0], file.shape, file.crs, file.transform, file.nodata, file.descriptions,
                          file.scales[0], file.offsets[0], file.tags())

    def close(self) -> None:
        """Free what was fetched."""
        if self._raster is not None:
            self._raster.__exit__()
            self._raster = None


@contextmanager
def connection() -> Iterator[Http]:
    """Connections for one job."""
    with Http(Patience(), at_once=AT_ONCE) as http:
        yield http


@contextmanager
def reading(place: RemoteFile, http: Http) -> Iterator[RemoteReader]:
    """A reader of `place`."""
    reader = RemoteReader(place, http)
    try:
        yield reader
    finally:
        reader.close()


def remote_header(place: RemoteFile) -> RasterInfo:
    """As `header` of a local file. UsageError for more bands than one, RunError when it cannot be fetched."""
    try:
        with connection() as http, reading(place, http) as reader:
            info = reader.info
    except RunError as error:
        raise RunError(f"{place}: {error}") from error
    if info.count != 1:
        raise UsageError(f"{place}: {info.count} bands; legal: remote assets of one band each")
    return info


def _signing(url: str) -> Signing:
    """How the archive that a host belongs to signs its URLs."""
    host = urlsplit(url).hostname or ""
    for provider in PRESETS.values():
        if any(host == own or (own.startswith(".") and host.endswith(own)) for own in provider.sign.hosts):
            return provider.sign
    return Signing()
