"""Figures of merit against scikit-learn, on random and on degenerate input, batch by batch and across ranks; their intervals."""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).parent))
from gloo_ranks import load_worker, run_ranks  # noqa: E402

from dsengine.evaluate import bootstrap
from dsengine.evaluate.metrics import Confusion, ScoreList, confusions, per_class, roc_auc, scores

AT = dict(rtol=0, atol=1e-12, equal_nan=True)


def oracle(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """scikit-learn's figures of what has a truth."""
    known = truth >= 0
    t, p = truth[known], predicted[known]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {"accuracy": accuracy_score(t, p)}
        for name, score in (("iou", jaccard_score), ("f1", f1_score)):
            found[f"{name}_weighted"] = score(t, p, average="weighted", zero_division=0)
            found["miou" if name == "iou" else "f1_macro"] = score(t, p, average="macro", zero_division=0)
        return found


@pytest.mark.filterwarnings("ignore:A single label")
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(1, 9), count=st.integers(1, 60), used=st.integers(1, 9), called=st.integers(1, 9))
def test_every_figure_of_counts_is_scikit_learns_also_with_classes_that_are_absent(
        seed: int, num_classes: int, count: int, used: int, called: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, min(used, num_classes), count)
    truth[0] = 0  # something is known
    predicted = rng.integers(0, min(called, num_classes), count)
    counter = Confusion(num_classes)
    for lo in range(0, count, 7):
        counter.add(torch.from_numpy(predicted[lo:lo + 7]), torch.from_numpy(truth[lo:lo + 7]))
    known = truth >= 0
    np.testing.assert_array_equal(counter.counts.numpy(), confusion_matrix(truth[known], predicted[known], labels=range(num_classes)))
    found, expected = counter.scores(), oracle(truth, predicted)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **AT)
    each = per_class(counter.counts.numpy())
    iou = jaccard_score(truth[known], predicted[known], labels=range(num_classes), average=None, zero_division=0)
    np.testing.assert_allclose(np.nan_to_num(each.iou), iou, **AT)


def test_nothing_to_score_is_nan_and_one_class_alone_is_perfect_or_nothing() -> None:
    assert all(math.isnan(value) for value in Confusion(4).scores().values())
    empty = Confusion(3)
    empty.add(torch.zeros(2, 5, 5, dtype=torch.int64), torch.full((2, 5, 5), -1))
    assert all(math.isnan(value) for value in empty.scores().values())
    right, wrong = Confusion(1), Confusion(2)
    right.add(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    wrong.add(torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    assert set(right.scores().values()) == {1.0} and set(wrong.scores().values()) == {0.0}


def test_the_weighted_iou_is_the_sum_of_n_iou_over_the_sum_of_n_by_hand() -> None:
    # Class 0: 4 true, 3 called, 2 hit; class 1: 2 true, 3 called, 1 hit; class 2 absent.
    counts = np.array([[2, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert scores(counts)["iou_weighted"] == pytest.approx((4 * (2 / 5) + 2 * (1 / 4)) / 6, abs=1e-15)
    assert scores(counts)["miou"] == pytest.approx((2 / 5 + 1 / 4) / 2, abs=1e-15)


def test_a_class_that_is_none_is_refused() -> None:
    for predicted, truth in (([3], [0]), ([0], [3]), ([-1], [0]), ([0], [-2])):
        with pytest.raises(ValueError, match=r"\[0, 3\)"):
            confusions(torch.tensor(predicted), torch.tensor(truth), 3)
    assert confusions(torch.tensor([7]), torch.tensor([-1]), 3).sum() == 0  # no truth, nothing to judge


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 50), levels=st.integers(1, 20))
def test_roc_auc_is_scikit_learns_with_ties_and_weights(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth, score, weight = rng.integers(0, 2, count), rng.integers(0, levels, count) / levels, rng.integers(0, 4, count).astype(float)
    truth[:2] = 0, 1
    weight[:2] = 1
    np.testing.assert_allclose(roc_auc(truth, score), roc_auc_score(truth, score), **AT)
    np.testing.assert_allclose(roc_auc(truth, score, weight), roc_auc_score(truth, score, sample_weight=weight), **AT)


def test_roc_auc_of_one_kind_only_or_of_nothing_is_nan() -> None:
    assert math.isnan(roc_auc(np.ones(4), np.arange(4.0))) and math.isnan(roc_auc(np.zeros(4), np.arange(4.0))) and math.isnan(ScoreList().roc_auc())


@pytest.mark.parametrize("sizes", [[5, 8], [0, 7]])
def test_two_ranks_count_and_score_as_one(tmp_path: Path, sizes: list[int]) -> None:
    worker = load_worker("evaluate_ranks")
    ranks = run_ranks("evaluate_ranks", tmp_path, sizes)
    parts = [worker.samples(rank, size) for rank, size in enumerate(sizes)]
    truth, predicted, score = (torch.cat([part[k] for part in parts]).numpy() for k in range(3))
    for rank in ranks:
        known = truth.ravel() >= 0
        np.testing.assert_array_equal(rank["counts"], confusion_matrix(truth.ravel()[known], predicted.ravel()[known], labels=range(worker.CLASSES)))
        for name, value in oracle(truth.ravel(), predicted.ravel()).items():
            np.testing.assert_allclose(rank["scores"][name], value, **AT)
        np.testing.assert_allclose(rank["auc"], roc_auc_score(truth[:, 0, 0] > 1, score), **AT)
        np.testing.assert_array_equal(rank["kept"][1], score)  # in rank order


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        right = rng.random(150) < 0.7
        counts = np.zeros((150, 2, 2))
        counts[np.arange(150), 0, (~right).astype(int)] = 1
        interval, = bootstrap.of_counts(counts, lambda n: scores(n)["accuracy"][:, None], num_draws=300, seed=trial)
        assert interval.value == pytest.approx(right.mean())
        covered += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered / 200 <= 0.985


def test_drawing_whole_places_widens_the_interval_of_samples_that_are_copies() -> None:
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random(20) < 0.6, 25)  # 20 places of 25 equal patches
    counts = np.zeros((500, 2, 2))
    counts[np.arange(500), 0, (~right).astype(int)] = 1
    width = {}
    for unit, groups in (("sample", np.arange(500)), ("place", np.repeat(np.arange(20), 25))):
        low, high = bootstrap.of_counts(bootstrap.summed(counts, groups), lambda n: scores(n)["accuracy"][:, None], num_draws=1000, seed=0)[0][1:]
        width[unit] = high - low
    assert width["place"] == pytest.approx(5 * width["sample"], rel=0.2)  # sqrt(25)


def test_one_group_has_no_interval_and_equal_encoders_do_not_differ() -> None:
    assert all(math.isnan(x) for x in bootstrap.of_counts(np.eye(2)[None], lambda n: scores(n)["accuracy"][:, None], num_draws=10, seed=0)[0][1:])
    interval = bootstrap.of_scores(np.array([0, 1, 1]), np.array([0.1, 0.9, 0.8]), np.arange(3), num_draws=50, seed=0)
    assert interval.value == 1.0 and interval.low == interval.high == 1.0  # draws without a negative have no figure and are left out
