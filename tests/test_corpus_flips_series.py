"""One flipped bit anywhere in a corpus of series: `verify` names the file, and reading refuses or gives exactly what it gave before."""

import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.build.series_plan import build_series
from dsengine.corpus.verify import verify_path
from dsengine.errors import RunError, UsageError

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import build_series as small  # noqa: E402

FLIPS = 60


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_series(tmp_path_factory.mktemp("series") / "corpus", small.plan())


def content(path: Path) -> list[np.ndarray]:
    """Every value, time, validity and index column. Raises where that is refused."""
    corpus = open_corpus(path)
    series = [part for sensor in corpus.sensors for part in corpus.read_series(np.arange(len(corpus)), sensor)]
    return [*series, *(corpus.index[name] for name in corpus.index)]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(ours, theirs, strict=True))


def test_no_flipped_bit_is_silent(path: Path) -> None:
    whole, draw, silent = content(path), random.Random(5), []
    assert verify_path(path).problems == []
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for number in range(FLIPS):
        file = files[number * len(files) // FLIPS]  # all files in turn
        data = file.read_bytes()
        bit = draw.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            named = file in {problem.file for problem in verify_path(path).problems}
        except (UsageError, RunError) as error:
            named = str(file) in str(error)
        try:
            harmless = same(content(path), whole)
        except (UsageError, RunError):
            harmless = True
        file.write_bytes(data)
        if not (named and harmless):
            silent.append((file.relative_to(path), bit, named, harmless))
    assert silent == []
    assert verify_path(path).problems == []


def test_damaged_series_are_set_aside_in_whole_chunks(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = shutil.copytree(path, tmp_path / "c")
    file = broken / "series/s2/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    rows = open_corpus(path).values["s2"].metadata.codecs[0].chunk_shape[0]
    assert cli.main(["corpus", "verify", str(broken)]) == 1
    assert cli.main(["corpus", "verify", "--quarantine", str(broken)]) == 0
    assert f"{rows} series put in quarantine" in capsys.readouterr().out
    assert np.flatnonzero(open_corpus(broken).index["quarantine"]).tolist() == list(range(rows))


def test_series_make_a_sheet_and_pixels_are_refused(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpus", "preview", str(path), "--out", str(tmp_path / "x.png"), "--count", "4"]) == 0
    assert (tmp_path / "x.png").stat().st_size > 10_000
    pixels = build_series(tmp_path / "pixels", small.plan(kind="pixels"))
    assert cli.main(["corpus", "preview", str(pixels), "--out", str(tmp_path / "y.png")]) == 2
    assert "holds pixels, which make no picture" in capsys.readouterr().err
