"""Decoding on a GPU, GB/s of decoded output: the inflater alone, unfilter alone, both, and from the page cache through staging and copy.

Run `pytest bench/bench_gpu_decode.py --benchmark-enable -s`; everything but staging is skipped without a GPU. Aim on an H200: LZ4 + unfilter 80 GB/s.
A lower figure of one part says what to change: the grid of unfilter_streams, the inflater, or threads that stage.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from paired import paired_ratio

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.synth import synthesize
from dsengine.data import frames
from dsengine.data.device import MAKERS, Chosen, DevicePipeline
from dsengine.data.layout import ChunkLayout, chunk_layout
from dsengine.data.pipeline import open_pipeline
from dsengine.data.resident import DeviceStore
from dsengine.data.staging import Slab, Staged, Stager, expand

NUM, BATCH = 1024, 512
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Ready(NamedTuple):
    """A batch staged and, where there is a GPU, copied."""

    corpus: Corpus
    layouts: list[ChunkLayout]
    staged: Staged
    buffer: torch.Tensor


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """Half of 1,024 synthetic patches of 14 x 128 x 128 (16 on a machine without a GPU, where speed is not the question)."""
    num = NUM if torch.cuda.is_available() else 16
    corpus = open_corpus(synthesize(tmp_path_factory.mktemp("bench") / "corpus", num_patches=num, size=128, seed=0))
    layouts = [chunk_layout(array, root=corpus.path) for array in corpus.arrays.values()]
    stager, slab = Stager(layouts, num_threads=2), Slab(pinned=torch.cuda.is_available())
    staged = stager.stage(np.random.default_rng(0).permutation(num)[:BATCH], slab)
    stager.close()
    used = slab.tensor[:staged.num_bytes]
    return Ready(corpus, layouts, staged, used.cuda() if torch.cuda.is_available() else used)


def milliseconds(work: Callable[[], object], *, rounds: int = 30) -> np.ndarray:
    """Device time of each round, after a few that do not count."""
    for _ in range(5):
        work()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, stop in marks:
        start.record()
        work()
        stop.record()
    torch.cuda.synchronize()
    return np.array([start.elapsed_time(stop) for start, stop in marks])


def report(name: str, times_ms: np.ndarray, num_bytes: int) -> None:
    low, middle, high = np.percentile(times_ms, [25, 50, 75])
    print(f"\n{name}: {num_bytes / middle / 1e6:.1f} GB/s of decoded output, {middle:.3f} ms [{low:.3f}, {high:.3f}] for {num_bytes / 1e6:.0f} MB "
          f"on {torch.cuda.get_device_name()}")


def expected(ready: Ready, name: str) -> tuple[object, list[torch.Tensor]]:
    """An inflater by its name, or a skip, checked against a whole batch of zarr-python."""
    if name == "nvCOMP":
        pytest.importorskip("nvidia.nvcomp")
    inflate = MAKERS[name](torch.device("cuda", torch.cuda.current_device()))
    ids = np.random.default_rng(0).permutation(len(ready.corpus))[:BATCH]
    for out, array in zip(expand(ready.buffer, ready.staged, inflate), ready.corpus.arrays.values(), strict=True):
        np.testing.assert_array_equal(out.cpu().numpy(), array[:][ids])
    return inflate, inflate(ready.buffer, ready.staged.groups, ready.staged.void)


@needs_gpu
@pytest.mark.parametrize("name", MAKERS)
def test_inflate_and_unfilter_on_the_gpu(ready: Ready, benchmark: Callable, name: str) -> None:
    inflate, inflated = expected(ready, name)
    staged = ready.staged
    num_inflated = sum(x.numel() for x in inflated)
    report(f"{name} inflate alone", milliseconds(lambda: inflate(ready.buffer, staged.groups, staged.void)), num_inflated)
    report("unfilter_streams alone", milliseconds(lambda: expand(ready.buffer, staged, lambda *_: inflated)), staged.out_bytes)
    both = lambda: expand(ready.buffer, staged, inflate)  # noqa: E731
    report(f"{name} inflate + unfilter_streams", milliseconds(both), staged.out_bytes)
    benchmark.pedantic(lambda: (both(), torch.cuda.synchronize()), rounds=10)


@needs_gpu
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("num_threads", [1, 4, 8, 16])
def test_from_the_page_cache_to_the_gpu(ready: Ready, benchmark: Callable, name: str, num_threads: int) -> None:
    inflate, _ = expected(ready, name)
    rng, device = np.random.default_rng(1), torch.device("cuda", torch.cuda.current_device())
    with DevicePipeline(ready.layouts, num_threads=num_threads, device=device, chosen=Chosen({frames.LZ4: inflate}, name)) as pipeline:
        def batch() -> None:
            with pipeline.lease(rng.permutation(len(ready.corpus))[:BATCH]):
                pass

        report(f"{name}, {num_threads} threads, page cache to GPU", milliseconds(batch, rounds=10), ready.staged.out_bytes)
        benchmark.pedantic(lambda: (batch(), torch.cuda.synchronize()), rounds=10)


@needs_gpu
def test_the_copy_to_the_gpu(ready: Ready, benchmark: Callable) -> None:
    host, target = torch.empty(ready.buffer.numel(), dtype=torch.uint8, pin_memory=True), torch.empty_like(ready.buffer)
    times = milliseconds(lambda: target.copy_(host, non_blocking=True))
    print(f"\none copy from page-locked memory: {host.numel() / np.median(times) / 1e6:.1f} GB/s of compressed bytes")
    benchmark.pedantic(lambda: (target.copy_(host), torch.cuda.synchronize()), rounds=5)


@needs_gpu
@pytest.mark.parametrize("name", MAKERS)
def test_loading_beside_a_step(ready: Ready, benchmark: Callable, name: str) -> None:
    """Copy and decode on a stream of their own while products of matrices keep the device busy: 1.00 is a loader that costs a step nothing."""
    inflate, _ = expected(ready, name)
    rng, device, side = np.random.default_rng(1), torch.device("cuda", torch.cuda.current_device()), torch.cuda.Stream()
    x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    with DevicePipeline(ready.layouts, num_threads=16, device=device, chosen=Chosen({frames.LZ4: inflate}, name)) as pipeline:
        def step() -> None:
            for _ in range(60):
                x @ x
            torch.cuda.synchronize()

        def both() -> None:
            for _ in range(60):
                x @ x
            with torch.cuda.stream(side), pipeline.lease(rng.permutation(len(ready.corpus))[:BATCH]):
                pass
            torch.cuda.synchronize()

        ratio = paired_ratio(both, step, pairs=15)
        print(f"\n{name}: steps with a batch of {BATCH} loaded beside each take {ratio} of the time of steps alone")
        benchmark.pedantic(both, rounds=5)


@needs_gpu
def test_gather_of_patches_kept_on_the_gpu(ready: Ready, benchmark: Callable) -> None:
    device, ids = torch.device("cuda", torch.cuda.current_device()), np.arange(len(ready.corpus))
    store = DeviceStore(ready.layouts, len(ids), device)
    with open_pipeline(ready.layouts, max_batch=BATCH, num_threads=2, device=device) as source:
        for first in range(0, len(ids), BATCH):
            store.add(source, ids[first:first + BATCH], slice(first, min(first + BATCH, len(ids))))
    rng = np.random.default_rng(1)
    report("gather of kept patches", milliseconds(lambda: store.get(rng.permutation(len(ids))[:BATCH])), ready.staged.out_bytes)
    benchmark.pedantic(lambda: (store.get(ids[:BATCH]), torch.cuda.synchronize()), rounds=10)


def test_staging_on_the_cpu(ready: Ready, benchmark: Callable) -> None:
    """Read, crc32c and parse of a batch, the CPU's whole share of the work."""
    stager, slab = Stager(ready.layouts, num_threads=2), Slab(pinned=False)
    ids = np.arange(min(64, len(ready.corpus)))
    staged = stager.stage(ids, slab)
    benchmark.pedantic(lambda: stager.stage(ids, slab), rounds=10)
    if benchmark.stats is not None:
        rate = len(ids) / benchmark.stats.stats.median
        print(f"\nstaging, 2 threads: {rate:.0f} patches/s, {rate * staged.out_bytes / len(ids) / 1e9:.2f} GB/s of decoded output")
    stager.close()
