"""A run that changes its number of ranks on the way sees the samples and views of one that was never stopped; memory does not grow; lost files are named."""

import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dsengine.augment.params import Augment
from dsengine.corpus import Corpus, open_corpus
from dsengine.data.loader import Loader
from dsengine.data.sample import View
from dsengine.errors import RunError

VIEWS = (View(size=8, augment=Augment(jitters=(2, 2), band_dropout=(0.2, 0.2), dihedral="independent")),)
EPOCHS = """
import sys
import dsengine
from dsengine.data.loader import Loader
from dsengine.data.sample import View
def resident(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
with Loader(dsengine.open_corpus(sys.argv[1]), (View(size=32), View(size=32)), 16, split="all", num_threads=2) as loader:
    for epoch in range(4):
        for _ in range(20 * loader.steps_per_epoch):
            next(loader)
        print(resident("VmHWM"))
"""


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return open_corpus(small_corpus)


def steps(corpus: Corpus, state: dict[str, int], world: int, *, count: int, batch: int) -> tuple[list, dict[str, int]]:
    """`count` global batches by `world` loaders that go on from `state`; and the state after them, the same in each."""
    with ExitStack() as stack:
        loaders = [stack.enter_context(Loader(corpus, VIEWS, batch, seed=7, rank=rank, world=world, split="all", num_threads=1)) for rank in range(world)]
        for loader in loaders:
            loader.load_state_dict(state)
        found = []
        for _ in range(count):
            parts = [next(loader) for loader in loaders]
            found.append((torch.cat([part.sample_id for part in parts]), torch.cat([part.views[0] for part in parts])))
        states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    return found, states[0]


@settings(max_examples=12, deadline=None)
@given(batch=st.sampled_from([4, 8, 12, 32]), worlds=st.permutations([1, 2, 4]), counts=st.tuples(*[st.integers(0, 5)] * 3), start=st.integers(0, 40))
def test_any_stops_and_numbers_of_ranks_give_the_stream_of_one_uninterrupted_rank(corpus: Corpus, batch: int, worlds: list[int], counts: tuple[int, ...],
                                                                                   start: int) -> None:
    whole, _ = steps(corpus, {"step": start}, 1, count=sum(counts), batch=batch)
    state, found = {"step": start}, []
    for world, count in zip(worlds, counts):
        part, state = steps(corpus, state, world, count=count, batch=batch)
        found += part
    assert len(found) == len(whole)
    for (ids, views), (want_ids, want_views) in zip(found, whole):
        assert torch.equal(ids, want_ids) and torch.equal(views, want_views)


def test_memory_does_not_grow_with_epochs(small_corpus: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", EPOCHS, str(small_corpus)], capture_output=True, text=True, check=True)
    peaks = [float(line) for line in done.stdout.split()]
    # 360 batches between the first look and the last: a leak of one view in each would be 330 MB.
    assert len(peaks) == 4 and peaks[3] - peaks[0] < 10


@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_shard_that_vanishes_or_is_cut_while_training_is_named(small_corpus: Path, tmp_path: Path, how: str) -> None:
    shutil.copytree(small_corpus, tmp_path / "c")
    shard = tmp_path / "c" / "s2" / "c" / "1" / "0" / "0" / "0"
    with Loader(open_corpus(tmp_path / "c"), VIEWS, 32, split="all", prefetch=1) as loader:
        next(loader)
        if how == "gone":
            shard.unlink()
        else:
            with open(shard, "r+b") as file:
                file.truncate(100)
        with pytest.raises(RunError, match=r"s2/c/1/0/0/0: array s2, patch \d+: "):
            for _ in range(6):
                next(loader)
