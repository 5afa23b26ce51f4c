"""What the learning tests judge by: whole clusters held out and drawn, and the closed form of leaving samples out."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import learning_cases as cases  # noqa: E402
from probe import _left_out, advantage  # noqa: E402

import dsengine
from dsengine.corpus.synth import synthesize
from dsengine.corpus.synth.place import CLUSTER
from dsengine.corpus.synth.series import synthesize_series


@pytest.mark.parametrize("kind", ["images", "pixels", "series"])
def test_no_cluster_is_trained_on_and_judged_by(tmp_path: Path, kind: str) -> None:
    made = (synthesize(tmp_path / "c", num_patches=24 * CLUSTER, size=16, seed=2, world=3) if kind == "images"
            else synthesize_series(tmp_path / "c", kind=kind, num_rows=24 * CLUSTER))
    by_block = {split: set(dsengine.open_corpus(made).rows(split) // CLUSTER) for split in ("train", "val", "test")}
    corpus = dsengine.open_corpus(cases.apart(made, (0.5, 0.2, 0.3)))
    found = {split: set(corpus.rows(split) // CLUSTER) for split in ("train", "val", "test")}
    assert by_block["train"] & (by_block["val"] | by_block["test"])  # what the usual split does to a cluster of 48 km
    assert all(found.values()) and sum(map(len, found.values())) == 24 == len(set.union(*found.values()))


def test_the_bootstrap_draws_clusters_whole() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.random(40) < 0.7, rng.random(40) < 0.5
    alike = [np.repeat(x, 25) for x in (ours, theirs)]  # 1,000 samples that say no more than 40
    assert advantage(*alike, np.repeat(np.arange(40), 25)) == pytest.approx(advantage(ours, theirs, np.arange(40)))
    gain, lower = advantage(*alike, np.arange(1000))
    assert gain == pytest.approx(ours.mean() - theirs.mean()) and lower > advantage(*alike, np.repeat(np.arange(40), 25))[1] + 0.05
    assert advantage(ours, ours, np.arange(40)) == (0, 0)


def test_leaving_samples_out_in_closed_form_is_leaving_them_out() -> None:
    rng = np.random.default_rng(4)
    x, label = np.c_[rng.normal(size=(120, 10)), np.ones(120)], rng.integers(0, 3, 120)
    x[:, 0] += label
    y = np.eye(3)[label] * 2 - 1
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    for strength in (0.1, 10.0, 1000.0):
        kept = [np.arange(120) != row for row in range(120)]
        fits = [np.linalg.solve(x[k].T @ x[k] + strength * np.eye(11), x[k].T @ y[k]) for k in kept]
        assert _left_out(u, s, y, strength) == np.mean([np.argmax(x[row] @ fit) == label[row] for row, fit in enumerate(fits)])
