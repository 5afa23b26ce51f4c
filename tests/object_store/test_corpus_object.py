"""A corpus in an S3 bucket is the corpus in a folder: written, read, measured and loaded the same, with errors in one line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.writer import CorpusWriter
from dsengine.corpus.schema import standard_layout
from dsengine.corpus.storage import Url, absolute, located, storage_at
from dsengine.corpus.synth import synthesize
from dsengine.data.layout import chunk_layout
from dsengine.data.loader import Loader
from dsengine.data.patches import PatchReader
from dsengine.data.sample import View
from dsengine.errors import RunError, UsageError

NUM, SIZE = 150, 16


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 synthetic patches in a folder: three shards, the last one not full."""
    return synthesize(tmp_path_factory.mktemp("local") / "c", num_patches=NUM, size=SIZE, seed=4)


@pytest.fixture
def remote(url: str, local: Path, proxy: object) -> Corpus:
    """A copy of it in a bucket."""
    storage = storage_at(url)
    storage.concurrently(lambda item: storage.put(item[0], [item[1]]), files(local).items())
    corpus = open_corpus(url)
    proxy.requests.clear()
    return corpus


def objects(url: str) -> dict[str, bytes]:
    storage = storage_at(url)
    return {key: storage.get(key) for key in storage.keys()}


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_the_writer_puts_the_same_bytes_into_a_bucket_as_into_a_folder(url: str, local: Path) -> None:
    assert str(synthesize(url, num_patches=NUM, size=SIZE, seed=4)) == url
    assert objects(url) == files(local)


def test_plain_obstore_and_zarr_read_what_the_writer_put(remote: Corpus, local: Path, url: str) -> None:
    obstore_store = pytest.importorskip("obstore.store")
    group = zarr.open_group(zarr.storage.ObjectStore(obstore_store.from_url(url, client_options={"allow_http": True}), read_only=True), mode="r")
    ours = zarr.open_group(local, mode="r")
    for name in ("s2", "s1", "labels/landcover", "index/lon", "index/source"):
        np.testing.assert_array_equal(group[name][...], ours[name][...])


def test_opening_and_reading_give_what_the_folder_gives(remote: Corpus, local: Path) -> None:
    here = open_corpus(local)
    assert remote.contract() == here.contract() and len(remote) == NUM and str(remote.path).startswith("s3://bucket/")
    np.testing.assert_array_equal(remote.read([149, 0, 77], "s2"), here.read([149, 0, 77], "s2"))
    for name, column in here.index._asdict().items():
        np.testing.assert_array_equal(getattr(remote.index, name), column)
    np.testing.assert_array_equal(remote.rows("train"), here.rows("train"))


def test_the_loader_gives_bitwise_the_batches_of_the_folder(remote: Corpus, local: Path) -> None:
    def batches(corpus: Corpus) -> Iterator[np.ndarray]:
        with Loader(corpus, (View(size=12), View(size=16)), 24, seed=3, split="all", num_threads=2) as loader:
            for _ in range(8):
                batch = next(loader)
                yield batch.sample_id.numpy()
                yield from (view.numpy() for view in batch.views)

    for there, here in zip(batches(remote), batches(open_corpus(local)), strict=True):
        np.testing.assert_array_equal(there, here)


def test_chunks_that_lie_close_are_one_request(remote: Corpus, local: Path, proxy: object) -> None:
    layout = chunk_layout(remote.arrays["s1"], root=remote.path)
    ids = np.random.default_rng(0).permutation(NUM)[:40]
    out = np.empty((40, 2, SIZE, SIZE), np.int16)
    reader = PatchReader([layout], num_threads=1)
    reader.read(ids, [out])
    reader.close()
    np.testing.assert_array_equal(out, open_corpus(local).read(ids, "s1"))
    assert len([path for _, path, wanted in proxy.requests if "/s1/c/" in path and wanted]) == 2 * 3  # a table and a range of each of three shards


def test_a_build_in_a_bucket_that_was_stopped_continues(url: str, proxy: object, local: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(url, num_patches=NUM, size=SIZE, seed=4, progress=stop)
    with pytest.raises(UsageError, match="unfinished build"):
        open_corpus(url)
    proxy.requests.clear()
    synthesize(url, num_patches=NUM, size=SIZE, seed=4)
    assert not [path for method, path, _ in proxy.requests if method == "PUT" and "/c/0/0/0/0" in path]
    assert objects(url) == files(local)


def test_a_bucket_folder_with_other_objects_is_refused_and_a_corpus_only_overwritten_on_request(url: str, local: Path) -> None:
    storage_at(url).put("mine.txt", [b"mine"])
    with pytest.raises(UsageError, match="is not empty"):
        CorpusWriter(url, layout=standard_layout(SIZE), num_patches=1, made_by={}, overwrite=True)
    storage_at(url).delete(["mine.txt", "never there"])
    synthesize(url, num_patches=64, size=SIZE, seed=1)
    with pytest.raises(UsageError, match="is not empty"):
        synthesize(url, num_patches=NUM, size=SIZE, seed=4)
    synthesize(url, num_patches=NUM, size=SIZE, seed=4, overwrite=True)
    assert objects(url) == files(local)


def test_worker_processes_write_the_same_objects_as_one(url: str, tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "workers" / "build_small.py"
    for out, workers in ((url, "2"), (str(tmp_path / "one"), "1")):
        subprocess.run([sys.executable, "-P", script, out, "6", "--workers", workers], check=True, capture_output=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=60)
    assert objects(url) == files(tmp_path / "one")


def test_statistics_are_measured_and_stored_in_a_bucket(remote: Corpus, local: Path, url: str) -> None:
    from dsengine.corpus.stats import measure, store

    before = remote.contract()
    measured = measure(remote)
    assert measured["s2"]["mean"] == list(before.mean[:12])
    measured["s2"]["mean"][0] = 0.5
    store(remote, measured)
    assert open_corpus(url).contract().mean[0] == 0.5


@pytest.mark.parametrize("text", ["s3://user:hidden@bucket/x", "s3://bucket/x?sig=hidden", "s3://bucket/../x", "s3:///x", "ftp://host/x",
                                  "s3://bucket//x", "http:/host/x"])
def test_a_url_that_is_not_plain_is_refused_without_repeating_what_may_be_secret(text: str) -> None:
    with pytest.raises(UsageError, match="legal|a URL is") as caught:
        storage_at(text)
    assert "hidden" not in str(caught.value)


def test_urls_survive_path_and_absolute() -> None:
    assert located(Path("s3://bucket/a/b")) == Url("s3://bucket/a/b") and str(Url("s3://b/a") / "c") == "s3://b/a/c"
    assert absolute("gs://bucket/a") == "gs://bucket/a" and absolute("x") == str(Path("x").resolve())
    assert located("dir/s3") == Path("dir/s3") and located("odd:/name") == Path("odd:/name")


def test_a_url_without_a_corpus_and_without_a_bucket_are_usage_errors(url: str) -> None:
    for place in (url, "s3://no-such-bucket/x"):
        with pytest.raises(UsageError, match="has no zarr.json"):
            open_corpus(place)
    with pytest.raises(UsageError, match=r"cannot write the corpus folder s3://no-such-bucket/x: the server answers 404 Not Found \(NoSuchBucket\)"):
        synthesize("s3://no-such-bucket/x", num_patches=1, size=SIZE)


def test_damage_in_a_bucket_names_object_array_and_patch(remote: Corpus, url: str) -> None:
    storage = storage_at(url)
    storage.put("s2/c/1/0/0/0", [storage.get("s2/c/1/0/0/0")[:-9]])
    storage.delete(["s1/c/2/0/0/0"])
    for bands, what in ((("B02",), rf"{url}/s2/c/1/0/0/0: array s2, patch 64: crc32c of the chunk table"),
                        (("VV",), rf"{url}/s1/c/2/0/0/0: array s1, patch 128: the shard file is missing")):
        with Loader(remote, (View(size=8, bands=bands),), NUM, split="all", shuffle=False) as loader, pytest.raises(RunError, match=what):
            next(loader)
