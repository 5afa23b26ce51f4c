"""Reading random patches against zarr-python patch by patch, hot page cache, the same patches on both sides.

Run `pytest bench/bench_loader.py --benchmark-enable -s`. The ratio is zarr-python's time over ours, paired and interleaved.
"""

import ctypes
import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from paired import paired_ratio

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.synth import synthesize
from dsengine.data.layout import chunk_layout
from dsengine.data.loader import Loader
from dsengine.data.patches import PatchReader
from dsengine.data.pipeline import RawPipeline
from dsengine.data.sample import View

BATCH, NUM, THREADS, STEPS = 64, 512, 2, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """512 synthetic patches of 14 x 128 x 128 in the page cache."""
    return open_corpus(synthesize(tmp_path_factory.mktemp("bench") / "corpus", num_patches=NUM, size=128, seed=0))


def random_batches() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.permutation(NUM)[:BATCH]


def per_patch(corpus: Corpus, ids: np.ndarray) -> list[np.ndarray]:
    """What a plain dataset does: index the array once a sample, then collate."""
    return [np.stack([array[int(k)] for k in ids]) for array in corpus.arrays.values()]


def report(name: str, ours: Callable[[], object], theirs: Callable[[], object], *, num_patches: int, patch_bytes: int) -> None:
    ratio = paired_ratio(theirs, ours, pairs=30)
    before = time.perf_counter()
    for _ in range(10):
        ours()
    rate = 10 * num_patches / (time.perf_counter() - before)
    print(f"\n{name}: {ratio.median:.2f} x zarr-python per patch [{ratio.low:.2f}, {ratio.high:.2f}], "
          f"{rate:.0f} patches/s, {rate * patch_bytes / 1e6:.0f} MB/s of int16")


def patch_bytes(corpus: Corpus) -> int:
    return sum(chunk_layout(array, root=corpus.path).patch_bytes for array in corpus.arrays.values())


def test_reading_and_decoding_against_zarr_python_per_patch(corpus: Corpus, benchmark: Callable) -> None:
    layouts = [chunk_layout(array, root=corpus.path) for array in corpus.arrays.values()]
    outs = [np.empty((BATCH, *layout.patch_shape), dtype=np.int16) for layout in layouts]
    reader, mine, other = PatchReader(layouts, num_threads=THREADS), random_batches(), random_batches()
    ids = np.arange(NUM)[::8]
    reader.read(ids, outs)
    for out, want in zip(outs, per_patch(corpus, ids), strict=True):
        np.testing.assert_array_equal(out, want)
    ours = lambda: reader.read(next(mine), outs)  # noqa: E731
    report("chunks + decode", ours, lambda: per_patch(corpus, next(other)), num_patches=BATCH, patch_bytes=patch_bytes(corpus))
    benchmark.pedantic(ours, rounds=10)
    reader.close()


def test_the_dali_pipeline_against_zarr_python_per_patch(corpus: Corpus, benchmark: Callable) -> None:
    layouts = [chunk_layout(array, root=corpus.path) for array in corpus.arrays.values()]
    mine, other = random_batches(), random_batches()
    with RawPipeline(layouts, max_batch=BATCH, num_threads=THREADS) as pipeline:
        def ours() -> None:
            with pipeline.lease(next(mine)):
                pass

        with pipeline.lease(np.arange(BATCH)) as raw:
            for tensor, want in zip(raw, per_patch(corpus, np.arange(BATCH)), strict=True):
                np.testing.assert_array_equal(tensor.numpy(), want)
        report("pipeline", ours, lambda: per_patch(corpus, next(other)), num_patches=BATCH, patch_bytes=patch_bytes(corpus))
        benchmark.pedantic(ours, rounds=10)


@pytest.mark.parametrize("allocator", ["as it comes", "big blocks kept"])
def test_the_loader_without_augmentation_against_zarr_python_per_patch(corpus: Corpus, benchmark: Callable, allocator: str) -> None:
    """Four batches from a cold start to the joined threads, z-scored float32 of the whole patch; the other side only reads.

    The views are fresh memory each time. Where the process gives big blocks back, faulting them in again is most of the work.
    """
    if allocator == "big blocks kept":  # for both sides, and for the rest of the process: hence last
        libc = ctypes.CDLL(None)
        assert libc.mallopt(-4, 0) == 1 and libc.mallopt(-1, 2**31 - 1) == 1  # M_MMAP_MAX, M_TRIM_THRESHOLD
    loader = Loader(corpus, (View(size=128),), BATCH, split="all", num_threads=THREADS)
    batch, other = next(loader), random_batches()
    raw = np.concatenate(per_patch(corpus, batch.sample_id.numpy()), axis=1)
    contract = corpus.contract()
    scale, offset, mean, std = (np.array(x)[:, None, None] for x in (contract.scale, contract.offset, contract.mean, contract.std))
    want = np.where(raw == contract.nodata, 0, (raw * scale + offset - mean) / std)
    np.testing.assert_allclose(batch.views[0].numpy(), want, atol=1e-5 * np.abs(want).max())

    def ours() -> None:
        loader.close()
        for _ in itertools.islice(loader, STEPS):
            pass
        loader.close()

    def theirs() -> None:
        for ids in itertools.islice(other, STEPS):
            per_patch(corpus, ids)

    report(f"loader, {allocator}", ours, theirs, num_patches=STEPS * BATCH, patch_bytes=patch_bytes(corpus))
    benchmark.pedantic(ours, rounds=10)
