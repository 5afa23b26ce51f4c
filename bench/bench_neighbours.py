"""The neighbour table of 100,000 points, uniform over land's area and clustered: time, peak memory, and scikit-learn's BallTree beside it.

Run `pytest bench/bench_neighbours.py --benchmark-enable -s`. The design's bound is 2 minutes and 2 GB on 2 cores. What would move the figures:
`corpus.neighbours.find_pairs` (the block size, the sort of a row) and `_Stream` (the codec).
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import BallTree

from dsengine.corpus.neighbours import RADIUS_KM, find_pairs
from dsengine.corpus.sphere import EARTH_RADIUS_KM

NUM = 100_000
LAND_SHARE = 135 / 510  # of the globe, million km2 without Antarctica


def land(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points uniform in area over stripes that have the share of land."""
    rng = np.random.default_rng(0)
    lon = rng.uniform(0, 90 * LAND_SHARE, count) + 90 * rng.integers(0, 4, count) - 180
    return lon, np.degrees(np.arcsin(rng.uniform(-1, 1, count)))


def clustered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """250 scenes of about 100 km, 400 patches each: 16 times the pairs."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 250, count)
    lat = np.degrees(np.arcsin(rng.uniform(-0.9, 0.9, 250)))[scene]
    return (rng.uniform(-180, 180, 250)[scene] + rng.normal(0, 0.2, count) / np.cos(np.radians(lat)), lat + rng.normal(0, 0.2, count))


PLACES = {"land": land, "clustered": clustered}
IN_A_PROCESS = """
import resource, sys, time
sys.path.insert(0, {bench!r})
from bench_neighbours import NUM, PLACES, RADIUS_KM, find_pairs
from dsengine.corpus.neighbours import _Stream
from pathlib import Path
lon, lat = PLACES[{name!r}](NUM)
start, pairs = time.perf_counter(), 0
streams = [_Stream(Path({out!r}) / part, dtype) for part, dtype in (("indices", "int32"), ("distance_km", "float32"))]
for block in find_pairs(lon, lat, radius_km=RADIUS_KM):
    streams[0].append(block.indices)
    streams[1].append(block.km)
    pairs += len(block.km)
for stream in streams:
    stream.close()
print(pairs, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.parametrize("name", PLACES)
def test_a_hundred_thousand_points(name: str, tmp_path: Path) -> None:
    code = IN_A_PROCESS.format(bench=str(Path(__file__).parent), name=name, out=str(tmp_path))
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    pairs, seconds, peak_mib = map(float, done.stdout.split())
    print(f"\n{name}: {NUM:,} points, {pairs:,.0f} pairs, {seconds:.1f} s, peak {peak_mib:.0f} MiB with the interpreter")
    assert seconds < 120 and peak_mib < 2000


def test_pairs_against_balltree(benchmark: Callable) -> None:
    lon, lat = land(NUM // 5)

    def ours() -> int:
        return sum(len(block.km) for block in find_pairs(lon, lat, radius_km=RADIUS_KM))

    start = time.perf_counter()
    radians = np.radians(np.stack([lat, lon], 1))
    found = BallTree(radians, metric="haversine").query_radius(radians, RADIUS_KM / EARTH_RADIUS_KM, return_distance=True, sort_results=True)[0]
    theirs_s = time.perf_counter() - start
    assert benchmark(ours) == sum(map(len, found)) - len(lon)
    if benchmark.stats:
        print(f"\n{NUM // 5:,} points: BallTree {theirs_s:.2f} s, ours {benchmark.stats.stats.median:.2f} s")
