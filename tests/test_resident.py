"""Patches kept in memory: the same batches bitwise, each patch read once, the tier chosen from what is free; and loaders that hang."""

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import zarr

from dsengine.augment.params import Augment
from dsengine.corpus import Corpus, open_corpus
from dsengine.data import resident
from dsengine.data.layout import chunk_layout
from dsengine.data.loader import Loader
from dsengine.data.native import SLACK, gather
from dsengine.data.resident import DeviceStore, Free, HostStore, ResidentPipeline, Tier, choose_tier, open_kept
from dsengine.data.sample import View
from dsengine.errors import RunError, UsageError

CPU = torch.device("cpu")
VIEWS = (View(size=24, augment=Augment(jitters=(2, 2), dihedral="independent")), View(size=32, sensor="s1"))


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return open_corpus(small_corpus)


class Counted:
    """A source of patches by zarr-python that remembers what it was asked for."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.arrays = [zarr.open_group(path, mode="r")[name] for name in names]
        self.asked: list[int] = []
        self.closed = 0

    @contextmanager
    def lease(self, ids: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
        self.asked += ids.tolist()
        found = tuple(torch.from_numpy(np.stack([x[int(k)] for k in ids])) for x in self.arrays)
        yield found
        for x in found:
            x.fill_(-1)  # a lease ends: whoever kept the tensor instead of its numbers is found out

    def read(self, ids: np.ndarray, outs: Sequence[torch.Tensor]) -> None:
        with self.lease(ids) as found:
            for out, x in zip(outs, found, strict=True):
                assert out.is_contiguous()
                out.copy_(x)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


def store(kind: str, corpus: Corpus, names: Sequence[str], count: int) -> HostStore | DeviceStore:
    layouts = [chunk_layout(corpus.arrays[name], root=corpus.path) for name in names]
    return DeviceStore(layouts, count, CPU) if kind == "gpu" else HostStore(layouts, count, max_batch=8, num_threads=2, pinned=False)


@pytest.mark.parametrize("kind", ["gpu", "ram"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_batches_are_those_of_zarr_python_and_no_patch_is_read_twice(kind: str, corpus: Corpus, small_corpus: Path, data: st.DataObject) -> None:
    names = ("s2", "s1")
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(corpus) - 1), min_size=1, max_size=9))))
    source = Counted(small_corpus, names)
    truth = [zarr.open_group(small_corpus, mode="r")[name] for name in names]
    with ResidentPipeline(source, rows, store(kind, corpus, names, len(rows))) as kept:
        for _ in range(6):
            ids = np.array(data.draw(st.lists(st.sampled_from(rows.tolist()), min_size=1, max_size=8)))
            with kept.lease(ids) as raw:
                for x, array in zip(raw, truth, strict=True):
                    np.testing.assert_array_equal(x.numpy(), np.stack([array[int(k)] for k in ids]))
        assert len(source.asked) == len(set(source.asked))
        assert source.closed == (len(source.asked) == len(rows))  # given up as soon as nothing is left to read
    assert source.closed == 1


@pytest.mark.parametrize("count, shape, threads", [(1, (1, 1, 1), 1), (5, (3, 7, 5), 2), (40, (14, 16, 16), 3)])
def test_gather_copies_the_rows_asked_for(count: int, shape: tuple[int, ...], threads: int) -> None:
    rng = np.random.default_rng(count)
    flat = rng.integers(-(2**15), 2**15, count * int(np.prod(shape)) + SLACK, dtype=np.int16)
    kept = flat[:-SLACK].reshape(count, *shape)
    at = rng.integers(0, count, 30)
    out = np.full((30, *shape), 7, dtype=np.int16)
    gather(kept, at, out, num_threads=threads)
    np.testing.assert_array_equal(out, kept[at])


@pytest.mark.parametrize("world", [1, 2])
def test_a_resident_loader_gives_the_batches_of_one_that_reads_bitwise(corpus: Corpus, world: int) -> None:
    for rank in range(world):
        loaders = [Loader(corpus, VIEWS, 16, rank=rank, world=world, split="all", resident=kind, seed=5) for kind in ("none", "ram")]
        with loaders[0] as plain, loaders[1] as kept:
            assert (plain.tier.kind, kept.tier.kind) == ("none", "ram")
            for _ in range(3 * plain.steps_per_epoch):
                want, got = next(plain), next(kept)
                assert torch.equal(want.sample_id, got.sample_id)
                assert all(torch.equal(x, y) for x, y in zip(want.views, got.views, strict=True))


def test_a_resident_loader_goes_on_without_the_files_and_a_reading_one_does_not(small_corpus: Path, tmp_path: Path) -> None:
    path = shutil.copytree(small_corpus, tmp_path / "c")
    kept, plain = (Loader(open_corpus(path), VIEWS, 16, split="all", resident=kind, prefetch=1) for kind in ("ram", "none"))
    with kept, plain:
        for loader in (kept, plain):
            for _ in range(2 * loader.steps_per_epoch):
                next(loader)
        for shard in path.glob("s2/c/*/0/0/0"):
            shard.unlink()
        for _ in range(2 * kept.steps_per_epoch):
            next(kept)
        with pytest.raises(RunError, match="the shard file is missing|No such file"):
            for _ in range(2 * plain.steps_per_epoch):
                next(plain)


GB = 10**9


@pytest.mark.parametrize("wanted, num_bytes, free, ranks, kind, words", [
    ("auto", 4 * GB, Free(20 * GB, None), 1, "ram", ["4.0 GB decoded", "20.0 GB free"]),
    ("auto", 11 * GB, Free(20 * GB, None), 1, "none", ["11.0 GB decoded", "more than half", "20.0 GB"]),
    ("auto", 4 * GB, Free(20 * GB, None), 4, "none", ["5.0 GB to each of 4 ranks"]),
    ("auto", 4 * GB, Free(90 * GB, 80 * GB), 8, "gpu", ["80.0 GB free"]),
    ("auto", 41 * GB, Free(90 * GB, 80 * GB), 1, "ram", ["90.0 GB free"]),
    ("auto", 60 * GB, Free(90 * GB, 80 * GB), 1, "none", ["GPU 80.0 GB"]),
    ("gpu", 60 * GB, Free(9 * GB, 80 * GB), 1, "gpu", ["as asked"]),
    ("ram", 19 * GB, Free(20 * GB, None), 1, "ram", ["as asked"]),
    ("none", 1, Free(20 * GB, 80 * GB), 1, "none", ["as asked"]),
])
def test_the_tier_follows_from_what_is_free_and_says_so(wanted: str, num_bytes: int, free: Free, ranks: int, kind: str, words: list[str]) -> None:
    tier = choose_tier(wanted, num_bytes, free, ranks=ranks)
    assert tier.kind == kind and all(word in tier.reason for word in words)


@pytest.mark.parametrize("wanted, free, words", [
    ("gpu", Free(20 * GB, None), "'gpu' on a CPU; legal: auto, ram, none"),
    ("gpu", Free(20 * GB, 5 * GB), "takes 6.0 GB .* 5.0 GB are free"),
    ("ram", Free(5 * GB, 80 * GB), "takes 6.0 GB .* 5.0 GB are free"),
    ("disk", Free(5 * GB, None), "'disk' is not legal: auto, gpu, ram, none"),
])
def test_a_tier_that_cannot_be_had_is_refused(wanted: str, free: Free, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_tier(wanted, 6 * GB, free)


@pytest.mark.parametrize("limit, used, cached, left", [("max", 5, 1, float("inf")), ("100", 70, 30, 60), ("100", 120, 0, 0)])
def test_a_control_groups_limit_counts_and_its_page_cache_does_not(tmp_path: Path, limit: str, used: int, cached: int, left: float) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\nfile {cached}\nkernel 3\n")
    assert resident._left_in_group(tmp_path) == left
    assert resident._left_in_group(tmp_path / "none") == float("inf")


def test_free_memory_is_at_most_what_the_machine_has() -> None:
    free = resident.free_memory(CPU)
    assert free.gpu is None and 0 < free.ram <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_nothing_is_kept_where_the_tier_is_none(corpus: Corpus) -> None:
    layouts = [chunk_layout(corpus.arrays["s2"], root=corpus.path)]
    with open_kept(layouts, np.arange(4), Tier("none", ""), max_batch=2, num_threads=1, device=CPU) as pipeline:
        assert not isinstance(pipeline, ResidentPipeline)


@contextmanager
def hung(shard: Path) -> Iterator[None]:
    """A file that cannot be opened until the end of the block, as on a network file system that does not answer."""
    body = shard.read_bytes()
    shard.unlink()
    os.mkfifo(shard)
    try:
        yield
    finally:
        shard.rename(shard.with_name("pipe"))
        shard.write_bytes(body)
        deadline = time.monotonic() + 20
        while any(thread.name == "dsengine-prefetch" for thread in threading.enumerate()) and time.monotonic() < deadline:
            with open(os.open(shard.with_name("pipe"), os.O_RDWR)):  # whoever waits in open goes on
                time.sleep(0.05)


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("first", [0, 3], ids=["in the index", "in the chunks"])
def test_a_file_system_that_hangs_is_an_error_with_the_samples_and_not_a_wait_for_ever(small_corpus: Path, tmp_path: Path, first: int,
                                                                                       prefetch: int) -> None:
    path = shutil.copytree(small_corpus, tmp_path / "c")
    shards = sorted(path.glob("s2/c/*/0/0/0"))
    with Loader(open_corpus(path), VIEWS, 16, split="all", prefetch=prefetch, timeout_s=1.0) as loader:
        ids = [next(loader).sample_id for _ in range(first)]
        with hung(shards[0]):
            with pytest.raises(RunError, match=r"no batch within 1 s \(data.timeout_s\) from .*: step \d+, rank 0, samples \d+, ") as caught:
                for _ in range(4 * loader.steps_per_epoch):
                    ids.append(next(loader).sample_id)
        assert f"step {len(ids)}," in str(caught.value)
        want = next(loader).sample_id  # awake again: the batch that did not come
        assert ", ".join(map(str, want[:8].tolist())) in str(caught.value)


def test_a_held_out_pass_that_hangs_is_an_error_too(small_corpus: Path, tmp_path: Path) -> None:
    path = shutil.copytree(small_corpus, tmp_path / "c")
    with Loader.heldout(open_corpus(path), VIEWS, 16, split="all", timeout_s=0.5) as views, hung(sorted(path.glob("s2/c/*/0/0/0"))[0]):
        with pytest.raises(RunError, match="no batch within 0.5 s"):
            list(views)
