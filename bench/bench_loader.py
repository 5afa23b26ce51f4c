"""Random patches of 14 x 128 x 128 from a synthetic corpus of 2 GB in the page cache: our reader against other ways to get them.

Run `pytest bench/bench_loader.py --benchmark-enable -s`. A ratio is the other side's time for a patch over ours, paired and
interleaved, with a 95 % interval of its median. Corpus and copies in other formats are kept in the user's cache (about 5 GB);
$DSENGINE_BENCH_MB asks for another size. Both sides have two threads or two worker processes where they can use them.
What moves these numbers: csrc/decode, data/native.py, data/patches.py, data/chunks.py.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from loaders import formats, readers, streams
from paired import paired_times

from dsengine.corpus import Corpus
from dsengine.data.layout import chunk_layout
from dsengine.data.pipeline import Patches, RawPipeline
from dsengine.data.resident import Tier, open_kept

BATCH, THREADS, OUR_BATCHES = 64, 2, 16


class Rival(NamedTuple):
    """Another way; `aim`: how many times its rate ours should be. `batches` of 64 are timed at once."""

    make: Callable[[Corpus], readers.Read] | Callable[..., streams.Pass]
    aim: float | None
    needs: tuple[str, ...] = ()
    batches: int = 4


READERS = {
    "zarr-python, a loop": Rival(readers.zarr_loop, 8),
    "zarr-python, two threads": Rival(readers.zarr_threads, None),
    "zarrs, a loop": Rival(readers.zarrs_loop, 3, ("zarrs",), 8),
    "zarrs, two threads": Rival(readers.zarrs_threads, None, ("zarrs",), 8),
    "HDF5 zstd + shuffle, h5py": Rival(readers.hdf5_loop, 2.5, ("h5py", "hdf5plugin"), 8),
    "npz, np.load": Rival(readers.npz_loop, 20, batches=2),
    "uncompressed memmap": Rival(readers.memmap, None, batches=32),
}
STREAMS = {
    "DataLoader over zarr-python, two workers": Rival(streams.over_zarr, 6, batches=8),
    "DataLoader over GeoTIFF, two workers": Rival(streams.over_geotiff, 15, ("rasterio",), 4),
    "DALI external_source over zarr-python, two workers": Rival(streams.dali_over_zarr, None, batches=8),
}


@pytest.fixture(scope="module")
def corpus(request: pytest.FixtureRequest) -> Corpus:
    """The bench corpus, its shards in the page cache."""
    made = formats.bench_corpus(formats.asked_mb(not request.config.getoption("benchmark_disable") or request.config.getoption("benchmark_enable")))
    for path in made.path.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return made


@pytest.fixture(scope="module")
def ours(corpus: Corpus) -> Iterator[RawPipeline]:
    """What the loader reads with."""
    layouts = [chunk_layout(array, root=corpus.path) for array in corpus.arrays.values()]
    with RawPipeline(layouts, max_batch=BATCH, num_threads=THREADS) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def kept(corpus: Corpus) -> Iterator[Patches]:
    """What the loader reads with after an epoch, where patches stay in memory."""
    layouts = [chunk_layout(array, root=corpus.path) for array in corpus.arrays.values()]
    with open_kept(layouts, np.arange(len(corpus)), Tier("ram", ""), max_batch=BATCH, num_threads=THREADS, device=torch.device("cpu")) as pipeline:
        for ids in np.array_split(np.arange(len(corpus)), -(-len(corpus) // BATCH)):
            with pipeline.lease(ids):
                pass
        yield pipeline


def our_pass(pipeline: Patches, corpus: Corpus) -> Callable[[], None]:
    rng = np.random.default_rng(0)

    def one_pass() -> None:
        for _ in range(OUR_BATCHES):
            with pipeline.lease(rng.integers(0, len(corpus), BATCH)):
                pass

    return one_pass


def compare(name: str, rival: Rival, theirs: Callable[[], object], mine: Callable[[], object], benchmark: Callable) -> None:
    """Print and record the ratio for a patch; the line is a row of a table."""
    times = paired_times(theirs, mine, pairs=15 if benchmark.enabled else 1)
    scale = OUR_BATCHES / rival.batches
    ratio = times.ratio()
    low, median, high = (scale * x for x in (ratio.low, ratio.median, ratio.high))
    rates = [num * BATCH / float(np.median(x)) for num, x in ((rival.batches, times.a), (OUR_BATCHES, times.b))]
    print(f"\n| {name} | {rival.aim or '-'} | {median:.1f} [{low:.1f}, {high:.1f}] | {rates[0]:,.0f} | {rates[1]:,.0f} |")
    benchmark.extra_info.update(ratio=median, low=low, high=high, aim=rival.aim, their_patches_per_s=rates[0], our_patches_per_s=rates[1])
    benchmark.pedantic(mine, rounds=3)


def require(rival: Rival) -> None:
    for module in rival.needs:
        pytest.importorskip(module)


@pytest.mark.parametrize("name", READERS)
def test_reading_against(name: str, corpus: Corpus, ours: RawPipeline, benchmark: Callable) -> None:
    rival = READERS[name]
    require(rival)
    read, rng = rival.make(corpus), np.random.default_rng(2)
    num = formats.few(corpus) if rival.make is readers.npz_loop else len(corpus)
    ids = rng.integers(0, num, BATCH)
    with ours.lease(ids) as raw:
        for mine, theirs in zip(raw, read(ids), strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs)

    def theirs() -> None:
        for _ in range(rival.batches):
            read(rng.integers(0, num, BATCH))

    compare(name, rival, theirs, our_pass(ours, corpus), benchmark)


@pytest.mark.parametrize("name", ["npz, np.load", "uncompressed memmap", "zarr-python, a loop"])
def test_patches_kept_in_memory_against(name: str, corpus: Corpus, kept: Patches, benchmark: Callable) -> None:
    """As `data.resident=ram`, which `auto` chooses where half of the free memory holds the decoded corpus."""
    rival = READERS[name]
    read, rng = rival.make(corpus), np.random.default_rng(2)
    num = formats.few(corpus) if rival.make is readers.npz_loop else len(corpus)

    def theirs() -> None:
        for _ in range(rival.batches):
            read(rng.integers(0, num, BATCH))

    compare(f"kept in RAM: {name}", rival, theirs, our_pass(kept, corpus), benchmark)


def test_patches_kept_in_memory_against_reading_them(corpus: Corpus, kept: Patches, ours: RawPipeline, benchmark: Callable) -> None:
    compare("kept in RAM: our reader", Rival(RawPipeline, None, batches=OUR_BATCHES), our_pass(ours, corpus), our_pass(kept, corpus), benchmark)


@pytest.mark.parametrize("name", STREAMS)
def test_reading_against_workers(name: str, corpus: Corpus, ours: RawPipeline, benchmark: Callable) -> None:
    rival = STREAMS[name]
    require(rival)
    one_pass = rival.make(corpus, batches=rival.batches)
    assert one_pass() == rival.batches * BATCH
    compare(name, rival, one_pass, our_pass(ours, corpus), benchmark)
