"""What the quality step adds to a build: process time per patch of 128 px, 12 + 2 bands, one core.

Run `pytest bench/bench_quality.py --benchmark-enable -s`. What would move the figures: `build.clouds.STEP`, and in `build.coregistration` the
three Fourier transforms, which are a third of it. The bound is 1 ms.
"""

import time
from collections.abc import Callable

import numpy as np

from dsengine.corpus.build.quality import COLUMNS, measure
from dsengine.corpus.schema import standard_layout
from dsengine.corpus.synth import make_patch

NUM = 64


def test_cloud_and_shift_of_a_shard(benchmark: Callable) -> None:
    patches = [make_patch(0, row, 128) for row in range(NUM)]
    arrays = {name: np.stack([getattr(patch, name) for patch in patches]) for name in ("s2", "s1")}
    bands, unknown = standard_layout(128).bands(), dict.fromkeys(COLUMNS, np.full(NUM, np.nan))
    found = benchmark(lambda: measure(arrays, bands, unknown))
    truth = np.array([patch.cloud_fraction for patch in patches])
    assert np.nanmax(np.abs(found.cloud_fraction - truth)) < 0.15
    start = time.process_time()
    for _ in range(5):
        measure(arrays, bands, unknown)
    per_patch_ms = (time.process_time() - start) / (5 * NUM) * 1e3
    print(f"\n{per_patch_ms:.2f} ms of processor time per patch")
    assert not benchmark.stats or per_patch_ms < 1
