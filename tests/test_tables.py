"""Rows of series and pixels as z-scores: exact against zarr-python and float64, whatever is missing; marginals as the data has them."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import build_series as small  # noqa: E402

from dsengine.corpus import SeriesCorpus, open_corpus
from dsengine.corpus.build.series_plan import build_series
from dsengine.data.sample import View
from dsengine.data.tables import Tables, parts_of, table_bytes
from dsengine.errors import RunError

CPU = torch.device("cpu")
VIEWS = [View(), View(sensor="s2"), View(sensor="rain"), View(bands=("B03",)), View(bands=("B02", "B04", "rain"))]


@pytest.fixture(scope="module", params=["series", "pixels"])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SeriesCorpus:
    """421 rows of int16 and float32 in blocks of 64; a fifth of the dates and some bands without data."""
    path = tmp_path_factory.mktemp("tables") / request.param
    plan = small.plan(kind=request.param)
    shifted = tuple(replace(spec, add_offset=offset) for spec, offset in zip(plan.layout.arrays, (-0.1, 3.0)))
    return open_corpus(build_series(path, replace(plan, layout=replace(plan.layout, arrays=shifted))))


def tables(corpus: SeriesCorpus, rows: np.ndarray, views: list[View] = VIEWS, **settings) -> Tables:
    every = [part for view in views for part in parts_of(view, corpus.bands)]
    return Tables(corpus, every, rows, home=CPU, device=CPU, **settings)


def expected(corpus: SeriesCorpus, names: list[str], rows: np.ndarray) -> np.ndarray:
    """float64 z-scores of bands by plain zarr-python, NaN without data; a date without any band NaN, else 0."""
    group, found = zarr.open_group(corpus.path, mode="r"), []
    for band in (b for b in corpus.bands if b.name in names):
        array = group[f"{corpus.kind}/{band.sensor}"]
        attrs = dict(array.attrs)
        stored = array[...][rows][..., band.channel].astype(np.float64)
        missing = stored == -32768
        if corpus.kind == "series":
            missing |= ~group[f"valid/{band.sensor}"][...][rows]
        physical = stored * attrs["scale_factor"] + attrs["add_offset"]
        found.append(np.where(missing, np.nan, (physical - attrs["mean"][band.channel]) / attrs["std"][band.channel]))
    x = np.stack(found, axis=-1)
    keep = np.isnan(x).all(axis=-1, keepdims=True) if corpus.kind == "series" else False
    return np.where(np.isnan(x) & ~keep, 0, x)


@pytest.mark.parametrize("view", VIEWS, ids=["all", "s2", "rain", "one band", "three of two sensors"])
def test_rows_are_the_z_scores_of_what_is_stored(corpus: SeriesCorpus, view: View) -> None:
    names = [b.name for b in corpus.bands if view.bands is None or b.name in view.bands]
    names = [name for name in names if view.sensor is None or (name == "rain") == (view.sensor == "rain")]
    rows = np.flatnonzero(np.arange(len(corpus)) % 5 != 1)
    ids = np.random.default_rng(1).permutation(rows)[:100]
    x = tables(corpus, rows).take(parts_of(view, corpus.bands), ids, dtype=torch.float32)
    want = expected(corpus, names, ids)
    assert x.dtype == torch.float32 and tuple(x.shape) == want.shape
    np.testing.assert_array_equal(np.isnan(x.numpy()), np.isnan(want))
    if corpus.kind == "series":
        assert np.isnan(want).any()
    assert ((want == 0).sum() > 0) == (len(names) > 1 or corpus.kind == "pixels")
    np.testing.assert_allclose(x.numpy(), want, rtol=3e-7, atol=3e-7)


def test_few_rows_of_many_are_read_alike(corpus: SeriesCorpus) -> None:
    every, few = np.arange(len(corpus)), np.array([3, 64, 200, 420])
    parts = parts_of(View(), corpus.bands)
    whole = tables(corpus, every).take(parts, few, dtype=torch.float32)
    for threads in (1, 3):
        assert torch.equal(tables(corpus, few, num_threads=threads).take(parts, few, dtype=torch.float32).nan_to_num(9), whole.nan_to_num(9))


def test_half_precision_is_the_rounded_value(corpus: SeriesCorpus) -> None:
    held, parts, ids = tables(corpus, np.arange(len(corpus))), parts_of(View(), corpus.bands), np.arange(50)
    exact = held.take(parts, ids, dtype=torch.float32)
    assert torch.equal(held.take(parts, ids, dtype=torch.bfloat16).nan_to_num(9), exact.to(torch.bfloat16).nan_to_num(9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("home", ["cuda", "cpu"])
def test_rows_on_a_gpu_are_bitwise_those_on_the_cpu(corpus: SeriesCorpus, home: str) -> None:
    every, ids, cuda = np.arange(len(corpus)), np.random.default_rng(2).permutation(len(corpus))[:70], torch.device("cuda")
    parts = [parts_of(view, corpus.bands) for view in VIEWS]
    there, here = Tables(corpus, sum(parts, ()), every, home=torch.device(home), device=cuda), tables(corpus, every)
    key = dict(dtype=torch.float32, seed=5, epoch=2, view=1)
    for part in parts:
        for x, y in ((there.take(part, ids, dtype=torch.float32), here.take(part, ids, dtype=torch.float32)),
                     (there.marginals(part, ids, **key), here.marginals(part, ids, **key))):
            assert x.device.type == "cuda" and torch.equal(x.cpu().nan_to_num(9), y.nan_to_num(9)) and torch.equal(x.isnan().cpu(), y.isnan())


def test_an_empty_request_has_the_shape_of_none(corpus: SeriesCorpus) -> None:
    held, parts, none = tables(corpus, np.arange(len(corpus))), parts_of(View(), corpus.bands), np.zeros(0, np.int64)
    shape = (0, small.STEPS, 4) if corpus.kind == "series" else (0, 4)
    assert held.take(parts, none, dtype=torch.float32).shape == shape
    assert held.marginals(parts, none, dtype=torch.float32, seed=0, epoch=0, view=1).shape == shape


def test_a_marginal_cell_is_of_any_row_that_has_data_there_and_of_no_other_column(corpus: SeriesCorpus) -> None:
    rows = np.arange(10, 400)
    held, parts = tables(corpus, rows), parts_of(View(sensor="s2"), corpus.bands)
    key = dict(dtype=torch.float32, seed=5, view=1)
    drawn = torch.stack([held.marginals(parts, rows, epoch=k, **key).flatten(1) for k in range(12)])
    want = expected(corpus, list(small.BANDS), rows).reshape(len(rows), -1)
    raw = small.values()["series/s2"] if corpus.kind == "series" else small.values()["series/s2"][:, 0]
    has_data = (raw != -32768).reshape(small.ROWS, -1)[rows]
    if corpus.kind == "series":
        has_data &= np.repeat(small.values()["valid/s2"][rows], 3, axis=1)
    assert drawn[:, ~has_data].isnan().all()  # what has no data is given none
    assert drawn[:, has_data].isnan().double().mean() < 1e-3  # nine rows, each of which is empty in less than half of the cells
    for cell in range(0, drawn.shape[2], 4):
        column = drawn[..., cell][~drawn[..., cell].isnan()].numpy()
        legal = np.unique(want[has_data[:, cell], cell].astype(np.float32))
        at = np.searchsorted(legal, column)
        away = np.minimum(*(np.abs(legal[at.clip(low, len(legal) - 1 + low) - low] - column) for low in (0, 1)))
        assert away.max() < 1e-6  # nothing but values of this column
        assert len(np.unique(column)) > 0.95 * len(legal)  # and all of them: 12 draws a row
        pool = want[has_data[:, cell], cell]
        assert abs(column.mean(dtype=np.float64) - pool.mean()) < 4 * pool.std() / len(column) ** 0.5


def test_marginals_belong_to_seed_epoch_view_and_sample(corpus: SeriesCorpus) -> None:
    held, parts = tables(corpus, np.arange(len(corpus))), parts_of(View(), corpus.bands)
    ids, key = np.array([7, 30, 200]), dict(dtype=torch.float32, seed=1, epoch=2, view=1)
    first = held.marginals(parts, ids, **key)
    assert torch.equal(first[[2, 0]].nan_to_num(9), held.marginals(parts, ids[[2, 0]], **key).nan_to_num(9))
    for change in ({"seed": 2}, {"epoch": 3}, {"view": 0}):
        other = held.marginals(parts, ids, **{**key, **change})
        assert (other == first).double().mean() < 0.3  # stored values repeat


def test_cells_of_one_sample_come_from_rows_of_their_own(corpus: SeriesCorpus) -> None:
    held, parts = tables(corpus, np.arange(len(corpus))), parts_of(View(sensor="s2"), corpus.bands)
    every = held.take(parts, np.arange(len(corpus)), dtype=torch.float32).flatten(1).nan_to_num(9)
    drawn = held.marginals(parts, np.arange(40), dtype=torch.float32, seed=1, epoch=0, view=1).flatten(1)
    shared = (every[None] == drawn[:, None]).sum(-1).max(1).values.double()  # most cells that any row of the corpus has in common with a sample
    assert (shared / (~drawn.isnan()).sum(1).clamp(min=1)).mean() < 0.6


def test_the_memory_told_beforehand_is_that_of_the_stored_numbers(corpus: SeriesCorpus) -> None:
    cells = 7 if corpus.kind == "series" else 1
    assert table_bytes(corpus, parts_of(View(), corpus.bands), 100) == 100 * cells * (3 * 2 + 4)
    assert table_bytes(corpus, parts_of(View(sensor="rain"), corpus.bands), 100) == 100 * cells * 4


def test_a_damaged_shard_is_named(corpus: SeriesCorpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.path, tmp_path / "c")
    shard = next(path for path in sorted((tmp_path / "c" / corpus.kind / "s2" / "c" / "2").rglob("*")) if path.is_file())
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(RunError, match=f"{corpus.kind}/s2: cannot be read"):
        tables(open_corpus(tmp_path / "c"), np.arange(len(corpus)))
