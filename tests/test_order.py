"""The order of samples: a pure function of (rows, seed, epoch, step, global batch), the same for any number of ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsengine.data.order import batch_ids, epoch_order, local_slice, steps_per_epoch, walk, walk_once

SEEDS = st.integers(0, 2**32 - 1)
FROZEN = [[0, 2, 1, 5, 4, 3, 6, 7], [5, 3, 7, 2, 4, 1, 0, 6]]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_rank_count_sees_the_same_global_batches_and_each_sample_once_an_epoch(world: int) -> None:
    rows, batch = np.arange(1000, 1064), 16
    for epoch in range(3):
        seen = []
        for k in range(steps_per_epoch(len(rows), batch)):
            step = epoch * 4 + k
            found_epoch, ids = batch_ids(rows, seed=5, step=step, global_batch=batch)
            assert found_epoch == epoch
            parts = [ids[local_slice(batch, rank, world)] for rank in range(world)]
            assert {len(p) for p in parts} == {batch // world}
            np.testing.assert_array_equal(np.concatenate(parts), ids)
            seen.append(ids)
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), rows)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, num_rows=st.integers(1, 300), data=st.data())
def test_a_batch_is_a_pure_function_of_seed_step_and_global_batch(seed: int, num_rows: int, data: st.DataObject) -> None:
    rows = np.arange(num_rows) * 3
    batch = data.draw(st.integers(1, num_rows))
    start = data.draw(st.integers(0, 50))
    first = list(itertools.islice(walk(rows, seed=seed, start=start, global_batch=batch), 5))
    for found in first:
        epoch, ids = batch_ids(rows, seed=seed, step=found.step, global_batch=batch)
        assert epoch == found.epoch == found.step // (num_rows // batch)
        np.testing.assert_array_equal(ids, found.ids)
    assert [found.step for found in first] == list(range(start, start + 5))


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 2**32 - 1), num_rows=st.integers(0, 500))
def test_an_epoch_is_a_permutation_of_its_rows_and_leaves_them_alone(seed: int, epoch: int, num_rows: int) -> None:
    rows = np.arange(num_rows)[::-1].copy()
    order = epoch_order(rows, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(num_rows))
    np.testing.assert_array_equal(rows, np.arange(num_rows)[::-1])


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {epoch_order(np.arange(50), seed=s, epoch=e).tobytes() for s in range(10) for e in range(10)}
    assert len(orders) == 100


def test_every_row_is_equally_likely_at_every_position_and_beside_every_other() -> None:
    n, epochs = 8, 4000
    orders = np.stack([epoch_order(np.arange(n), seed=11, epoch=e) for e in range(epochs)])
    place = np.stack([np.bincount(orders[:, k], minlength=n) for k in range(n)])
    pairs = np.bincount(orders[:, 0] * n + orders[:, 1], minlength=n * n).reshape(n, n)
    chi_place = ((place - epochs / n) ** 2 / (epochs / n)).sum()
    expected = epochs / (n * (n - 1))
    chi_pairs = ((pairs[~np.eye(n, dtype=bool)] - expected) ** 2 / expected).sum()
    assert chi_place < 49 + 5 * np.sqrt(2 * 49)  # 49 degrees of freedom, five sigma
    assert chi_pairs < 55 + 5 * np.sqrt(2 * 55)


def test_the_order_of_seed_0_is_frozen() -> None:
    """A run resumed with a later version must continue with the same samples."""
    assert epoch_order(np.arange(8), seed=0, epoch=0).tolist() == FROZEN[0]
    assert epoch_order(np.arange(8), seed=0, epoch=1).tolist() == FROZEN[1]


def test_without_shuffle_every_epoch_is_the_rows_as_given() -> None:
    found = list(itertools.islice(walk(np.arange(7), seed=1, start=0, global_batch=3, shuffle=False), 4))
    assert [f.ids.tolist() for f in found] == [[0, 1, 2], [3, 4, 5]] * 2


def test_a_pass_over_a_split_covers_every_row_once_with_a_partial_last_batch() -> None:
    batches = [ids.tolist() for ids in walk_once(np.arange(7), global_batch=3)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


@given(global_batch=st.integers(0, 100), world=st.integers(1, 16))
def test_local_slices_tile_a_batch_of_any_size_evenly(global_batch: int, world: int) -> None:
    slices = [local_slice(global_batch, rank, world) for rank in range(world)]
    assert [k for s in slices for k in range(s.start, s.stop)] == list(range(global_batch))
    sizes = [s.stop - s.start for s in slices]
    assert max(sizes) - min(sizes) <= 1


def test_equal_words_keep_the_order_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(0).integers(0, 50, 5000).astype(np.uint64)

    class Few:
        def __init__(self, key: np.ndarray) -> None:
            pass

        def random_raw(self, count: int) -> np.ndarray:
            return words[:count]

    monkeypatch.setattr(np.random, "Philox", Few)
    found = epoch_order(np.arange(5000), seed=0, epoch=0)
    assert found.tolist() == sorted(range(5000), key=lambda row: (words[row], row))
