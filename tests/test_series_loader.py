"""Loaders of series and pixels: one stream for any stops and ranks, held-out passes that repeat, and each mistake in one line."""

import itertools
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import build_series as small  # noqa: E402

from dsengine.augment.params import Augment
from dsengine.corpus import Corpus, SeriesCorpus, open_corpus
from dsengine.corpus.build.series_plan import build_series
from dsengine.data import order
from dsengine.data.loader import FixedViews, Loader
from dsengine.data.open import open_heldout, open_loader
from dsengine.data.resident import Free
from dsengine.data.sample import Batch, View
from dsengine.data import table_loader
from dsengine.data.table_loader import FixedRows, TableLoader, make_table_plan, table_tier
from dsengine.errors import UsageError

VIEWS = (View(sensor="s2"), View(of="marginals"), View(sensor="rain"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SeriesCorpus:
    return open_corpus(build_series(tmp_path_factory.mktemp("series") / "c", small.plan()))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> SeriesCorpus:
    return open_corpus(build_series(tmp_path_factory.mktemp("pixels") / "c", small.plan(kind="pixels")))


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Bitwise, and NaN in the same places."""
    return x.dtype == y.dtype and torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(9), y.nan_to_num(9))


def steps(corpus: SeriesCorpus, state: dict[str, int], world: int, *, count: int, batch: int) -> tuple[list[list[torch.Tensor]], dict[str, int]]:
    """`count` global batches by `world` loaders that go on from `state`, as tensors; and the state after them."""
    with ExitStack() as stack:
        loaders = [stack.enter_context(TableLoader(corpus, VIEWS, batch, 7, rank, world, split="all", label="crop")) for rank in range(world)]
        found = []
        for loader in loaders:
            loader.load_state_dict(state)
        for _ in range(count):
            parts = [next(loader) for loader in loaders]
            found.append([torch.cat(x) for x in zip(*((part.sample_id, part.label, *part.views) for part in parts))])
        states = [loader.state_dict() for loader in loaders]
    assert all(other == states[0] for other in states)
    return found, states[0]


@settings(max_examples=10, deadline=None)
@given(batch=st.sampled_from([4, 8, 12, 100]), worlds=st.permutations([1, 2, 4]), counts=st.tuples(*[st.integers(0, 4)] * 3), start=st.integers(0, 60))
def test_any_stops_and_numbers_of_ranks_give_the_stream_of_one_uninterrupted_rank(corpus: SeriesCorpus, batch: int, worlds: list[int],
                                                                                  counts: tuple[int, ...], start: int) -> None:
    whole, _ = steps(corpus, {"step": start}, 1, count=sum(counts), batch=batch)
    state, found = {"step": start}, []
    for world, count in zip(worlds, counts):
        part, state = steps(corpus, state, world, count=count, batch=batch)
        found += part
    assert len(found) == len(whole)
    assert all(same(x, y) for ours, theirs in zip(found, whole) for x, y in zip(ours, theirs))
    for k, (ids, *_) in enumerate(whole):
        _, want = order.batch_ids(corpus.rows("all"), seed=7, step=start + k, global_batch=batch)
        np.testing.assert_array_equal(ids, want)


def test_batches_hold_views_ids_and_labels_of_the_same_rows(corpus: SeriesCorpus, pixels: SeriesCorpus) -> None:
    for opened, ndim in ((corpus, 3), (pixels, 2)):
        with open_loader(opened, VIEWS, 16, seed=3, label="crop") as loader:
            assert isinstance(loader, TableLoader) and isinstance(loader, Loader)
            batch = next(loader)
        ids = batch.sample_id.numpy()
        assert [x.shape[-1] for x in batch.views] == [3, 4, 1] and all(x.ndim == ndim and len(x) == 16 for x in batch.views)
        np.testing.assert_array_equal(batch.label, np.searchsorted([0, 7], small.values()["labels/crop"][ids]))
        stored = small.values()["series/s2"][ids]
        if ndim == 3:
            np.testing.assert_array_equal(batch.views[0].isnan().all(-1), ~small.values()["valid/s2"][ids])
        else:
            np.testing.assert_array_equal((batch.views[0] == 0).numpy(), stored[:, 0] == -32768)


def test_an_epoch_shows_every_row_once_and_the_next_one_others_first(corpus: SeriesCorpus) -> None:
    rows = corpus.rows("train")
    with TableLoader(corpus, VIEWS[:1], 10) as loader:
        epochs = [torch.cat([next(loader).sample_id for _ in range(loader.steps_per_epoch)]) for _ in range(2)]
    for seen in epochs:
        assert len(set(seen.tolist())) == len(seen) == len(rows) // 10 * 10 and set(seen.tolist()) <= set(rows.tolist())
    assert not torch.equal(*epochs)


def test_the_last_epochs_order_and_prefetch_change_nothing(corpus: SeriesCorpus) -> None:
    with TableLoader(corpus, VIEWS, 20, prefetch=0) as one, TableLoader(corpus, VIEWS, 20, prefetch=6, num_threads=3) as other:
        for a, b in itertools.islice(zip(one, other), 30):
            assert torch.equal(a.sample_id, b.sample_id) and all(same(x, y) for x, y in zip(a.views, b.views))


@pytest.mark.parametrize("world", [1, 3])
def test_a_held_out_pass_covers_the_split_once_and_repeats_bitwise(corpus: SeriesCorpus, world: int) -> None:
    found = []
    for rank in range(world):
        with open_heldout(corpus, VIEWS, 32, split="all", limit=100, rank=rank, world=world) as heldout:
            assert isinstance(heldout, FixedRows) and isinstance(heldout, FixedViews) and len(heldout) == 4
            once, again = list(heldout), list(heldout)
        assert all(same(x, y) for a, b in zip(once, again) for x, y in zip(a.views, b.views))
        found.append(once)
    seen = torch.cat([part[k].sample_id for k in range(4) for part in found])
    rows = corpus.rows("all")
    np.testing.assert_array_equal(seen, rows[np.arange(100) * len(rows) // 100])


def test_the_state_names_what_must_be_equal_and_refuses_what_is_not(corpus: SeriesCorpus) -> None:
    with TableLoader(corpus, VIEWS, 8, seed=1) as loader, TableLoader(corpus, VIEWS, 16, seed=1) as other:
        next(loader)
        state = loader.state_dict()
        assert state["step"] == 1 and state.keys() == {"step", "seed", "batch_size", "num_rows", "rows_crc"}
        with pytest.raises(UsageError, match="batch_size: the saved position is of batch_size 8"):
            other.load_state_dict(state)


@pytest.mark.parametrize("view, words", [
    (View(size=32), "view 1: size=32"),
    (View(draw_bands=1), "view 1: draw_bands=1"),
    (View(augment=Augment(dihedral="shared")), "view 1: augment.dihedral=shared"),
    (View(augment=Augment(band_dropout=(0.1, 0.1))), r"view 1: augment.band_dropout=\(0.1, 0.1\)"),
    (View(of="neighbour"), "view 1: of='neighbour'.*legal: itself, marginals"),
    (View(sensor="s1"), "sensor 's1' is not in the corpus"),
    (View(bands=("B99",)), "view 1: band 'B99' is not in the corpus"),
])
def test_what_a_view_of_rows_cannot_have_is_refused_by_its_name(corpus: SeriesCorpus, view: View, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TableLoader(corpus, (view,), 8)


@pytest.mark.parametrize("request_, words", [
    (dict(batch_size=5000), "batch_size: 5000 is more than the .* series of split 'train'"), (dict(batch_size=9, world=2), "not divisible by world=2"),
    (dict(batch_size=0), "batch_size: 0"), (dict(label="kind"), "label 'kind' is not in .*crop"), (dict(split="tain"), "split='tain'"),
    (dict(resident="none"), "always held in memory; legal: auto, gpu, ram"), (dict(resident="gpu"), "'gpu' on a CPU"), (dict(rank=2), "rank: 2 of world 1"),
    (dict(prefetch=-1), "prefetch: -1"), (dict(dtype=torch.int16), "dtype"), (dict(where="field > 1000"), "field > 1000"), (dict(device="tpu"), "device"),
])
def test_each_mistake_of_a_request_is_refused_in_its_words(corpus: SeriesCorpus, request_: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TableLoader(corpus, VIEWS, **{"batch_size": 8, **request_})


def test_sensors_of_different_lengths_do_not_lie_side_by_side(corpus: SeriesCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer:
        shape = (small.ROWS, small.STEPS + 1, 1)

    monkeypatch.setattr(corpus, "values", {**corpus.values, "rain": Longer()})
    with pytest.raises(UsageError, match=r"differ in their number of dates \(s2 7, rain 8\)"):
        make_table_plan(corpus, (View(),), global_batch=8)


def test_a_view_of_marginals_on_patches_is_refused(small_corpus: Path) -> None:
    opened = open_corpus(small_corpus)
    assert isinstance(opened, Corpus)
    with pytest.raises(UsageError, match="of='marginals' draws cells of a table.*legal: a corpus of pixels or series"):
        open_loader(opened, (View(of="marginals"),), 8)


@pytest.mark.parametrize("free, resident, kind", [
    (Free(10**9, None), "auto", "ram"), (Free(10**9, 10**9), "auto", "gpu"), (Free(10**9, 10**9), "ram", "ram"), (Free(10**9, 30_000), "auto", "ram"),
    (Free(30_000, None), "auto", "ram"),
])
def test_rows_are_held_on_the_device_where_they_fit_and_always_in_memory(corpus: SeriesCorpus, monkeypatch: pytest.MonkeyPatch, free: Free,
                                                                         resident: str, kind: str) -> None:
    monkeypatch.setattr(table_loader, "free_memory", lambda device: free)
    plan = make_table_plan(corpus, VIEWS[:1], global_batch=8, split="all")  # 421 x 21 int16 are 17,682 bytes
    tier = table_tier(plan, resident, ranks=1)
    assert tier.kind == kind and tier.reason
    monkeypatch.setattr(table_loader, "free_memory", lambda device: Free(17_000, None))
    with pytest.raises(UsageError, match="421 series of .* take 0.0 GB a rank, and 0.0 GB are free"):
        table_tier(plan, "auto", ranks=1)


def test_a_batch_stays_as_it_was_while_others_are_made(corpus: SeriesCorpus) -> None:
    with TableLoader(corpus, VIEWS, 16) as loader:
        first: Batch = next(loader)
        kept = [x.clone() for x in first.views]
        for _ in range(12):
            next(loader)
    assert all(same(x, y) for x, y in zip(first.views, kept))
