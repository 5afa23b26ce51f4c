"""A server that fails: what passes is waited out, what stays is one line, secrets stay secret, and nothing half-written counts."""

import pickle
import re
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from dsengine.corpus import open_corpus
from dsengine.corpus.storage import storage_at
from dsengine.corpus.synth import synthesize
from dsengine.data.loader import Loader
from dsengine.data.sample import View
from dsengine.errors import RunError, UsageError

TRANSIENT = [500, 503, 429, "drop", "truncate", "shorten"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("local") / "c", num_patches=70, size=16, seed=4)


def upload(path: Path, url: str) -> None:
    storage = storage_at(url)
    for file in path.rglob("*"):
        if file.is_file():
            storage.put(str(file.relative_to(path)), [file.read_bytes()])


@pytest.mark.parametrize("fault", TRANSIENT)
def test_each_operation_survives_three_failures_in_a_row(url: str, proxy: object, fault: int | str) -> None:
    storage, data = storage_at(url), bytes(range(256)) * 8
    storage.put("a/b", [data])
    for work, want in ((lambda: storage.get_range("a/b", start=5, size=300), data[5:305]),
                       (lambda: storage.get_tail("a/b", size=99), (data[-99:], 2048)), (lambda: storage.exists("a/b"), True),
                       (lambda: list(storage.keys()), ["a/b"]), (lambda: storage.put("a/b", [data]), None)):
        proxy.faults.extend([fault] * 3)
        assert work() == want
        proxy.faults.clear()
    proxy.faults.extend([fault] * 3)
    assert fault == "shorten" or storage.get("a/b") == data  # a short object that says so is the reader's crc32c to find


@pytest.mark.parametrize("fault", [500, "drop", "truncate"])
def test_a_server_that_stays_broken_is_given_up_with_one_line(url: str, proxy: object, fault: int | str) -> None:
    storage = storage_at(url)
    storage.put("a", [b"x" * 100])
    proxy.faults.extend([fault] * 1000)
    start = time.monotonic()
    with pytest.raises(OSError) as caught:
        storage.get("a")
    assert time.monotonic() - start < 20 and "\n" not in caught.value.strerror and url in str(caught.value)
    assert 3 < 1000 - len(proxy.faults) < 50  # bounded


@pytest.mark.parametrize("fault", [400, 403])
def test_what_a_server_refuses_is_not_asked_again(url: str, proxy: object, fault: int) -> None:
    storage = storage_at(url)
    proxy.faults.extend([fault] * 10)
    with pytest.raises(OSError, match=rf"the server answers {fault}"):
        storage.get("a")
    assert len(proxy.faults) == 9


def test_a_build_through_a_bad_line_has_the_bytes_of_a_good_one(url: str, proxy: object, local: Path) -> None:
    proxy.faults.extend(np.random.default_rng(0).choice(np.array(["pass", "drop", "503", "truncate"], object), 400, p=[0.7, 0.1, 0.1, 0.1]).tolist())
    proxy.faults = type(proxy.faults)(int(f) if f.isdigit() else f for f in proxy.faults)
    synthesize(url, num_patches=70, size=16, seed=4)
    assert len(proxy.faults) < 380
    proxy.faults.clear()
    storage = storage_at(url)
    assert {key: storage.get(key) for key in storage.keys()} == {str(f.relative_to(local)): f.read_bytes() for f in local.rglob("*") if f.is_file()}


def test_a_loader_through_a_bad_line_gives_the_batches_of_the_folder(url: str, proxy: object, local: Path) -> None:
    upload(local, url)
    corpus = open_corpus(url)
    proxy.only = "/c/"
    proxy.faults.extend(["truncate", "shorten", 500, "drop", "pass"] * 6)
    with Loader(corpus, (View(size=16),), 35, split="all") as there, Loader(open_corpus(local), (View(size=16),), 35, split="all") as here:
        for _ in range(4):
            np.testing.assert_array_equal(next(there).views[0].numpy(), next(here).views[0].numpy())


def test_a_loader_whose_server_goes_away_ends_with_one_line(url: str, proxy: object, local: Path) -> None:
    upload(local, url)
    corpus = open_corpus(url)
    proxy.only = "/s2/c/"
    proxy.faults.extend([500] * 10000)
    what = rf"{url}/s2/c/0/0/0/0: array s2, patch \d+: .*500"
    with Loader(corpus, (View(size=16),), 35, split="all") as loader, pytest.raises(RunError, match=what):
        next(loader)


def test_opening_through_a_broken_server_is_a_run_error_and_through_a_refusing_one_too(url: str, proxy: object, local: Path) -> None:
    upload(local, url)
    for fault, where in ((403, ""), (500, ""), (500, "index/lon"), (403, "s2/zarr.json")):
        proxy.only = where
        proxy.faults.extend([fault] * 1000)
        with pytest.raises(RunError, match=f"{re.escape(url)}.*{fault}"):
            open_corpus(url)
        proxy.faults.clear()
    assert len(open_corpus(url)) == 70


def test_a_write_that_is_refused_keeps_what_is_complete_and_says_so(url: str, proxy: object) -> None:
    proxy.only, proxy.methods = "/s1/c/1/", ("PUT",)
    proxy.faults.extend([403] * 10)
    with pytest.raises(RunError, match=rf"{url}/s1/c/1/0/0/0: the server answers 403.*the same command continues"):
        synthesize(url, num_patches=70, size=16, seed=4)
    with pytest.raises(UsageError, match="unfinished build"):
        open_corpus(url)
    proxy.faults.clear()
    assert len(open_corpus(synthesize(url, num_patches=70, size=16, seed=4))) == 70


def test_no_message_traceback_pickle_or_object_holds_a_credential(url: str, proxy: object) -> None:
    storage = storage_at(url)
    texts = [repr(storage), str(storage.path), pickle.dumps(storage).decode("latin1")]
    for fault in (403, 500, "drop"):
        proxy.faults.extend([fault] * 1000)
        with pytest.raises(OSError) as caught:
            storage.get("a")
        texts += [str(caught.value), "".join(traceback.format_exception(caught.value))]
        proxy.faults.clear()
    synthesize(url, num_patches=3, size=16)
    texts += [storage.get(key).decode("latin1") for key in storage.keys() if key.endswith("json")]
    for text in texts:
        assert "s3cr3t" not in text and "AKID" not in text
