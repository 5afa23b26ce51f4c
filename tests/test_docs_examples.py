"""Python examples of the documentation run as they are printed, and leave what they promise."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

import dsengine
from dsengine.corpus.synth import synthesize

ROOT = Path(__file__).parent.parent


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_writer_of_the_corpus_page_writes_what_it_is_given(here: Path) -> None:
    (code,) = [text for text in examples("docs/corpus.md") if "CorpusWriter" in text]
    draw = np.random.default_rng(0)
    given = {"s2": draw.integers(-5, 9000, (70, 12, 128, 128), dtype=np.int16), "s1": draw.integers(-3000, 0, (70, 2, 128, 128), dtype=np.int16)}
    places = {"lon": draw.uniform(5, 6, 70), "lat": draw.uniform(45, 46, 70)}
    exec(code, {"path": here / "mine", "n": 70, **given, **places})  # noqa: S102: our own page
    group = zarr.open_group(here / "mine", mode="r")
    for name, x in given.items():
        np.testing.assert_array_equal(group[name][...], x)
    np.testing.assert_array_equal(group["index/lon"][...], places["lon"])


def test_zarr_alone_reads_a_corpus_as_the_corpus_page_says(here: Path) -> None:
    (code,) = [text for text in examples("docs/corpus.md") if "zarr.open_group" in text]
    os.rename(synthesize(here / "made", num_patches=8, size=32), here / "OUT")
    found: dict[str, object] = {}
    exec(code, found)  # noqa: S102: our own page
    np.testing.assert_array_equal(found["group"]["s2"][0], dsengine.open_corpus(here / "OUT").read([0], "s2")[0])


def test_the_readme_trains_loads_and_reads(here: Path) -> None:
    (code,) = examples("README.md")
    synthesize(here / "sites.zarr", num_patches=16, size=32)
    code = code.replace('train={"epochs": 5}', 'train={"epochs": 1}, device={"gpus": 0}')
    found: dict[str, object] = {}
    exec(code, found)  # noqa: S102: our own page
    assert found["run"].dir == Path("runs/second") and len(found["contract"].bands) == 14
    assert found["patches"].shape == (3, 12, 32, 32) and found["patches"].dtype == np.int16
