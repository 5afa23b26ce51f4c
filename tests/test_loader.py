"""What comes out of the loader: the oracle's batches, whatever the ranks, threads, prefetch or restarts."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dsengine.augment.apply import augment
from dsengine.augment.params import Augment, Curriculum
from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import ArraySpec, Layout
from dsengine.data.loader import Loader
from dsengine.data.reference import ReferenceLoader
from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError

ARRAYS = (ArraySpec(name="s2", sensor="s2", bands=("B02", "B03", "B04"), units="reflectance", scale_factor=1e-4),
          ArraySpec(name="s2_20m", sensor="s2", bands=("B05", "B06"), units="reflectance", scale_factor=1e-4, factor=2),
          ArraySpec(name="s1", sensor="s1", bands=("VV", "VH"), units="dB", scale_factor=0.01))
STRONG = Augment(shift_px=(0, 3), dihedral="independent", jitters=(0, 4), jitter_strength=(0.0, 0.4), band_dropout=(0.0, 0.2),
                 curriculum=Curriculum(warmup=1, ramp=2))
VIEWS = (View(size=20, augment=STRONG), View(size=20, augment=STRONG), View(size=13, bands=("B03", "B06", "VH"), augment=STRONG))
NUM = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 patches of 32 px, two ground resolutions, a few pixels without data, several spatial blocks."""
    path = tmp_path_factory.mktemp("loader") / "corpus"
    rng = np.random.default_rng(4)
    layout = Layout(arrays=ARRAYS, patch_size=32, resolution_m=10.0, shard_patches=8)
    with CorpusWriter(path, layout=layout, num_patches=NUM, made_by={"test": 1}, threads=1) as writer:
        while writer.next_row < NUM:
            n = writer.next_count
            arrays = {}
            for spec in ARRAYS:
                shape = (n, len(spec.bands), layout.side(spec), layout.side(spec))
                arrays[spec.name] = rng.integers(-2000, 3000, shape).astype(np.int16)
                arrays[spec.name][rng.random(shape) < 0.02] = -32768
            writer.append(Block(arrays=arrays, index={"lon": rng.uniform(-20, 20, n), "lat": rng.uniform(-20, 20, n)}))
        writer.finish()
    return open_corpus(path)


def take(loader: Loader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert (a.seed, a.step, a.world) == (b.seed, b.step, b.world)
        assert torch.equal(a.sample_id, b.sample_id)
        assert len(a.views) == len(b.views)
        for x, y in zip(a.views, b.views):
            assert x.dtype == y.dtype and x.stride() == y.stride() and torch.equal(x, y)


def test_batches_equal_the_reference_loaders_bitwise_through_the_op(corpus: Corpus) -> None:
    with Loader(corpus, VIEWS, 8, seed=3) as loader:
        ours = take(loader, 2 * loader.steps_per_epoch + 1)
    assert_same(ours, list(itertools.islice(ReferenceLoader(corpus, VIEWS, 8, seed=3, augmenter=augment), len(ours))))


@pytest.mark.parametrize("level", [None, 0.0, 0.5, 1.0])
def test_batches_equal_the_float64_oracle_within_its_bound(corpus: Corpus, level: float | None) -> None:
    reference = ReferenceLoader(corpus, VIEWS, 8, seed=3, level=level)
    with Loader(corpus, VIEWS, 8, seed=3, level=level) as loader:
        loader.load_state_dict({"step": 3 * loader.steps_per_epoch - 1})  # where the curriculum is on its ramp
        for batch in take(loader, 2):
            theirs = reference.batch(batch.step)
            assert torch.equal(batch.sample_id, theirs.sample_id)
            for x, y in zip(batch.views, theirs.views):
                # Nodata pixels make the op's propagated means differ from nothing here: the oracle carries them alike.
                assert (x.double() - y).abs().max() < 2e-6 * y.abs().max()


def test_views_are_channels_last_of_the_size_and_bands_asked_for(corpus: Corpus) -> None:
    with Loader(corpus, VIEWS, 8) as loader:
        batch = next(loader)
    assert [tuple(v.shape) for v in batch.views] == [(8, 7, 20, 20), (8, 7, 20, 20), (8, 3, 13, 13)]
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in batch.views)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_and_half_precision_keep_the_values(corpus: Corpus, dtype: torch.dtype) -> None:
    with Loader(corpus, VIEWS, 8) as plain, Loader(corpus, VIEWS, 8, dtype=dtype, pad_channels=True) as padded:
        for x, y in zip(next(plain).views, next(padded).views):
            assert y.shape[1] == 8 and y.dtype == dtype
            assert torch.equal(y[:, :x.shape[1]], x.to(dtype)) and not y[:, x.shape[1]:].any()


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_ranks_batches_put_together_are_the_batch_of_one_rank(corpus: Corpus, world: int) -> None:
    with Loader(corpus, VIEWS, 16, seed=1) as loader:
        whole = take(loader, 3)
    parts = []
    for rank in range(world):
        with Loader(corpus, VIEWS, 16, 1, rank, world) as loader:
            parts.append(take(loader, 3))
    for k, batch in enumerate(whole):
        assert torch.equal(torch.cat([p[k].sample_id for p in parts]), batch.sample_id)
        for v, view in enumerate(batch.views):
            assert torch.equal(torch.cat([p[k].views[v] for p in parts]), view)


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 0), (1, 1), (3, 5)])
def test_threads_and_prefetch_change_nothing_in_a_batch(corpus: Corpus, num_threads: int, prefetch: int) -> None:
    with Loader(corpus, VIEWS, 8, prefetch=2) as one, Loader(corpus, VIEWS, 8, num_threads=num_threads, prefetch=prefetch) as other:
        assert_same(take(one, 9), take(other, 9))


@pytest.mark.parametrize("stop", [1, 5, 6, 11])
def test_a_resumed_loader_goes_on_with_the_batches_that_would_have_come(corpus: Corpus, stop: int) -> None:
    with Loader(corpus, VIEWS, 8, seed=9) as loader:
        whole = take(loader, stop + 4)
    with Loader(corpus, VIEWS, 8, seed=9) as loader:
        take(loader, stop)
        state = loader.state_dict()
    assert state["step"] == stop  # what was consumed, not what was read ahead
    with Loader(corpus, VIEWS, 8, seed=9, num_threads=1, prefetch=1) as loader:
        next(loader)
        loader.load_state_dict(state)
        assert_same(take(loader, 4), whole[stop:])


def test_closing_and_iterating_again_continues_at_the_consumers_position(corpus: Corpus) -> None:
    with Loader(corpus, VIEWS, 8) as loader:
        whole = take(loader, 6)
    with Loader(corpus, VIEWS, 8) as loader:
        first = take(loader, 2)
        loader.close()
        assert_same(first + take(loader, 4), whole)


def test_a_state_of_another_seed_batch_or_split_is_refused(corpus: Corpus) -> None:
    with Loader(corpus, VIEWS, 8, seed=9) as loader:
        state = loader.state_dict()
        for key in ("seed", "batch_size", "num_rows"):
            with pytest.raises(UsageError, match=f"^{key}: .*legal: {state[key]}"):
                loader.load_state_dict({**state, key: state[key] + 1})


def test_a_held_out_pass_covers_the_split_with_its_partial_batch_and_repeats_bitwise(corpus: Corpus) -> None:
    rows = corpus.rows("train")
    fixed = Loader.heldout(corpus, VIEWS, 32, split="train", seed=2)
    assert len(rows) % 32 and len(fixed) == -(-len(rows) // 32)
    first, again = list(fixed), list(fixed)
    assert torch.cat([b.sample_id for b in first]).tolist() == rows.tolist()
    assert_same(first, again)
    assert_same(first[:1], list(itertools.islice(fixed, 1)))  # a pass left early does not disturb the next
    one_by_one = Loader.heldout(corpus, VIEWS, 1, split="train", seed=2, num_threads=1)
    for v in range(len(VIEWS)):  # nor does the batch size change a view
        assert torch.equal(torch.cat([b.views[v] for b in one_by_one]), torch.cat([b.views[v] for b in first]))


def test_held_out_views_are_at_full_strength_and_another_draw_than_training(corpus: Corpus) -> None:
    fixed = next(iter(Loader.heldout(corpus, VIEWS, 8, split="train")))
    with Loader(corpus, VIEWS, 8, shuffle=False) as loader:
        training = next(loader)  # epoch 0 is the warm-up: level 0
    assert torch.equal(fixed.sample_id, training.sample_id)
    assert not torch.equal(fixed.views[0], training.views[0])
    dropped = (fixed.views[0] == 0).all((2, 3)).any()
    assert dropped and not (training.views[0] == 0).all((2, 3)).any()


def test_a_limit_keeps_rows_spread_over_the_whole_split(corpus: Corpus) -> None:
    ids = torch.cat([b.sample_id for b in Loader.heldout(corpus, VIEWS, 4, split="all", limit=6)])
    assert ids.tolist() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_a_held_out_pass_even_where_a_batch_has_fewer_rows_than_ranks(corpus: Corpus, world: int) -> None:
    passes = [list(Loader.heldout(corpus, VIEWS, 11, rank=rank, world=world, split="all")) for rank in range(world)]
    assert {len(p) for p in passes} == {6}
    whole = list(Loader.heldout(corpus, VIEWS, 11, split="all"))
    for k, batch in enumerate(whole):
        assert torch.equal(torch.cat([p[k].sample_id for p in passes]), batch.sample_id)
        assert torch.equal(torch.cat([p[k].views[2] for p in passes]), batch.views[2])


@pytest.mark.parametrize(("options", "words"), [
    ({"batch_size": 61, "split": "all"}, ["batch_size: 61", "60 patches", "'all'", "legal: 1 to 60"]),
    ({"batch_size": 0}, ["batch_size: 0"]),
    ({"batch_size": 9, "world": 2}, ["batch_size: 9", "world=2", "multiples of 2"]),
    ({"rank": 2, "world": 2}, ["rank: 2"]),
    ({"seed": -1}, ["seed: -1"]),
    ({"split": "validation"}, ["split", "'validation'", "train, val, test"]),
    ({"views": ()}, ["views"]),
    ({"views": (View(size=33),)}, ["size", "33 px", "1 to 32 px"]),
    ({"views": (View(size=0),)}, ["size", "0 px"]),
    ({"views": (View(size=8, bands=("B3",)),)}, ["bands", "'B3'", "did you mean", "B03", "legal"]),
    ({"views": (View(size=8, bands=("VV", "B03")),)}, ["bands", "corpus order"]),
    ({"dtype": torch.float64}, ["dtype", "float64", "float32"]),
    ({"device": "tpu"}, ["device", "'tpu'", "cuda"]),
    ({"device": "cuda:64"}, ["device", "cuda:64", "cpu"]),
    ({"level": 1.5}, ["level: 1.5"]),
    ({"num_threads": 0}, ["num_threads: 0"]),
    ({"prefetch": -1}, ["prefetch: -1"])])
def test_a_request_that_cannot_be_met_is_a_one_line_usage_error(corpus: Corpus, options: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Loader(corpus, **{"views": VIEWS, "batch_size": 8, **options})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_an_empty_split_and_a_corpus_without_statistics_are_usage_errors(corpus: Corpus, tmp_path: Path) -> None:
    empty = open_corpus(corpus.path)
    empty.index.split[:] = 0
    with pytest.raises(UsageError, match="split: 'val' .* no patches"):
        Loader.heldout(empty, VIEWS, 8)
    bare = open_corpus(corpus.path)
    bare.arrays = {name: _without_statistics(array, tmp_path / name) for name, array in corpus.arrays.items()}
    with pytest.raises(UsageError, match="no statistics"):
        Loader(bare, VIEWS, 8)


def _without_statistics(array: object, path: Path) -> object:
    import zarr

    attributes = {k: v for k, v in array.attrs.items() if k not in ("mean", "std")}
    return zarr.create_array(path, shape=array.shape, chunks=array.chunks, dtype="int16", attributes=attributes)
