"""What an evaluation costs: features a second, and each probe on features that are there.

Run `pytest bench/bench_evaluate.py --benchmark-enable -s`. Feature extraction reads, decodes, augments nothing and encodes; beside it stands the
encoder alone on a batch in memory, and the share is what moves when the way from the corpus to the encoder gets slower. Probes get features of five
overlapping classes; linear and k-nn are checked against scikit-learn's own. On a CPU 64 patches of 64 px, on a GPU 4,096 of 128 px.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.neighbors import KNeighborsClassifier

import dsengine
from dsengine.corpus.synth import synthesize
from dsengine.evaluate import bootstrap, knn, linear, metrics, scene
from dsengine.evaluate.features import features
from dsengine.evaluate.probes import Part
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.shown import shown
from dsengine.evaluate.subjects import untrained

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PATCHES, SIZE = (4096, 128) if DEVICE.type == "cuda" else (64, 64)
ROWS, WIDTH = (10_000, 2048) if DEVICE.type == "cuda" else (1500, 512)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dsengine.corpus.Corpus:
    return dsengine.open_corpus(synthesize(tmp_path_factory.mktemp("bench") / "corpus", num_patches=PATCHES, size=SIZE))


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    x, y = make_blobs(3 * ROWS, n_features=WIDTH, centers=5, cluster_std=30.0, random_state=0)
    return [Part(x[k::3].astype(np.float32), y[k::3].astype(np.int64)) for k in range(3)]


def _encoder_alone(corpus: dsengine.corpus.Corpus) -> float:
    """Patches a second of the encoder on one batch that lies on the device."""
    encoder = untrained({"name": "resnet18"}, corpus.contract(), seed=0).encoder.to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(64, len(corpus.bands), SIZE, SIZE, device=DEVICE).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            encoder(x)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return 64 / best


@pytest.mark.parametrize("kind", ["pooled", "maps"])
def test_features_a_second(benchmark: object, corpus: dsengine.corpus.Corpus, tmp_path: Path, kind: str) -> None:
    subject, trials = untrained({"name": "resnet18"}, corpus.contract(), seed=0), iter(range(100))
    file = benchmark.pedantic(lambda: features(subject, corpus, shown(subject, corpus), np.arange(PATCHES), folder=tmp_path / str(next(trials)),
                                               progress=Progress(quiet=True), device=DEVICE, dense=kind == "maps"), rounds=3)
    assert file.x.shape[0] == PATCHES and np.isfinite(file.x).all()
    if benchmark.stats:
        rate = PATCHES / benchmark.stats.stats.median
        alone = _encoder_alone(corpus)
        benchmark.extra_info.update(patches_per_s=rate, encoder_alone_per_s=alone, mib=file.path.stat().st_size / 2**20)
        print(f"\n{kind}: {rate:.1f} patches/s of {SIZE} px, {rate / alone:.0%} of the encoder alone ({alone:.1f})")


def test_linear_probe(benchmark: object, parts: list[Part]) -> None:
    train, val, test = parts
    verdict = benchmark.pedantic(lambda: linear.fit(train, val, test.x, 5), rounds=1)
    assert (verdict.predicted == test.y).mean() > 0.9


def test_nearest_neighbours(benchmark: object, parts: list[Part]) -> None:
    train, val, test = parts
    found = benchmark.pedantic(lambda: knn.predictions(train, test.x, [1, 5, 10, 20, 50], 5), rounds=3)
    expected = KNeighborsClassifier(20, metric="cosine", algorithm="brute").fit(train.x, train.y).predict(test.x)
    assert (found[3] == expected).mean() > 0.995


def test_small_network(benchmark: object, parts: list[Part]) -> None:
    train, val, test = parts
    verdict = benchmark.pedantic(lambda: scene.fit(train, val, test.x, 5, epochs=20), rounds=1)
    assert (verdict.predicted == test.y).mean() > 0.9


def test_intervals_of_a_thousand_draws(benchmark: object) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (2000, 10, 10))
    found = benchmark.pedantic(lambda: bootstrap.of_counts(counts, lambda n: metrics.per_class(n).iou, num_draws=1000, seed=0), rounds=3)
    assert all(interval.low < interval.value < interval.high for interval in found)
