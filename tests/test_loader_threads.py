"""How the loader's background work ends: errors arrive, threads leave, nothing runs further ahead than it may."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dsengine import config
from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import standard_layout
from dsengine.data.loader import Loader
from dsengine.data.prefetch import Prefetcher, batches_ahead
from dsengine.data.sample import View
from dsengine.engine import plan
from dsengine.errors import RunError

VIEWS = (View(size=16), View(size=16))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """64 patches of 16 px in shards of 64, one file an array."""
    rng = np.random.default_rng(4)
    with CorpusWriter(tmp_path / "c", layout=standard_layout(16), num_patches=64, made_by={"test": 1}, threads=1) as writer:
        arrays = {name: rng.integers(0, 3000, (64, c, 16, 16)).astype(np.int16) for name, c in (("s2", 12), ("s1", 2))}
        writer.append(Block(arrays=arrays, index={"lon": rng.uniform(-20, 20, 64), "lat": rng.uniform(-20, 20, 64)}))
        return open_corpus(writer.finish())


def ours() -> set[int]:
    """Native ids of this process's threads whose names are the loader's."""
    return {t.native_id for t in threading.enumerate() if t.name.startswith("dsengine")}


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def soon(condition: Callable[[], bool], *, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def damage(corpus: Corpus) -> None:
    path = corpus.path / "s1" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_close_and_the_end_of_a_with_block_leave_no_thread(corpus: Corpus) -> None:
    with Loader(corpus, VIEWS, 8, split="all", prefetch=2) as loader:
        next(loader)
        assert ours()
    assert not ours()
    settled = tasks()  # what numpy, zarr and torch keep for themselves is there by now
    for _ in range(5):
        with Loader(corpus, VIEWS, 8, split="all", prefetch=2) as loader:
            next(loader)
    assert soon(lambda: tasks() <= settled)  # DALI's threads are no Python threads


def test_a_loader_that_is_forgotten_ends_its_threads_when_it_is_collected(corpus: Corpus) -> None:
    loader = Loader(corpus, VIEWS, 8, split="all", prefetch=2)
    next(loader)
    assert ours()
    del loader
    gc.collect()
    assert not ours()


def test_a_held_out_pass_left_early_leaves_no_thread(corpus: Corpus) -> None:
    fixed = Loader.heldout(corpus, VIEWS, 8, split="all", prefetch=2)
    for _ in fixed:
        break
    gc.collect()
    assert not ours()
    halfway = iter(fixed)
    next(halfway)
    fixed.close()
    assert not ours()


def test_an_error_in_the_consumer_leaves_no_thread(corpus: Corpus) -> None:
    with pytest.raises(KeyboardInterrupt), Loader(corpus, VIEWS, 8, split="all", prefetch=2) as loader:
        for _ in loader:
            raise KeyboardInterrupt
    assert not ours()


def test_damaged_data_reaches_the_consumer_with_its_traceback_and_ends_the_threads(corpus: Corpus) -> None:
    damage(corpus)
    loader = Loader(corpus, VIEWS, 8, split="all")
    good = 0
    with pytest.raises(RunError, match=r"s1/c/0/0/0/0: array s1, patch \d+: the chunk fails its crc32c") as caught:
        for _ in itertools.islice(loader, 8):
            good += 1
    assert good < 8
    assert "decode" in {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert soon(lambda: not ours())
    with pytest.raises(RunError):  # it does not become an empty stream
        next(loader)
    assert loader.state_dict()["step"] == good


def test_batches_before_the_damaged_one_are_still_delivered(corpus: Corpus) -> None:
    with Loader(corpus, VIEWS, 8, split="all") as loader:
        order = [next(loader).sample_id for _ in range(8)]
    damage(corpus)
    found = []
    with Loader(corpus, VIEWS, 8, split="all", prefetch=6) as loader, pytest.raises(RunError) as caught:
        for batch in loader:
            found.append(batch.sample_id)
    bad = int(str(caught.value).split("patch ")[1].split(":")[0])
    assert bad in order[len(found)] and all(bad not in ids for ids in order[:len(found)])


@pytest.mark.parametrize("how", ["next(loader)", "raise SystemExit(3)"])
def test_the_interpreter_exits_at_once_and_silently_with_an_open_loader(corpus: Corpus, how: str) -> None:
    code = ("import dsengine\nfrom dsengine.data.loader import Loader\nfrom dsengine.data.sample import View\n"
            f"loader = Loader(dsengine.open_corpus({str(corpus.path)!r}), (View(size=16),), 8, split='all')\nnext(loader)\n{how}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=corpus.path)
    assert (done.returncode, done.stderr) == (3 if "SystemExit" in how else 0, "")


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_items_are_made_while_the_consumer_is_busy_but_no_more_than_depth_ahead(depth: int) -> None:
    made = []

    def source() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    ahead = Prefetcher(source(), depth=depth)
    for taken in range(4):
        assert soon(lambda: len(made) >= taken + depth)
        time.sleep(0.02)
        assert len(made) == taken + depth
        assert next(ahead) == taken
    ahead.close()


@pytest.mark.parametrize(("on_cpu", "local", "want"), [(True, True, 0), (True, False, 2), (False, True, 2), (False, False, 2)])
def test_batches_are_made_between_the_steps_only_where_both_want_the_same_cores(corpus: Corpus, on_cpu: bool, local: bool, want: int) -> None:
    assert batches_ahead(on_cpu=on_cpu, local=local) == want
    if on_cpu and local:
        settings = plan.complete(config.resolve({"corpus": str(corpus.path)}), corpus, ranks=1, device=torch.device("cpu"))
        assert settings.data.prefetch is None and settings.train.async_save is None  # a resumed run may be on another device
        with Loader(corpus, VIEWS, 8, split="all") as loader:
            assert loader.prefetch == want


def test_a_finite_source_ends_and_is_closed_in_its_own_thread() -> None:
    seen = []

    def source() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            seen.append(threading.current_thread().name)

    ahead = Prefetcher(source(), depth=4)
    assert list(ahead) == [1, 2] and list(ahead) == []
    ahead.close()
    assert seen == ["dsengine-prefetch"]


def test_a_source_is_closed_when_the_consumer_leaves_early_and_items_are_let_go() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    ahead = Prefetcher(source(), depth=2)
    next(ahead)
    ahead.close()
    assert closed.is_set() and not ours()
    assert list(ahead) == []
