"""The fixed-width codec on real Sentinel imagery: what it saves and how fast it decodes, beside Blosc LZ4 of the same chunks in the same run.

Run `pytest bench/bench_bitpack.py --benchmark-enable -s`; needs the sample imagery ($DSENGINE_SAMPLE_DATA). One thread. The ratio would move with the
header of a tile or the choice of its form (csrc/bitpack/pack.h), the rates with how a row is unpacked (unpack.h) or what a thread of a GPU takes
(bitpack_cuda.cu). Aims: more than 1.45 on S2 10 m, 300 GB/s of output on an H200.
"""

import ctypes
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from numcodecs import Blosc
from paired import Ratio, paired_times

from zarr.codecs import BloscCodec, Crc32cCodec

from dsengine import ops
from dsengine.corpus import bitpack
from dsengine.corpus.bitpack import BitpackCodec
from dsengine.data.layout import chunk_layout
from dsengine.data.patches import PatchReader

BANDS_10M, BANDS_20M = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
NODATA = -32768
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
BLOSC = {"Blosc LZ4 shuffle": Blosc("lz4", 5, Blosc.SHUFFLE, 65536, typesize=2), "Blosc LZ4 bitshuffle": Blosc("lz4", 5, Blosc.BITSHUFFLE, 65536, typesize=2),
         "Blosc zstd 1 bitshuffle": Blosc("zstd", 1, Blosc.BITSHUFFLE, typesize=2)}


@pytest.fixture(scope="module")
def folder() -> Path:
    """The sample imagery, or a skip."""
    found = Path(os.environ.get("DSENGINE_SAMPLE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (found / "pairs").is_dir():
        pytest.skip(f"no sample imagery at {found}: set DSENGINE_SAMPLE_DATA")
    return found


@pytest.fixture(scope="module")
def scenes(folder: Path) -> dict[str, list[np.ndarray]]:
    """(C, H, W) int16 patches by what they are: six of BigEarthNet at their own resolutions, five of TerraMesh."""
    import rasterio

    found: dict[str, list[np.ndarray]] = {}
    with tarfile.open(folder / "pairs/bigearthnet/BigEarthNet-S2-Example.tar.bz2") as tar:
        patches: dict[str, dict[str, np.ndarray]] = {}
        for member in tar:
            if member.name.endswith(".tif"):
                patch, _, band = member.name.removesuffix(".tif").rpartition("_")
                with rasterio.MemoryFile(tar.extractfile(member).read()) as file, file.open() as raster:
                    patches.setdefault(patch, {})[band] = raster.read(1).astype(np.int16)
    for name, bands in (("S2 10 m, BigEarthNet", BANDS_10M), ("S2 20 m, BigEarthNet", BANDS_20M)):
        found[name] = [np.stack([patch[band] for band in bands]) for patch in patches.values()]
    for path in sorted((folder / "pairs/terramesh/S2L2A").glob("*.tif")):
        with rasterio.open(path) as s2, rasterio.open(path.parents[1] / "S1RTC" / path.name) as s1:
            found.setdefault("S2 10 m, TerraMesh", []).append(s2.read([2, 3, 4, 8]))
            found.setdefault("S1 dB x 100, TerraMesh", []).append(np.rint(100 * s1.read()).astype(np.int16))
    return found


def packed(x: np.ndarray, predictor: str) -> bytes:
    return bitpack.encode(x, predictor=predictor, nodata=NODATA)


def test_what_each_codec_saves(scenes: dict[str, list[np.ndarray]], benchmark: Callable) -> None:
    """Decoded bytes over coded bytes, one patch a chunk, all that a chunk has included but its crc32c."""
    encoders = {"bitpack": lambda x: packed(x, "none"), "bitpack-lorenzo": lambda x: packed(x, "lorenzo"),
                **{name: codec.encode for name, codec in BLOSC.items()}}
    print(f"\n| data | {' | '.join(encoders)} |")
    table = {}
    for name, patches in scenes.items():
        table[name] = {of: sum(x.nbytes for x in patches) / sum(len(encode(x)) for x in patches) for of, encode in encoders.items()}
        print(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in table[name].values())} |")
    real = table["S2 10 m, BigEarthNet"]
    assert 1.55 < real["bitpack"] < real["bitpack-lorenzo"] and real["Blosc LZ4 bitshuffle"] < real["bitpack"]
    benchmark.pedantic(lambda: [packed(x, "lorenzo") for x in scenes["S2 10 m, BigEarthNet"]], rounds=3)


class Chunk:
    """A chunk decoded into memory that is there, by the C library alone."""

    def __init__(self, x: np.ndarray, predictor: str, window: tuple[int, int, int, int] | None = None) -> None:
        y, left, height, width = window or (0, 0, *x.shape[1:])
        self.body = np.frombuffer(packed(x, predictor), np.uint8)
        self.out = np.empty((len(x), height, width), np.int16)
        self._rows = np.array([0, self.body.size, 0, y, left])
        self._args = bitpack.Args(in_=self.body.ctypes.data, out=self.out.ctypes.data, chunks=self._rows.ctypes.data, in_bytes=self.body.size,
                                  out_bytes=self.out.nbytes, num_chunks=1, planes=len(x), height=x.shape[1], width=x.shape[2], itemsize=2,
                                  window_height=height, window_width=width)
        self._decode = bitpack._library().dse_bitpack_cpu
        self()
        np.testing.assert_array_equal(self.out, x[:, y:y + height, left:left + width])

    def __call__(self) -> None:
        assert self._decode(ctypes.byref(self._args), 1, 0) == 0


def patch(scenes: dict[str, list[np.ndarray]]) -> np.ndarray:
    """16 planes of 128 x 128 of real S2 at 10 m, a patch of the usual size."""
    return np.ascontiguousarray(np.concatenate(scenes["S2 10 m, TerraMesh"])[:16, :128, :128])


@pytest.mark.parametrize("name", ["Blosc LZ4 shuffle", "Blosc LZ4 bitshuffle"])
@pytest.mark.parametrize("predictor", bitpack.PREDICTORS)
def test_decoding_beside_blosc(scenes: dict[str, list[np.ndarray]], predictor: str, name: str, benchmark: Callable) -> None:
    """One patch, in the cache, one thread; what a corpus is stored as by default is Blosc LZ4 with shuffle."""
    numcodecs.blosc.use_threads = False
    x = patch(scenes)
    ours, frame, out = Chunk(x, predictor), BLOSC[name].encode(x), np.empty_like(x)
    times = paired_times(lambda: BLOSC[name].decode(frame, out), ours, pairs=200 if benchmark.enabled else 1)
    np.testing.assert_array_equal(out, x)
    rates = [x.nbytes / float(np.median(seconds)) / 1e9 for seconds in (times.b, times.a)]
    print(f"\n| bitpack {predictor} | {rates[0]:.2f} GB/s of output | {name} | {rates[1]:.2f} GB/s | {times.ratio()} times as fast |")
    benchmark.pedantic(ours, rounds=20)


@pytest.mark.parametrize("side", [32, 64, 96])
def test_a_window_beside_the_whole(scenes: dict[str, list[np.ndarray]], side: int, benchmark: Callable) -> None:
    """Time of a window in the middle of a patch of 128 x 128, which no edge of a tile meets, over the time of the patch."""
    x = patch(scenes)
    whole, window = Chunk(x, "lorenzo"), Chunk(x, "lorenzo", (13, 13, side, side))
    ratio: Ratio = paired_times(window, whole, pairs=200 if benchmark.enabled else 1).ratio()
    print(f"\n| window of {side} x {side} | {ratio} of the time of 128 x 128, {side ** 2 / 128 ** 2:.2f} of its pixels |")
    benchmark.pedantic(window, rounds=20)


@pytest.mark.parametrize("predictor", bitpack.PREDICTORS)
def test_encoding(scenes: dict[str, list[np.ndarray]], predictor: str, benchmark: Callable) -> None:
    x = patch(scenes)
    benchmark.pedantic(lambda: packed(x, predictor), rounds=20, warmup_rounds=2)
    if benchmark.stats is not None:
        print(f"\n| bitpack {predictor} encodes | {x.nbytes / benchmark.stats.stats.median / 1e9:.2f} GB/s |")


def reader_of(root: Path, x_NCHW: np.ndarray, codecs: list) -> PatchReader:
    """What the loader reads with, two threads, of an array in shards of 64 with a crc32c a chunk."""
    array = zarr.create_array(root, shape=x_NCHW.shape, chunks=(1, *x_NCHW.shape[1:]), shards=(64, *x_NCHW.shape[1:]), dtype="int16", fill_value=NODATA,
                              serializer=codecs[0], compressors=[*codecs[1:], Crc32cCodec()])
    array[:] = x_NCHW
    return PatchReader([chunk_layout(array, root=root)], num_threads=2)


@pytest.mark.parametrize("predictor", bitpack.PREDICTORS)
def test_reading_patches_beside_the_default_codec(folder: Path, tmp_path: Path, predictor: str, benchmark: Callable) -> None:
    """64 random patches of 12 x 128 x 128 of real S2 out of 128, files in the page cache: read, crc32c compared, decoded."""
    import rasterio

    tiles = [rasterio.open(path).read().astype(np.int16) for path in sorted((folder / "pairs/terramesh/S2L2A").glob("*.tif"))]
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 224 - 128, (128, 2))
    x = np.stack([tiles[k % len(tiles)][:, y:y + 128, left:left + 128] for k, (y, left) in enumerate(corners)])
    ours = reader_of(tmp_path / "ours", x, [BitpackCodec(predictor=predictor, nodata=NODATA)])
    usual = reader_of(tmp_path / "usual", x, ["auto", BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", blocksize=65536, typesize=2)])
    out = np.empty((64, *x.shape[1:]), np.int16)

    def batch(reader: PatchReader) -> np.ndarray:
        ids = rng.integers(0, len(x), len(out))
        reader.read(ids, [out])
        return ids

    assert all(np.array_equal(x[batch(reader)], out) for reader in (ours, usual))
    times = paired_times(lambda: batch(usual), lambda: batch(ours), pairs=60 if benchmark.enabled else 1)
    print(f"\n| bitpack {predictor} | {len(out) / float(np.median(times.b)):,.0f} patches/s | Blosc LZ4 shuffle | {len(out) / float(np.median(times.a)):,.0f} | "
          f"{times.ratio()} times as fast |")
    benchmark.pedantic(lambda: batch(ours), rounds=10)
    ours.close(), usual.close()


@needs_gpu
@pytest.mark.parametrize("predictor", bitpack.PREDICTORS)
@pytest.mark.parametrize("side", [128, 80])
def test_decoding_on_a_gpu(scenes: dict[str, list[np.ndarray]], predictor: str, side: int, benchmark: Callable) -> None:
    """1,024 patches of 14 x 128 x 128, whole and a window of each; GB/s of output by device time."""
    if not ops.build_info()["cuda"]:
        pytest.skip("dsengine was built without CUDA")
    x = patch(scenes)[:14]
    chunk, num = packed(x, predictor), 1024
    buffer = torch.frombuffer(bytearray(chunk * num), dtype=torch.uint8).cuda()
    table = torch.tensor([[k * len(chunk), len(chunk), (k % 3) * (128 - side) // 2, (k % 5) * (128 - side) // 4] for k in range(num)]).cuda()
    call = lambda: ops.bitpack_decode(buffer, table, [14, 128, 128], [side, side], torch.int16)  # noqa: E731
    found = call()
    for k in (0, 1, 7, num - 1):
        y, left = table[k, 2:].tolist()
        np.testing.assert_array_equal(found[k].cpu().numpy(), x[:, y:y + side, left:left + side])
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(30)]
    for start, stop in marks:
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    low, middle, high = np.percentile([start.elapsed_time(stop) for start, stop in marks], [25, 50, 75])
    num_bytes = found.numel() * 2
    print(f"\n| bitpack {predictor}, {side} x {side} | {num_bytes / middle / 1e6:.0f} GB/s of output | {middle:.3f} ms [{low:.3f}, {high:.3f}] | "
          f"{torch.cuda.get_device_name()} |")
    benchmark.pedantic(lambda: (call(), torch.cuda.synchronize()), rounds=10)
