"""Series in an S3 bucket are the series in a folder."""

import sys
from pathlib import Path

import numpy as np

from dsengine.corpus import open_corpus
from dsengine.corpus.build.series_plan import build_series
from dsengine.corpus.storage import storage_at
from dsengine.corpus.verify import verify_path

sys.path.insert(0, str(Path(__file__).parent.parent / "workers"))
import build_series as small  # noqa: E402


def test_the_writer_puts_the_same_bytes_into_a_bucket_as_into_a_folder(url: str, tmp_path: Path) -> None:
    build_series(url, small.plan())
    local = build_series(tmp_path / "local", small.plan())
    storage = storage_at(url)
    assert {key: storage.get(key) for key in storage.keys()} == {str(f.relative_to(local)): f.read_bytes() for f in local.rglob("*") if f.is_file()}


def test_series_are_read_and_verified_in_a_bucket(url: str) -> None:
    build_series(url, small.plan())
    corpus, expected = open_corpus(url), small.values()
    got = corpus.read_series([7, 400, 7], "s2")
    np.testing.assert_array_equal(got.values, expected["series/s2"][[7, 400, 7]])
    np.testing.assert_array_equal(got.valid, expected["valid/s2"][[7, 400, 7]])
    np.testing.assert_array_equal(corpus.index["field"], expected["index/field"])
    assert verify_path(url).problems == []
