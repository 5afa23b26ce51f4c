"""Embedding a raster of 14 bands on the CPU: all of `dsengine embed` against the encoder alone on the same pixels, and a search in the result.

Run `pytest bench/bench_embed.py --benchmark-enable -s`. The encoder alone goes once over the raster in memory, z-scored, without margins
and files: what embedding costs above that is reading, margins, masks, and writing. What moves these numbers: export/compute.py,
export/tiles.py (margins), export/rasters.py, export/write_*.py, nn/fold.py.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from paired import paired_times

import dsengine
from dsengine.corpus.schema import S1_BANDS, S2_BANDS, Band, Contract
from dsengine.encoders import build_encoder
from dsengine.export.model import Model, as_model, normalised

BANDS = (*S2_BANDS, *S1_BANDS)
PAIRS = 5


def bench_contract() -> Contract:
    """14 bands, patches of 128 px."""
    optical = [band in S2_BANDS for band in BANDS]
    return Contract(
        bands=tuple(Band(name, "s2" if is_s2 else "s1", "s2" if is_s2 else "s1", k, 1) for k, (name, is_s2) in enumerate(zip(BANDS, optical, strict=True))),
        units=tuple("reflectance" if o else "dB" for o in optical), scale=tuple(1e-4 if o else 0.01 for o in optical), offset=(0.0,) * 14,
        mean=tuple(0.2 if o else -13.0 for o in optical), std=tuple(0.15 if o else 4.0 for o in optical), nodata=-32768, patch_size=128, resolution_m=10.0)


def write_scene(folder: Path, side: int) -> Path:
    """s2.tif of 12 bands uint16 and s1.tif of 2 bands float32, `side` pixels each way; one block of noise, shifted from window to window."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(14, 1024, 1024))
    blocks = {"s2": np.clip(1500 + 900 * noise[:12], 1, 12000).astype(np.uint16), "s1": (-13 + 4 * noise[12:]).astype(np.float32)}
    folder.mkdir(parents=True)
    for name, bands in (("s2", S2_BANDS), ("s1", S1_BANDS)):
        block = blocks[name]
        profile = {"driver": "GTiff", "count": len(bands), "height": side, "width": side, "dtype": block.dtype, "crs": "EPSG:32613", "tiled": True,
                   "transform": Affine(10, 0, 399960, 0, -10, 4500000), "blockxsize": 512, "blockysize": 512, "bigtiff": "IF_SAFER"}
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as file:
            file.descriptions = bands
            for y, x in itertools.product(range(0, side, 512), repeat=2):
                height, width = min(512, side - y), min(512, side - x)
                top, left = (y * 7 + x * 3) % 512, (y * 5 + x * 11) % 512
                file.write(block[:, top:top + height, left:left + width], window=rasterio.windows.Window(x, y, width, height))
    return folder


@pytest.fixture(scope="module")
def side(request: pytest.FixtureRequest) -> int:
    """Pixels a side; small where benches only run once as tests."""
    quick = request.config.getoption("benchmark_disable") and not request.config.getoption("benchmark_enable")
    return 256 if quick else 1536


@pytest.fixture(scope="module")
def scene(side: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "tile", side)


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Path]:
    """New names, one a call of next."""
    return (tmp_path / f"{k}.zarr" for k in itertools.count())


def alone(model: Model, side: int, piece: int = 512) -> None:
    """The encoder over as many pixels, in memory, in pieces without margins."""
    stored = torch.randint(1, 4000, (1, 14, piece, piece), dtype=torch.int16)
    with torch.inference_mode():
        for _ in range(max(1, side // piece) ** 2):
            model.encoder(normalised(stored, model.contract).contiguous(memory_format=torch.channels_last))


def test_a_raster_through_resnet18(scene: Path, side: int, names: Iterator[Path], benchmark: Callable) -> None:
    model = as_model((build_encoder("resnet18", 14).eval(), bench_contract()))
    piece = min(512, side)
    quick = side < 512

    def whole() -> None:
        dsengine.embed((model.encoder, model.contract), scene, next(names), s2_offset="0")

    times = paired_times(whole, lambda: alone(model, side, piece), pairs=1 if quick else PAIRS)
    ratio, rate = times.ratio(), side**2 / np.median(times.a) / 1e6
    print(f"\nembed {rate:.3f} Mpx/s, {ratio} times the time of the encoder alone ({side} px a side, {torch.get_num_threads()} threads)")
    benchmark.extra_info.update(megapixels_per_s=float(rate), over_encoder=ratio.median, low=ratio.low, high=ratio.high)
    benchmark.pedantic(whole, rounds=1)


def test_a_search_reads_every_vector(scene: Path, side: int, names: Iterator[Path], benchmark: Callable) -> None:
    out, = dsengine.embed((build_encoder("resnet18", 14).eval(), bench_contract()), scene, next(names), s2_offset="0")
    cells = (side // 16) ** 2
    found = benchmark.pedantic(lambda: dsengine.nearest(out, cells // 2, top=10), rounds=3)
    assert len(found.id) == 10 and found.cosine[0] <= 1 + 1e-9
    benchmark.extra_info.update(cells=cells, features=512)
