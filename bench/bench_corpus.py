"""`corpus build` from GeoTIFF against a bare loop that reads and encodes the same windows, and `corpus stats` against numpy's sum of the same pixels.

Run `pytest bench/bench_corpus.py --benchmark-enable -s`. Files are in the page cache. Ratios are of times, paired and interleaved; both sides
have one process with one encoding thread, or two processes, on four times the pixels: a process of ours takes a second to start, a bare one
half of that, and a rate is what they do then. The bare loop writes nothing; ours also converts, sums up, checks and syncs to disk.
"""

import itertools
import multiprocessing
import os
import shutil
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import rasterio
from paired import paired_ratio
from rasterio.transform import from_origin
from rasterio.windows import Window

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.plan import Plan, build_corpus, carry_out
from dsengine.corpus.build.writer import CorpusWriter
from dsengine.corpus.schema import S1_BANDS, S2_BANDS
from dsengine.corpus.sources import geotiff
from dsengine.corpus.stats import measure
from dsengine.corpus.synth import synthesize

SITES, TIMES, SIDE, SIZE, PAIRS = 32, 4, 1024, 128, 6
PROFILES = {"deflate": {"compress": "deflate", "predictor": 2, "tiled": True, "blockxsize": 512, "blockysize": 512},
            "uncompressed": {"tiled": True, "blockxsize": 512, "blockysize": 512}}
Read = tuple[Path, int, int]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """S2 (12, SIDE, SIDE) uint16 and S1 (2, SIDE, SIDE) float32 dB, mosaics of synthetic patches: they compress as imagery does."""
    across = SIDE // SIZE
    corpus = open_corpus(synthesize(tmp_path_factory.mktemp("scene") / "c", num_patches=across ** 2, size=SIZE, seed=0))
    mosaics = []
    for sensor, low in (("s2", 1), ("s1", -4000)):
        x = np.maximum(corpus.read(range(len(corpus)), sensor), low)
        mosaics.append(x.reshape(across, across, -1, SIZE, SIZE).transpose(2, 0, 3, 1, 4).reshape(-1, SIDE, SIDE))
    return mosaics[0].astype(np.uint16), mosaics[1].astype(np.float32) / 100


@pytest.fixture(scope="module", params=list(PROFILES))
def folder(request: pytest.FixtureRequest, scene: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some sites, S2 and S1 in one GeoTIFF each."""
    folder = tmp_path_factory.mktemp("tifs")
    for site in range(SITES):
        for part, pixels, names in (("S2", scene[0], S2_BANDS), ("S1", scene[1], S1_BANDS)):
            profile = {**PROFILES[request.param], **({"predictor": 3} if part == "S1" and "predictor" in PROFILES[request.param] else {})}
            path = folder / part / f"site{site}.tif"
            path.parent.mkdir(exist_ok=True)
            with rasterio.open(path, "w", driver="GTiff", width=SIDE, height=SIDE, count=len(pixels), dtype=pixels.dtype, crs="EPSG:32633",
                               transform=from_origin(4e5 + site * SIDE * 10, 5e6, 10, 10), **profile) as file:
                file.write(np.roll(pixels, 97 * site, axis=2))
                file.descriptions = names
    print(f"\n{request.param}: {os.path.getsize(folder / 'S2/site0.tif') / 2**20:.0f} MiB an S2 file")
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """All windows of all sites."""
    return plan_of(folder)


@pytest.fixture(scope="module")
def large(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Every site several times, under several names; the page cache has it once."""
    linked = tmp_path_factory.mktemp("linked")
    for path in folder.rglob("*.tif"):
        (linked / path.parent.name).mkdir(exist_ok=True)
        for time in range(TIMES):
            os.link(path, linked / path.parent.name / f"{path.stem}_{time}.tif")
    return plan_of(linked)


def plan_of(folder: Path) -> Plan:
    flags = dict.fromkeys(("stride", "s2_bands", "s1_bands", "s2_scale", "s1_scale", "s1_offset", "s2_nodata", "s1_nodata"))
    return geotiff.plan(Namespace(size=SIZE, s2=[f"{folder}/S2/*.tif"], s1=[f"{folder}/S1/*.tif"], label=[], seed=0, s2_offset="0", **flags))


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """A new place for each build. The last one but one is removed, which takes milliseconds."""
    numbers = itertools.count()

    def place() -> Path:
        number = next(numbers)
        shutil.rmtree(tmp_path / str(number - 2), ignore_errors=True)
        return tmp_path / str(number)

    return place


def bare_loop(plan: Plan, sites: list[str]) -> int:
    """Read each window of some sites and encode it as the corpus does, and nothing else; returns the bytes made."""
    codec, total = numcodecs.Blosc("lz4", clevel=5, shuffle=1, blocksize=65536, typesize=2), 0
    for site in sites:
        for layer in plan.cut.sites[site].values():
            with rasterio.open(layer.files[0].path) as file:
                indexes = [channel.index for channel in layer.channels]
                for y in range(0, SIDE, SIZE):
                    for x in range(0, SIDE, SIZE):
                        total += len(codec.encode(file.read(indexes, window=Window(x, y, SIZE, SIZE)).astype(np.int16)))
    return total


def in_a_thread(work: Callable[[], object]) -> object:
    """Blosc's own threads are off outside the main thread, as in the build."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def bare_share(plan: Plan, sites: list[str]) -> None:
    in_a_thread(lambda: bare_loop(plan, sites))


def report(name: str, ours: Callable[[], object], theirs: Callable[[], object], *, num_bytes: int) -> None:
    ratio = paired_ratio(theirs, ours, pairs=PAIRS)
    print(f"\n{name}: {ratio.median:.2f} of the bare loop's rate [{ratio.low:.2f}, {ratio.high:.2f}], {num_bytes / 1e6:.0f} MB of int16")


def patch_bytes(plan: Plan) -> int:
    return plan.num_patches * 14 * SIZE * SIZE * 2


def test_build_with_one_thread_against_the_bare_loop_with_one(plan: Plan, fresh: Callable[[], Path], benchmark: Callable) -> None:
    """Cutting and encoding take turns, so one thread computes at a time; a second one waits for the disk."""
    def ours() -> None:
        with CorpusWriter(fresh(), layout=plan.layout, num_patches=plan.num_patches, made_by=plan.made_by, threads=1) as writer:
            carry_out(writer, plan)

    report("build, one thread", ours, lambda: bare_share(plan, list(plan.cut.sites)), num_bytes=patch_bytes(plan))
    benchmark.pedantic(ours, rounds=3)


def test_build_with_two_processes_against_the_bare_loop_in_two(large: Plan, fresh: Callable[[], Path], benchmark: Callable) -> None:
    """Both sides start their processes anew each time."""
    context, sites = multiprocessing.get_context("spawn"), list(large.cut.sites)

    def ours() -> None:
        build_corpus(fresh(), large, workers=2)

    def theirs() -> None:
        processes = [context.Process(target=bare_share, args=(large, sites[part::2])) for part in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0

    report("build, two processes", ours, theirs, num_bytes=patch_bytes(large))
    benchmark.pedantic(ours, rounds=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """1024 synthetic patches of 14 x 128 x 128 in the page cache: 470 MB of int16."""
    return open_corpus(synthesize(tmp_path_factory.mktemp("stats") / "c", num_patches=1024, size=128, seed=0))


def test_stats_against_numpy_sums_of_the_decoded_pixels(corpus: Corpus, benchmark: Callable) -> None:
    """Ours reads, checks, inflates and takes three sums with as many threads as there are cores; numpy takes one sum with one thread."""
    decoded = [np.asarray(array[...]) for array in corpus.arrays.values()]
    ours = lambda: measure(corpus)  # noqa: E731
    theirs = lambda: [x.sum(axis=(2, 3), dtype=np.int64) for x in decoded]  # noqa: E731
    ratio = paired_ratio(ours, theirs, pairs=PAIRS)
    print(f"\nstats: {ratio.median:.2f} x the time of numpy's sum [{ratio.low:.2f}, {ratio.high:.2f}], "
          f"{sum(x.nbytes for x in decoded) / 1e6:.0f} MB of int16, {len(os.sched_getaffinity(0))} threads")
    benchmark.pedantic(ours, rounds=5)
