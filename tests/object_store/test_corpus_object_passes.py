"""Neighbours, split and quality of a corpus in a bucket are those of the same corpus in a folder."""

import shutil
from pathlib import Path

import numpy as np

from dsengine.corpus import open_corpus
from dsengine.corpus.build.grid import SplitRule
from dsengine.corpus.build.quality import measure_corpus
from dsengine.corpus.neighbours import write_neighbours
from dsengine.corpus.splits import resplit
from dsengine.corpus.storage import storage_at


def test_passes_leave_the_same_bytes_in_a_bucket_as_in_a_folder(url: str, small_corpus: Path, tmp_path: Path) -> None:
    here, there = Path(shutil.copytree(small_corpus, tmp_path / "c")), storage_at(url)
    content = {f.relative_to(here).as_posix(): f.read_bytes() for f in here.rglob("*") if f.is_file()}
    there.concurrently(lambda item: there.put(item[0], [item[1]]), content.items())
    for place in (str(here), url):
        write_neighbours(open_corpus(place), radius_km=60)
        resplit(open_corpus(place), SplitRule("random", (0.5, 0.2, 0.3)), seed=3)
        measure_corpus(open_corpus(place), again=True)
    changed = {f.relative_to(here).as_posix(): f.read_bytes() for f in here.rglob("*") if f.is_file()}
    keys = list(there.keys())
    assert dict(zip(keys, there.concurrently(there.get, keys), strict=True)) == changed != content
    ids, km = open_corpus(url).neighbours.of(5)
    assert len(ids) and (np.diff(km) >= 0).all()
