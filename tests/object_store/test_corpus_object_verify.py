"""Damage of a corpus in a bucket is named and set aside, its edits are whole or not there, as in a folder."""

from pathlib import Path

import numpy as np
import pytest

from dsengine import cli
from dsengine.corpus import open_corpus, seal
from dsengine.corpus.columns import write_columns
from dsengine.corpus.seal import CHANGE
from dsengine.corpus.storage import Storage, storage_at
from dsengine.corpus.verify import verify_path
from dsengine.errors import RunError


@pytest.fixture
def remote(url: str, small_corpus: Path) -> Storage:
    storage = storage_at(url)
    content = {f.relative_to(small_corpus).as_posix(): f.read_bytes() for f in small_corpus.rglob("*") if f.is_file()}
    storage.concurrently(lambda item: storage.put(item[0], [item[1]]), content.items())
    return storage


def test_damage_is_named_set_aside_and_let_back_in(remote: Storage, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = "s2/c/1/0/0/0"
    whole = remote.get(key)
    remote.put(key, [whole[:5] + bytes([whole[5] ^ 1]) + whole[6:]])
    assert cli.main(["corpus", "verify", "--quarantine", url]) == 0
    out = capsys.readouterr().out
    assert key in out and " 64 " in out and "1 patches put in quarantine" in out
    assert np.flatnonzero(open_corpus(url).index.quarantine).tolist() == [64]
    remote.put(key, [whole])
    assert cli.main(["corpus", "verify", "--release", url]) == 0
    assert not open_corpus(url).index.quarantine.any()


def test_a_flipped_byte_of_the_index_or_metadata_in_a_bucket_is_refused(remote: Storage, url: str) -> None:
    for key in ("index/lat/c/0", "s1/zarr.json", "manifest/zarr.json"):
        whole = remote.get(key)
        remote.put(key, [whole[:9] + bytes([whole[9] ^ 4]) + whole[10:]])
        with pytest.raises(RunError, match=f"{url}/{key}"):
            open_corpus(url)
        remote.put(key, [whole])
    assert len(open_corpus(url)) == 96


def test_an_edit_in_a_bucket_that_is_cut_short_is_completed_by_verify(remote: Storage, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved, real = [], seal._move

    def dying(storage: Storage, key: str) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(key)
        real(storage, key)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(seal, "_move", dying)
        write_columns(open_corpus(url), {"split": np.full(96, 2), "zone": np.arange(96)})
    with pytest.raises(RunError, match="interrupted; `dsengine corpus verify"):
        open_corpus(url)
    assert verify_path(open_corpus(url, checked=False).path).problems == []
    corpus = open_corpus(url)
    assert len(corpus.rows("test")) == 96 and "zone" in corpus.columns
    assert not list(remote.keys(CHANGE))


def test_an_edit_in_a_bucket_that_did_not_come_to_count_leaves_nothing(remote: Storage, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put = type(remote).put
    before = {key: remote.get(key) for key in remote.keys()}

    def refusing(self: Storage, key: str, parts: list[bytes]) -> None:
        if key == seal.REMOVE:
            raise OSError(28, "no space")
        put(self, key, parts)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="no space"):
        patch.setattr(type(remote), "put", refusing)
        write_columns(open_corpus(url), {"split": np.full(96, 2)})
    assert verify_path(open_corpus(url).path).problems == []
    assert {key: remote.get(key) for key in remote.keys() if not key.startswith(CHANGE)} == before
