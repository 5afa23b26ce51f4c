"""Windows of remote rasters and patient requests: against rasterio on the same file, and against servers that misbehave in one way each."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine, from_origin
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from dsengine.corpus.build.archive import cog
from dsengine.corpus.build.archive.http import Http, Patience, Refused, Unreachable, clean
from dsengine.corpus.build.plan import Grid

from . import server

FAST = Patience(tries=3, backoff_s=0.01, timeout_s=2.0)
LEFT, TOP = 399960.0, 4500000.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COG and other GeoTIFFs of 1500 x 1600 noisy pixels: several MB, so that few of their bytes are needed."""
    path = tmp_path_factory.mktemp("rasters")
    image = np.random.default_rng(0).integers(1, 9000, (1500, 1600)).astype(np.uint16)
    image[:300, :300] = 0
    common = {"height": 1500, "width": 1600, "count": 1, "dtype": "uint16", "crs": "EPSG:32613", "transform": from_origin(LEFT, TOP, 10, 10), "nodata": 0}
    kinds = {"cog": {"driver": "COG", "compress": "deflate", "blocksize": 256}, "strips": {"driver": "GTiff"},
             "late": {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "BIGTIFF": "YES", "ENDIANNESS": "BIG"},
             "sparse": {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "zstd", "SPARSE_OK": True}}
    for name, options in kinds.items():
        with rasterio.open(path / f"{name}.tif", "w", **common, **options) as file:
            if name == "sparse":  # 9400 tiles: their table does not fit in the first 64 kB; the empty corner has no tiles at all
                file.write(image[320:1500, 320:1600], 1, window=Window(320, 320, 1280, 1180))
            else:
                file.write(image, 1)
    with rasterio.open(path / "late.tif", "r+") as file:  # header fields and smaller images appended after the pixels
        file.build_overviews([2, 4])
        file.update_tags(note="x" * 500)
        file.descriptions = ("B02",)
    return path


@pytest.fixture
def archive(folder: Path) -> Iterator[server.Archive]:
    """The files, served."""
    held = server.Archive(folder, [])
    with server.serving(held):
        yield held


def _read(held: server.Archive, name: str, grid: Grid, *, resolution_m: float = 10.0, resampling: str = "bilinear") -> np.ndarray:
    with Http(FAST) as http, cog.RemoteRaster(http, lambda renew: f"{held.root}/files/{name}.tif") as raster:
        return cog.read_patch(raster, grid, resolution_m=resolution_m, empty=0.0, resampling=resampling)[0]


@pytest.mark.parametrize("name", ["cog", "strips", "late", "sparse"])
def test_a_window_on_the_files_grid_is_read_as_it_is_with_few_bytes(archive: server.Archive, folder: Path, name: str) -> None:
    for x, y, size in ((4700, 5030, 132), (2000, 2000, 60), (15000, 14000, 132), (-300, 8000, 60), (100000, 0, 60)):
        archive.requests.clear()
        got = _read(archive, name, Grid(32613, LEFT + x, TOP - y, size, 10.0))
        with rasterio.open(folder / f"{name}.tif") as file:
            expected = file.read(1, window=Window(x // 10, y // 10, size, size), boundless=True, fill_value=0)
        assert np.array_equal(got, expected), (x, y)
        assert len(archive.requests) <= 15  # the header, its tables, and a run of blocks for each row of tiles


def test_windows_of_one_file_share_its_header_and_blocks(archive: server.Archive, folder: Path) -> None:
    with Http(FAST) as http, cog.RemoteRaster(http, lambda renew: f"{archive.root}/files/cog.tif") as raster:
        for _ in range(3):
            cog.read_patch(raster, Grid(32613, LEFT + 6000, TOP - 6000, 30, 10.0), resolution_m=10.0, empty=0.0, resampling="nearest")
        assert len(archive.requests) == 2


@pytest.mark.parametrize(("epsg", "x", "y", "resampling"), [
    (32613, LEFT + 5003.0, TOP - 6004.0, "bilinear"), (32613, LEFT + 5003.0, TOP - 6004.0, "nearest"), (32612, 908000.0, 4500500.0, "bilinear"),
    (32613, LEFT + 2903.0, TOP - 2904.0, "bilinear")])
def test_a_window_on_another_grid_is_warped_as_gdal_warps_the_whole_file(
        archive: server.Archive, folder: Path, epsg: int, x: float, y: float, resampling: str) -> None:
    got = _read(archive, "cog", Grid(epsg, x, y, 60, 10.0), resampling=resampling)
    with rasterio.open(folder / "cog.tif") as file, WarpedVRT(
            file, crs=f"EPSG:{epsg}", transform=Affine(10, 0, x, 0, -10, y), width=60, height=60, resampling=Resampling[resampling]) as warped:
        expected = warped.read(1)
    assert (expected > 0).any()
    # GDAL approximates the transformation over the region it warps, to an eighth of a pixel: the two regions differ in size.
    close = np.abs(got.astype(int) - expected) <= (1 if epsg == 32613 else 1200)
    assert close.mean() > 0.99 and np.array_equal(got == 0, expected == 0)


def test_a_finer_raster_than_wanted_is_averaged_and_not_shifted(archive: server.Archive, folder: Path) -> None:
    """Bilinear at half the resolution weighs four neighbours along each axis by 1, 3, 3, 1."""
    got = _read(archive, "cog", Grid(32613, LEFT + 6000, TOP - 6000, 60, 10.0), resolution_m=20.0)
    with rasterio.open(folder / "cog.tif") as file:
        around = file.read(1, window=Window(599, 599, 62, 62)).astype(float)
    weights = np.array([1, 3, 3, 1]) / 8
    windows = np.lib.stride_tricks.sliding_window_view(around, (4, 4))[::2, ::2]
    assert np.abs(got - np.einsum("yxij,i,j->yx", windows, weights, weights)).max() <= 1


def test_an_expired_signature_is_renewed_once(archive: server.Archive) -> None:
    archive.token = "good"
    asked = []

    def locate(renew: bool) -> str:
        asked.append(renew)
        return f"{archive.root}/files/cog.tif?{'good' if renew else 'old'}"

    with Http(FAST) as http, cog.RemoteRaster(http, locate) as raster:
        assert raster.file.shape == (1500, 1600)
    assert asked == [False, True]


@pytest.mark.parametrize(("fault", "error", "says"), [
    ("500", Unreachable, "status 500, after 3 tries"), ("404", Refused, "status 404"), ("truncated", Unreachable, "after 3 tries"),
    ("damaged", Refused, "cannot be read as a GeoTIFF")])
def test_faults_end_in_one_line_without_query(archive: server.Archive, fault: str, error: type[Exception], says: str) -> None:
    archive.fault = lambda number, path: fault
    with pytest.raises(error, match=says) as caught, Http(FAST) as http, cog.RemoteRaster(http, lambda renew: f"{archive.root}/files/cog.tif?sig=X"):
        pass
    assert "sig" not in str(caught.value) and "\n" not in str(caught.value)


@contextmanager
def _answering(answer: Callable[[BaseHTTPRequestHandler, int], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        count = 0

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            type(self).count += 1
            try:
                answer(self, self.count)
            except OSError:
                pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://user:pw@127.0.0.1:{running.server_address[1]}/x?sig=TOPSECRET"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("asks", ["0.4", "date"])
def test_retry_after_is_honoured_and_bounded(asks: str) -> None:
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 1000)) if asks == "date" else asks
    with _answering(lambda h, n: _send(h, 429, b"", Retry_After=later) if n == 1 else _send(h, 200, b'{"a": 1}')) as url:
        began = time.monotonic()
        with Http(Patience(tries=2, backoff_s=0.001, longest_s=0.8)) as http:
            assert http.json(url) == {"a": 1}
        assert (0.3 if asks == "0.4" else 0.6) <= time.monotonic() - began < 5


def test_a_trickle_ends_when_its_time_is_up() -> None:
    def drip(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"1")
            handler.wfile.flush()
            time.sleep(0.02)

    with _answering(drip) as url, Http(Patience(tries=1, timeout_s=0.3)) as http:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="not complete after 0.3 s, after 1 tries"):
            http.json(url)
        assert time.monotonic() - began < 2


def test_an_answer_without_end_is_cut_off_and_not_collected() -> None:
    def flood(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(bytes(1 << 16))

    with _answering(flood) as url, Http(FAST) as http, pytest.raises(Refused, match="more than 100000 bytes") as caught:
        http.fetch(url, lambda reply: reply, max_bytes=100_000)
    assert "TOPSECRET" not in str(caught.value) and "pw" not in str(caught.value)


@pytest.mark.parametrize(("status", "stated", "says"), [(200, "bytes 0-65535/10", "does not serve ranges"), (206, "bytes 5-14/99", "in place of"),
                                                        (206, "bytes 0-9/99999999999999999", "a file of 9999")])
def test_ranges_that_are_not_those_asked_for_are_not_believed(status: int, stated: str, says: str) -> None:
    with _answering(lambda h, n: _send(h, status, bytes(10), Content_Range=stated)) as url, Http(FAST) as http, pytest.raises(
            (Refused, Unreachable), match=says), cog.RemoteRaster(http, lambda renew: url):
        pass


def test_a_file_of_one_huge_block_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "huge.tif", "w", driver="GTiff", height=200_000, width=200_000, count=1, dtype="uint16", crs="EPSG:32613",
                       transform=from_origin(LEFT, TOP, 10, 10), tiled=True, blockxsize=65536, blockysize=65536, SPARSE_OK=True, BIGTIFF="YES"):
        pass
    held = server.Archive(tmp_path, [])
    with server.serving(held), Http(FAST) as http, pytest.raises(Refused, match="65536 x 65536 pixels are too large"), cog.RemoteRaster(
            http, lambda renew: f"{held.root}/files/huge.tif"):
        pass


def test_what_is_shown_of_a_url_is_neither_query_nor_password() -> None:
    assert clean("https://u:p@h.example:8/a/b.tif?sig=1#f") == "https://h.example:8/a/b.tif"
    assert clean("s3://bucket/key?x=1") == "s3://bucket/key"
