"""Windows of a remote GeoTIFF: its header and the blocks that the window needs are fetched, everything else stays a hole.

The bytes lie at their own offsets in an anonymous file in memory, and GDAL reads that. So all requests are made here, where they are
retried and checked, and GDAL's own network layer, with its caches and its logs, has no part in it.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from dsengine.corpus.build.archive.http import Broken, Http, Refused, Reply
from dsengine.corpus.build.archive.tiff import outlying
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.utm import bounds

HEADER_BYTES = 1 << 16  # the header of a COG of a whole Sentinel-2 tile takes about 20 kB
MAX_HEADER_BYTES = 1 << 22  # in one field: the table of 500,000 blocks
MAX_WINDOW_BYTES = 1 << 28  # of blocks for one window
MAX_FILE_BYTES = 1 << 40  # what a server may say a file has
MAX_PIXELS = 1 << 24  # of a source window that is to be warped
_GAP = 1 << 15  # two ranges closer than this are fetched as one
_MARGIN = 3  # source pixels around a window that is warped: what bilinear interpolation reaches
RESAMPLING = {"nearest": Resampling.nearest, "bilinear": Resampling.bilinear}


class RemoteRaster:
    """One GeoTIFF behind a URL, used in a `with`; `file` is its header as a rasterio dataset. `locate()` gives the URL to ask, signed anew after `locate(True)`."""

    def __init__(self, http: Http, locate: Callable[[bool], str]) -> None:
        self._http, self._locate = http, locate
        self._url = locate(False)
        self._fd = os.memfd_create("cog", os.MFD_CLOEXEC)
        self._size = 0
        self._fetched: list[tuple[int, int]] = []
        self._opened = ExitStack()

    def __enter__(self) -> "RemoteRaster":
        try:
            self._get(0, HEADER_BYTES)
            for start, length in outlying(self._peek):
                self._peek(start, length)
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        os.close(self._fd)

    def window(self, window: Window) -> np.ndarray:
        """(H, W) numbers of band 1 in a window that lies within the raster. Refused when its data is damaged."""
        missing = self._ranges(window)
        if sum(length for _, length in missing) > MAX_WINDOW_BYTES:
            raise Refused(f"a window of {window.height} x {window.width} pixels needs more than {MAX_WINDOW_BYTES >> 20} MiB")
        for start, length in missing:
            self._get(start, length)
        if missing:
            self._open()
        with self._readable():
            return self.file.read(1, window=window)

    def _open(self) -> None:
        """Open, or open again, the file as far as it is there: GDAL must not keep what it saw in a hole."""
        self._opened.close()
        with self._readable():
            self._opened.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"))
            self.file = self._opened.enter_context(rasterio.open(f"/proc/self/fd/{self._fd}", driver="GTiff"))
        (height, width), size = self.file.block_shapes[0], np.dtype(self.file.dtypes[0]).itemsize
        if height * width * size * self.file.count > MAX_WINDOW_BYTES:  # GDAL would take the memory for a whole block
            raise Refused(f"its blocks of {height} x {width} pixels are too large to be read")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except rasterio.errors.RasterioIOError as error:
            raise Refused(f"cannot be read as a GeoTIFF: {str(error).replace(f'/proc/self/fd/{self._fd}', 'it')}") from None

    def _ranges(self, window: Window) -> list[tuple[int, int]]:
        """(offset, length) of the blocks in a window that are not there yet, close ones merged."""
        blocks = [block for block in self._blocks(window) if not self._has(*block)]
        merged: list[tuple[int, int]] = []
        for start, length in sorted(blocks):
            if merged and start <= sum(merged[-1]) + _GAP:
                merged[-1] = (merged[-1][0], max(sum(merged[-1]), start + length) - merged[-1][0])
            else:
                merged.append((start, length))
        return merged

    def _has(self, start: int, length: int) -> bool:
        return any(begin <= start and start + length <= begin + size for begin, size in self._fetched)

    def _peek(self, start: int, length: int) -> bytes:
        """Bytes of the header, fetched where they lie far from the first ones."""
        if length > MAX_HEADER_BYTES:
            raise Refused(f"cannot be read as a GeoTIFF: {length} bytes in one field of its header")
        if not self._has(start, length):
            self._get(start, max(length, _GAP))
        data = os.pread(self._fd, length, start)
        if len(data) < length:
            raise Refused("cannot be read as a GeoTIFF: its header points beyond its end")
        return data

    def _blocks(self, window: Window) -> Iterator[tuple[int, int]]:
        """(offset, length) of each block that a window touches; a block without an offset is empty, by TIFF's rules."""
        height, width = self.file.block_shapes[0]
        for row in range(window.row_off // height, (window.row_off + window.height - 1) // height + 1):
            for column in range(window.col_off // width, (window.col_off + window.width - 1) // width + 1):
                found = [self.file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE")]
                if all(found):
                    yield int(found[0]), int(found[1])

    def _get(self, start: int, length: int) -> None:
        """Fetch a range into place; the end of the file may cut it short. A URL that is no longer allowed is signed anew, once."""
        if self._size:
            length = min(length, self._size - start)
        if length <= 0:
            return
        for renewed in (False, True):
            try:
                data, self._size = self._http.fetch(self._url, lambda reply: _ranged(reply, start, length), max_bytes=length, headers={
                    "Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"})
                break
            except Refused as error:
                if renewed or error.status not in (401, 403):
                    raise
                self._url = self._locate(True)
        if os.fstat(self._fd).st_size != self._size:
            os.ftruncate(self._fd, self._size)
        os.pwrite(self._fd, data, start)
        self._fetched.append((start, len(data)))


def _ranged(reply: Reply, start: int, length: int) -> tuple[bytes, int]:
    """The bytes asked for and the size of the whole file."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
    if reply.status != 206 or match is None:
        raise Refused("the server does not serve ranges of bytes")
    first, last, size = (int(group) for group in match.groups())
    if size > MAX_FILE_BYTES:
        raise Refused(f"a file of {size} bytes")
    if first != start or last != min(start + length, size) - 1 or len(reply.body) != last - first + 1:
        raise Broken(f"bytes {first}-{last} ({len(reply.body)}) in place of {start}-{min(start + length, size) - 1}")
    return reply.body, size


def read_patch(raster: RemoteRaster, grid: Grid, *, resolution_m: float, empty: float, resampling: str) -> tuple[np.ndarray, float]:
    """(side, side) numbers of band 1 on the pixels of `grid` at `resolution_m`, and the number that stands for no data.

    That is the one the file declares, else `empty`; it fills what the raster does not reach. Where the raster has this very grid the
    numbers are read as they are; otherwise they are warped from the raster's own grid, weighting neighbours by distance (`bilinear`,
    leaving out no data) or taking the nearest. Raises Refused, Unreachable.
    """
    side = round(grid.size * grid.resolution_m / resolution_m)
    target = Affine(resolution_m, 0, grid.x, 0, -resolution_m, grid.y)
    file = raster.file
    crs, transform, shape, dtype = file.crs, file.transform, file.shape, file.dtypes[0]
    empty = empty if file.nodata is None else file.nodata
    if crs is None:
        raise Refused("has no CRS")
    wanted = CRS.from_epsg(grid.epsg)
    if crs == wanted and np.allclose(transform[:6:4], target[:6:4], rtol=1e-9) and not (transform.b or transform.d):
        column, row = ((grid.x - transform.c) / resolution_m, (transform.f - grid.y) / resolution_m)
        if abs(column - round(column)) < 1e-3 and abs(row - round(row)) < 1e-3:
            return _exact(raster, shape, dtype, column=round(column), row=round(row), side=side, empty=empty), empty
    return _warped(raster, crs, transform, shape, dtype, wanted=(wanted, target, side, bounds(grid)), empty=empty, resampling=resampling), empty


def _exact(raster: RemoteRaster, shape: tuple[int, int], dtype: str, *, column: int, row: int, side: int, empty: float) -> np.ndarray:
    out = np.full((side, side), empty, dtype)
    top, bottom, left, right = max(row, 0), min(row + side, shape[0]), max(column, 0), min(column + side, shape[1])
    if top < bottom and left < right:
        out[top - row:bottom - row, left - column:right - column] = raster.window(Window(left, top, right - left, bottom - top))
    return out


def _warped(raster: RemoteRaster, crs: CRS, transform: Affine, shape: tuple[int, int], dtype: str, *,
            wanted: tuple[CRS, Affine, int, tuple[float, float, float, float]], empty: float, resampling: str) -> np.ndarray:
    target_crs, target, side, box = wanted
    out = np.full((side, side), empty, dtype)
    left, bottom, right, top = transform_bounds(target_crs, crs, *box, densify_pts=21)
    if not np.isfinite([left, bottom, right, top]).all():
        raise Refused(f"its CRS {crs} does not reach the patch")
    to_pixels = ~transform
    columns, rows = zip(*(_apply(to_pixels, x, y) for x in (left, right) for y in (bottom, top)), strict=True)
    x0, x1 = max(math.floor(min(columns)) - _MARGIN, 0), min(math.ceil(max(columns)) + _MARGIN, shape[1])
    y0, y1 = max(math.floor(min(rows)) - _MARGIN, 0), min(math.ceil(max(rows)) + _MARGIN, shape[0])
    if x0 >= x1 or y0 >= y1:
        return out
    if (x1 - x0) * (y1 - y0) > MAX_PIXELS:
        raise Refused(f"its pixels are so small that a patch needs {(x1 - x0) * (y1 - y0)} of them")
    source = raster.window(Window(x0, y0, x1 - x0, y1 - y0))
    corner = Affine(transform.a, transform.b, _apply(transform, x0, y0)[0], transform.d, transform.e, _apply(transform, x0, y0)[1])
    # GDAL would take the reach of its kernel from the shapes of the two windows, and the margin would blur.
    scale = {"XSCALE": f"{abs(transform.a / target.a):.9g}", "YSCALE": f"{abs(transform.e / target.e):.9g}"} if crs.is_projected else {}
    reproject(source, out, src_transform=corner, src_crs=crs, dst_transform=target, dst_crs=target_crs,
              src_nodata=empty, dst_nodata=empty, resampling=RESAMPLING[resampling], num_threads=1, **scale)
    return out


def _apply(t: Affine, x: float, y: float) -> tuple[float, float]:
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f
