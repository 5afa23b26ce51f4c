"""Memory of views: used again when nobody holds it, never before, whoever holds what."""

import itertools
from pathlib import Path

import pytest
import torch

from dsengine.augment.params import Augment
from dsengine.corpus import open_corpus
from dsengine.data.loader import Loader
from dsengine.data.ring import Ring
from dsengine.data.sample import View

SHAPE = (4, 8, 8, 3)


def test_memory_is_used_again_only_after_the_last_tensor_of_it_is_gone() -> None:
    ring = Ring(4)
    tensor = ring(SHAPE, torch.float32)
    where = tensor.data_ptr()
    slice_, array = tensor.permute(0, 3, 1, 2)[1:2].flatten(1), tensor[2].numpy()
    for holder in ("tensor", "slice", "array"):
        assert ring(SHAPE, torch.float32).data_ptr() != where, holder
        if holder == "tensor":
            del tensor
        elif holder == "slice":
            del slice_
    del array
    assert ring(SHAPE, torch.float32).data_ptr() == where


def test_a_graph_that_saved_a_view_holds_its_memory() -> None:
    ring = Ring(2)
    x = ring(SHAPE, torch.float32).fill_(2)
    weight = torch.ones(SHAPE, requires_grad=True)
    loss = (weight * x.permute(0, 1, 2, 3)).sum()
    where = x.data_ptr()
    del x
    assert ring(SHAPE, torch.float32).fill_(9).data_ptr() != where
    assert (torch.autograd.grad(loss, weight)[0] == 2).all()
    del loss
    assert ring(SHAPE, torch.float32).data_ptr() == where


def test_smaller_batches_and_other_dtypes_fit_a_larger_block_and_kept_ones_are_let_go() -> None:
    ring = Ring(2)
    where = ring(SHAPE, torch.float32).data_ptr()
    small = ring((3, 8, 8, 3), torch.bfloat16)
    assert small.data_ptr() == where and small.shape == (3, 8, 8, 3) and small.is_contiguous()
    assert ring((5, 8, 8, 3), torch.float32).data_ptr() != where
    kept = [ring(SHAPE, torch.float32).fill_(k) for k in range(5)]
    assert len({t.data_ptr() for t in kept}) == 5 and all((t == k).all() for k, t in enumerate(kept))
    assert len(ring._blocks) == 2


@pytest.fixture
def loader(small_corpus: Path) -> Loader:
    views = (View(size=16, augment=Augment(jitters=(1, 3), jitter_strength=(0.1, 0.1))), View(size=16))
    with Loader(open_corpus(small_corpus), views, 8, seed=3, num_threads=1, prefetch=2) as made:
        yield made


def test_batches_that_a_consumer_keeps_stay_as_they_were(loader: Loader) -> None:
    kept, copies = [], []
    for batch in itertools.islice(loader, 30):
        kept.append(batch)
        copies.append([view.clone() for view in batch.views])
    assert all(torch.equal(view, copy) for batch, views in zip(kept, copies) for view, copy in zip(batch.views, views))


def test_a_loop_that_lets_batches_go_needs_no_fresh_memory(loader: Loader) -> None:
    seen = [batch.views[0].untyped_storage().data_ptr() for batch in itertools.islice(loader, 40)]
    # prefetch 2: that many waiting, one being made, and the consumer's two.
    assert len(set(seen[10:])) <= 5
