"""Neighbours, splits and quality of a corpus in a bucket are those of the same corpus in a folder, command for command."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.storage import storage_at


@pytest.mark.parametrize("command", [["neighbours", "--radius-km", "60"], ["split", "--by", "random", "--fractions", "0.5,0.2,0.3"],
                                     ["split", "--by", "column:epsg"], ["quality", "--again"]], ids=lambda words: " ".join(words[:3]))
def test_a_pass_leaves_the_same_bytes_in_a_bucket_as_in_a_folder(command: list[str], url: str, small_corpus: Path, tmp_path: Path) -> None:
    here, there = Path(shutil.copytree(small_corpus, tmp_path / "c")), storage_at(url)
    for file in here.rglob("*"):
        if file.is_file():
            there.put(file.relative_to(here).as_posix(), [file.read_bytes()])
    for place in (str(here), url):
        assert cli.main(["corpus", command[0], place, *command[1:]]) == 0
    files = {f.relative_to(here).as_posix(): f.read_bytes() for f in here.rglob("*") if f.is_file()}
    assert {key: there.get(key) for key in there.keys()} == files
    if command[0] == "neighbours":
        ids, km = open_corpus(url).neighbours.of(5)
        assert len(ids) and (np.diff(km) >= 0).all()
