"""Where the loader's time goes: reading, decoding, views, and what training pays for it; against a loop written by hand in C.

Run `pytest bench/bench_loader_parts.py --benchmark-enable -s`. The corpus is that of bench_loader.py, 2 threads. The loop in C
(loaders/bare.c) has files open and tables made, and calls the Blosc and crc32c that numcodecs and google-crc32c call.
What training pays is measured as `dsengine train` runs: `GOMP_SPINCOUNT=10000 pytest bench/bench_loader_parts.py -k pays ...` (`cli.rest_sooner`).
"""

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from loaders import formats
from loaders.bare import BareLoop
from paired import paired_ratio, paired_times

from dsengine import config as configuration
from dsengine.corpus import Corpus
from dsengine.data.layout import chunk_layout
from dsengine.data.loader import Loader
from dsengine.data.pipeline import RawPipeline
from dsengine.data.sample import Batch, sized
from dsengine.dist import SOLO
from dsengine.engine import plan
from dsengine.engine.launch import keep_big_blocks
from dsengine.engine.optim import make_optimizer
from dsengine.engine.precision import place, view_dtype
from dsengine.engine.step import Step
from dsengine.engine.train import fresh_method
from dsengine.nn.norm import set_groups

BATCH, THREADS, BATCHES, STEPS, PAIRS = 64, 2, 16, 4, 30
# (crc32c compared, files read or already in memory, decoded)
BARE = {"read, check, decode": (True, False, True), "read, decode": (False, False, True), "read alone": (False, False, False),
        "decode alone": (False, True, True)}


@pytest.fixture(scope="module")
def corpus(request: pytest.FixtureRequest) -> Corpus:
    """The bench corpus, its shards in the page cache."""
    made = formats.bench_corpus(formats.asked_mb(request.config.getoption("benchmark_enable")))
    for path in shards(made):
        path.read_bytes()
    return made


@pytest.fixture(scope="module")
def ours(corpus: Corpus) -> Iterator[RawPipeline]:
    """What the loader reads with."""
    with RawPipeline(layouts(corpus), max_batch=BATCH, num_threads=THREADS) as pipeline:
        yield pipeline


def layouts(corpus: Corpus) -> list:
    return [chunk_layout(array, root=corpus.path) for array in corpus.arrays.values()]


def shards(corpus: Corpus) -> list[Path]:
    return [path for name in corpus.arrays for path in (corpus.path / name / "c").rglob("*") if path.is_file()]


def passes(corpus: Corpus, read: Callable[[np.ndarray], object]) -> Callable[[], None]:
    """Some batches of random patches."""
    rng = np.random.default_rng(0)

    def one_pass() -> None:
        for _ in range(BATCHES):
            read(rng.integers(0, len(corpus), BATCH))

    return one_pass


def leased(pipeline: RawPipeline) -> Callable[[np.ndarray], None]:
    def read(ids: np.ndarray) -> None:
        with pipeline.lease(ids):
            pass

    return read


@pytest.mark.parametrize("form", BARE)
def test_share_of_a_loop_in_c(form: str, corpus: Corpus, ours: RawPipeline, tmp_path: Path, benchmark: Callable) -> None:
    """Reading alone and decoding alone say which of them bounds the whole."""
    crc, in_memory, decode = BARE[form]
    bare = BareLoop(layouts(corpus), tmp_path, num_threads=THREADS, crc=crc, in_memory=in_memory, decode=decode)
    slabs = [np.empty((BATCH, *layout.patch_shape), np.int16) for layout in layouts(corpus)]
    if decode:
        ids = np.arange(BATCH)
        bare.read(ids, slabs)
        with ours.lease(ids) as raw:
            assert all(np.array_equal(mine.numpy(), theirs) for mine, theirs in zip(raw, slabs, strict=True))
    mine, theirs = passes(corpus, leased(ours)), passes(corpus, lambda ids: bare.read(ids, slabs))
    times = paired_times(theirs, mine, pairs=15 if benchmark.enabled else 1)
    bare.close()
    rate = BATCHES * BATCH / float(np.median(times.a))
    print(f"\n| C loop: {form} | {rate:,.0f} patches/s | ours, which reads, checks and decodes, has {times.ratio()} of that rate |")
    benchmark.pedantic(mine, rounds=3)


def test_cold_files(corpus: Corpus, ours: RawPipeline, benchmark: Callable) -> None:
    """Pages dropped by posix_fadvise before each pass, which needs no privilege; the disk decides."""
    seconds = []
    for _ in range(3 if benchmark.enabled else 1):
        for path in shards(corpus):
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        passes(corpus, leased(ours))()
        seconds.append(time.perf_counter() - start)
    print(f"\n| cold files | {BATCHES * BATCH / float(np.median(seconds)):,.0f} patches/s |")
    benchmark.pedantic(passes(corpus, leased(ours)), rounds=3)


def job(corpus: Corpus, device: torch.device) -> tuple[configuration.RunConfig, tuple]:
    """CSF of a ResNet18, as `dsengine train` would run it on this machine, and its views."""
    settings = {"corpus": str(corpus.path), "encoder": "resnet18", "train": {"batch_size": 16 if device.type == "cpu" else 256}}
    config = plan.complete(configuration.resolve(settings), corpus, ranks=1, device=device)
    return config, sized(fresh_method(config, corpus.bands).views, config.data.size)


def test_views_without_training(corpus: Corpus, benchmark: Callable) -> None:
    """The whole loader: read, decode, two views of CSF at full strength."""
    _, views = job(corpus, torch.device("cpu"))
    with Loader(corpus, views, BATCH, level=1.0, num_threads=THREADS) as loader:
        next(loader)

        def some() -> None:
            for _ in range(BATCHES):
                next(loader)

        benchmark.pedantic(some, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        print(f"\n| whole loader, two views of 14 x {views[0].size} x {views[0].size} fp32 | {BATCHES * BATCH / benchmark.stats.stats.median:,.0f} samples/s |")


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))])
@pytest.mark.parametrize("kept", ["in files", "while RAM fills", "in RAM"])
def test_what_training_pays_for_loading(corpus: Corpus, benchmark: Callable, kind: str, kept: str) -> None:
    """Steps on batches of the loader against steps on as many batches that lie in memory. Each is used once: steps on the same ones over and
    over are 2 or 3 % faster, for they are soon learned by heart and most of their gradients are zeros."""
    device = torch.device(kind)
    if kind == "cpu":
        keep_big_blocks()  # as every run on CPU has it; last in this file, so that no other figure is touched
    config, views = job(corpus, device)
    method = place(fresh_method(config, corpus.bands), config.train.precision, device)
    set_groups(method, config.train.bn_group, config.train.batch_size)
    step = Step(method, make_optimizer(method, config.train), precision=config.train.precision, world=SOLO)
    loading = dict(dtype=view_dtype(config.train.precision), num_threads=config.data.threads, prefetch=config.data.prefetch, device=device)
    pairs = PAIRS if benchmark.enabled else 1
    with Loader(corpus, views, config.train.batch_size, seed=1, **loading) as other:  # not the one whose first epoch may be what is timed
        made = [cloned(batch) for batch in islice(other, (pairs + 2) * STEPS)]
    with Loader(corpus, views, config.train.batch_size, resident="none" if kept == "in files" else "auto", **loading) as loader:
        for _ in range(2 * loader.steps_per_epoch if kept == "in RAM" and benchmark.enabled else 0):
            next(loader)
        shape, taken = tuple(made[0].views[0].shape), iter(made)
        waited: list[float] = []

        def finish() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()

        def with_loader() -> None:
            for _ in range(STEPS):
                start = time.perf_counter()
                batch = next(loader)
                waited.append(time.perf_counter() - start)
                step(batch, lr=1e-4)
            finish()

        def in_memory() -> None:
            for _ in range(STEPS):
                step(next(taken), lr=1e-4)
            finish()

        ratio = paired_ratio(with_loader, in_memory, pairs=pairs)
        benchmark.pedantic(in_memory, rounds=1)
    print(f"\n| training on {kind}, {shape} twice, {config.train.precision}, patches {kept} ({loader.tier.kind}) | {ratio} of the time "
          f"with batches in memory | waited {np.median(waited) * 1e3:.2f} ms a step, prefetch {loader.prefetch} | "
          f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', 'unset')} |")


def cloned(batch: Batch) -> Batch:
    """In memory of its own."""
    return batch._replace(views=tuple(view.clone() for view in batch.views))
