"""Batches with their class maps, kept in memory beside the patches, against zarr-python reading the maps of each batch.

Run `pytest bench/bench_labels.py --benchmark-enable -s`. What would move the figure: `data.labels.LabelReader`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from paired import paired_times

import dsengine
from dsengine.corpus.synth import synthesize
from dsengine.data.loader import Loader
from dsengine.data.sample import View

BATCH = 64


def test_batches_with_class_maps(tmp_path: Path, benchmark: Callable) -> None:
    """14 x 64 x 64 patches in RAM, crops of 32 px; an epoch a pass, the one that fills the memory not timed."""
    corpus = dsengine.open_corpus(synthesize(tmp_path / "corpus", num_patches=1024 if benchmark.enabled else 256, size=64))
    steps, maps = len(corpus.rows("train")) // BATCH, corpus.labels["landcover"]
    make = {"resident": "ram", "prefetch": 0, "num_threads": 1}
    with Loader(corpus, (View(size=32),), BATCH, label="landcover", **make) as ours, Loader(corpus, (View(size=32),), BATCH, **make) as bare:

        def mine() -> None:
            for _ in range(steps):
                next(ours)

        def theirs(read: bool = True) -> None:
            for _ in range(steps):
                ids = next(bare).sample_id.numpy()
                if read:
                    maps.oindex[ids]

        times = paired_times(theirs, mine, pairs=15 if benchmark.enabled else 1)
        without = paired_times(mine, lambda: theirs(read=False), pairs=15 if benchmark.enabled else 1)
        ms = [float(np.median(part)) / steps * 1e3 for part in (times.a, times.b, without.b)]
        print(f"\n| class maps by zarr-python | {times.ratio()} times faster | {ms[0]:.1f} ms a batch of {BATCH} | ours {ms[1]:.1f} | without labels {ms[2]:.1f} |")
        benchmark.extra_info.update(ratio=times.ratio().median, their_ms=ms[0], our_ms=ms[1], without_ms=ms[2])
        benchmark.pedantic(mine, rounds=3)
