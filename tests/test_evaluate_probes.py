"""Probes against scikit-learn and literal loops: neighbours, logistic regression, the small network; folds and shares of labels."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parent))
from evaluate_cases import planted  # noqa: E402

import dsengine
from dsengine.corpus import Corpus
from dsengine.errors import UsageError
from dsengine.evaluate import folds, knn, linear, scene
from dsengine.evaluate.probes import Part, grouped
from dsengine.evaluate.targets import commonest, of_patches


def blobs(count: int, *, seed: int = 0, spread: float = 4.0) -> list[Part]:
    """Train, val and test of five overlapping classes in 12 dimensions, far from the origin and of unequal scales."""
    x, y = make_blobs(3 * count, n_features=12, centers=5, cluster_std=spread, random_state=seed)
    x = ((x + 20) * np.logspace(-1, 1, 12)).astype(np.float32)
    return [Part(x[k::3], y[k::3].astype(np.int64)) for k in range(3)]


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_neighbours_vote_as_scikit_learns_do(k: int) -> None:
    train, val, test = blobs(120)
    expected = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train.x.astype(np.float64), train.y).predict(test.x)
    np.testing.assert_array_equal(knn.predictions(train, test.x, [k], 5)[0], expected)
    np.testing.assert_array_equal(knn.predictions(train, test.x, [1, 3, 10, 50], 5)[[1, 3, 10, 50].index(k)], expected)


def test_votes_by_similarity_are_sums_of_exponentials() -> None:
    train, _, test = blobs(40)
    found = knn.predictions(train, test.x, [7], 5, temperature=0.07)[0]
    for row, x in enumerate(test.x.astype(np.float64)):
        cosine = train.x @ x / np.linalg.norm(train.x, axis=1) / np.linalg.norm(x)
        votes = np.zeros(5)
        for near in np.argsort(-cosine)[:7]:
            votes[train.y[near]] += np.exp(cosine[near] / 0.07)
        assert found[row] == votes.argmax()


def test_k_is_chosen_on_val_and_a_k_beyond_the_bank_asks_all() -> None:
    train, val, test = blobs(60)
    verdict = knn.vote(train, val, test.x, 5, setting=knn.Setting(k=(1, 5, 20, 1000)))
    models = {k: KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train.x, train.y) for k in (1, 5, 20, 60)}
    accuracy = {k: (model.predict(val.x) == val.y).mean() for k, model in models.items()}
    assert verdict.chosen["val_by_k"] == pytest.approx({str(k): v for k, v in accuracy.items()})
    assert verdict.chosen["k"] == max(accuracy, key=accuracy.get)


def test_the_linear_probe_is_scikit_learns_at_the_best_strength_on_val() -> None:
    train, val, test = blobs(80, spread=7.0)
    strengths = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # beyond these the optimum is so flat that it depends on where L-BFGS began
    verdict = linear.fit(train, val, test.x, 5, max_iter=5000, strengths=strengths)
    scaler = StandardScaler().fit(train.x.astype(np.float64))
    models = {c: LogisticRegression(C=c, max_iter=5000).fit(scaler.transform(train.x.astype(np.float64)), train.y) for c in strengths}
    reached = {c: model.score(scaler.transform(val.x.astype(np.float64)), val.y) for c, model in models.items()}
    curve = verdict.chosen["val_by_strength"]
    assert curve == pytest.approx({f"{c:g}": value for c, value in reached.items()}, abs=1.5 / len(val.y)) and len(set(curve.values())) > 2
    assert f"{verdict.chosen['strength']:g}" == max(curve, key=curve.get)  # of equals the smallest
    assert (verdict.predicted == models[verdict.chosen["strength"]].predict(scaler.transform(test.x.astype(np.float64)))).mean() > 0.98


def test_the_linear_probe_scores_two_classes_and_survives_features_that_do_not_vary() -> None:
    train, val, test = blobs(60)
    two = [Part(np.c_[part.x, np.full(len(part.x), 3.3, np.float32)], (part.y > 1).astype(np.int64)) for part in (train, val, test)]
    verdict = linear.fit(two[0], two[1], two[2].x, 2, figure="roc_auc")
    assert np.isfinite(verdict.score).all() and ((verdict.score > 0) == verdict.predicted).all() and verdict.chosen["val_roc_auc"] > 0.8


def test_the_small_network_of_the_third_paper_learns_what_no_line_parts() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(400, 6)).astype(np.float32) for _ in range(3)]
    train, val, test = (Part(x, ((x[:, 0] * x[:, 1] > 0) + 2 * (x[:, 2] > 0)).astype(np.int64)) for x in images)
    verdict = scene.fit(train, val, test.x, 4, epochs=60, batch=64)
    curve = verdict.chosen["val_by_epoch"]
    straight = linear.fit(train, val, test.x, 4).predicted
    assert f1_score(test.y, verdict.predicted, average="weighted") > 0.85 > 0.7 > f1_score(test.y, straight, average="weighted")
    assert len(curve) == 60 and verdict.chosen["val_f1_weighted"] == max(curve) == curve[verdict.chosen["epoch"] - 1]
    again = scene.fit(train, val, test.x, 4, epochs=60, batch=64)
    np.testing.assert_array_equal(again.predicted, verdict.predicted)


def test_the_small_network_of_resnet50_features_has_the_papers_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = [], torch.nn.Linear
    monkeypatch.setattr(scene.nn, "Linear", lambda a, b: made.append((a, b)) or real(a, b))
    x = np.random.default_rng(0).normal(size=(20, 2048)).astype(np.float32)
    scene.fit(Part(x, np.arange(20) % 10), Part(x, np.arange(20) % 10), x, 10, epochs=1)
    assert made == [(2048, 128), (128, 10)]


def test_confusions_of_groups_are_counted_by_hand() -> None:
    rng = np.random.default_rng(0)
    truth, predicted, groups = rng.integers(0, 3, 90), rng.integers(0, 3, 90), rng.choice([7, 2, 40], 90)
    expected = np.zeros((3, 3, 3), int)
    for t, p, g in zip(truth, predicted, groups):
        expected[[2, 7, 40].index(g), t, p] += 1
    np.testing.assert_array_equal(grouped(truth, predicted, groups, 3), expected)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return dsengine.open_corpus(planted(tmp_path_factory.mktemp("planted") / "corpus"))


@pytest.mark.parametrize("split", ["corpus", "block", "random", "column:source", "leave-out:source"])
def test_folds_part_the_rows_and_keep_units_whole(corpus: Corpus, split: str) -> None:
    rows = np.arange(3, 120)
    made = folds.make_folds(corpus, rows, split=split, fractions=(0.5, 0.25, 0.25), seed=1)
    for fold in made:
        every = np.concatenate([fold.train, fold.val, fold.test])
        assert sorted(every) == rows.tolist() and all(len(part) for part in (fold.train, fold.val, fold.test))
        unit = {"random": np.arange(120), "block": corpus.index.lon, "corpus": corpus.index.lon}.get(split, corpus.index.source.astype(str))
        parts = [set(unit[part]) for part in (fold.train, fold.val, fold.test)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    if split.startswith("leave"):
        assert len(made) == 6 and sorted(np.concatenate([fold.test for fold in made])) == rows.tolist()
        assert all(len(set(corpus.index.source[fold.val])) == len(set(corpus.index.source[fold.test])) == 1 for fold in made)


def test_shares_of_labels_are_nested_and_hold_every_class() -> None:
    rows, classes = np.arange(1000, 1500), np.repeat([0, 1, 2], [480, 15, 5])
    shares = [folds.some(rows, classes, share, seed=3) for share in (0.01, 0.1, 0.5, 1.0)]
    for small, large in zip(shares, shares[1:]):
        assert set(small) < set(large)
    assert shares[3].tolist() == rows.tolist() and [len(share) for share in shares] == [7, 51, 251, 500]
    assert all(set(classes[share - 1000]) == {0, 1, 2} for share in shares)
    assert len(folds.some(rows, None, 0.001, seed=0)) == 2
    assert folds.some(rows, None, 0.3, seed=0).tolist() != folds.some(rows, None, 0.3, seed=1).tolist()
    with pytest.raises(UsageError, match="label_fraction"):
        folds.some(rows, None, 1.5, seed=0)


def test_places_are_blocks_of_a_quarter_degree_and_samples_are_their_own(corpus: Corpus) -> None:
    rows = np.arange(120)
    groups = folds.groups_of(corpus, rows, "sample")
    assert len(set(groups)) == 120
    alone = SimpleNamespace(index=corpus.index._replace(source=np.array([""] * 120, object)), columns={})
    of = folds.groups_of(alone, rows, "place")
    assert all((of[a] == of[b]) == (corpus.index.lon[a] == corpus.index.lon[b]) for a in range(24) for b in range(24, 48))


def test_the_commonest_class_of_a_map_ignores_what_has_none(corpus: Corpus) -> None:
    maps = np.array([[[0, 0, 1], [1, 1, -1]], [[-1, -1, -1], [-1, -1, 2]], [[-1] * 3] * 2, [[0, 1, 1], [0, -1, -1]]])
    assert commonest(maps, 3).tolist() == [1, 2, -1, 0]
    scenes, covers = (of_patches(corpus, name, size=16, where=None) for name in ("scene", "cover"))
    np.testing.assert_array_equal(scenes.classes, covers.classes)  # three quarters of a patch are of its scene
    assert scenes.names == covers.names == ("low", "middle", "high") and scenes.rows.tolist() == list(range(120))
