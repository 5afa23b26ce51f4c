"""The contract that travels with weights, opening a corpus, and how patches are split."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from dsengine.corpus import Contract, open_corpus
from dsengine.corpus.build.grid import blocks, split_codes, windows
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import LabelSpec, standard_layout
from dsengine.errors import UsageError


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patches of 8 px."""
    rng = np.random.default_rng(0)
    with CorpusWriter(tmp_path_factory.mktemp("schema") / "c", layout=standard_layout(8), num_patches=3, made_by={}) as writer:
        writer.append(Block({"s2": rng.integers(0, 99, (3, 12, 8, 8)).astype(np.int16), "s1": rng.integers(-99, 0, (3, 2, 8, 8)).astype(np.int16)},
                            {"lon": [1.0, 2.0, 3.0], "lat": [0.0, 0.0, 0.0]}))
        return writer.finish()


@pytest.fixture
def contract(path: Path) -> Contract:
    return open_corpus(path).contract()


def test_a_contract_survives_json_exactly(contract: Contract) -> None:
    assert Contract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_an_equal_contract_passes(contract: Contract) -> None:
    contract.check(Contract.from_json(contract.to_json()), what="corpus x")


def test_swapped_bands_are_refused_with_the_legal_order(contract: Contract) -> None:
    other = dataclasses.replace(contract, bands=contract.bands[1::-1] + contract.bands[2:])
    with pytest.raises(UsageError, match=r"corpus x: bands differ: B02, B01, .*; legal, in this order: B01, B02, B03.*VV, VH$"):
        contract.check(other, what="corpus x")


def test_every_difference_is_listed_with_its_legal_value(contract: Contract) -> None:
    mean = (contract.mean[0] + 1, *contract.mean[1:])
    with pytest.raises(UsageError) as error:
        contract.check(dataclasses.replace(contract, mean=mean, patch_size=64), what="corpus x")
    assert f"mean differs for B01 {mean[0]} (legal: {contract.mean[0]})" in str(error.value)
    assert "patch_size is 64, legal: 8" in str(error.value) and "B02" not in str(error.value)


def with_attributes(folder: Path, **attributes: object) -> Path:
    zarr.create_group(folder, attributes=attributes)
    return folder


def test_what_is_not_a_corpus_is_refused_by_its_reason(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/zarr.json").write_text("{")
    for folder, message in (
            (tmp_path / "none", "is not a corpus: it has no zarr.json"), (tmp_path / "text", "cannot be read as a Zarr v3 group"),
            (with_attributes(tmp_path / "plain"), "no attribute `dsengine`"),
            (with_attributes(tmp_path / "old", dsengine={"version": 0, "complete": True}), "version 0 is not legal: this build reads version 1"),
            (with_attributes(tmp_path / "part", dsengine={"version": 1, "complete": False}), "unfinished build")):
        with pytest.raises(UsageError, match=message) as error:
            open_corpus(folder)
        assert "\n" not in str(error.value)


def test_read_and_rows_name_what_is_legal(path: Path) -> None:
    corpus = open_corpus(path)
    for call, message in ((lambda: corpus.read([0], "s3"), "sensor 's3' .* legal: s2, s1"), (lambda: corpus.read([3], "s2"), r"rows in 0\.\.2"),
                          (lambda: corpus.read([-1], "s2"), r"rows in 0\.\.2"), (lambda: corpus.rows("dev"), "legal: train, val, test, all")):
        with pytest.raises(UsageError, match=message):
            call()


def test_a_constant_band_cannot_be_z_scored_and_says_so(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-99, 0, (2, 2, 8, 8)).astype(np.int16)
    x[:, 1] = -7
    with CorpusWriter(tmp_path / "c", layout=standard_layout(8, sensors=("s1",)), num_patches=2, made_by={}) as writer:
        writer.append(Block({"s1": x}, {"lon": [1.0, 2.0], "lat": [0.0, 0.0]}))
        corpus = open_corpus(writer.finish())
    with pytest.raises(UsageError, match=": VH: no valid pixel or a constant value"):
        corpus.contract()


def test_a_patch_that_no_reader_would_open_is_not_begun() -> None:
    assert standard_layout(3344).patch_size == 3344  # 12 bands of int16 below 256 MiB
    with pytest.raises(UsageError, match="patch size 3345: a patch of array s2 has 268,536,600 bytes; legal: up to 268,435,456"):
        standard_layout(3345)


def test_an_unknown_kind_of_label_is_refused() -> None:
    with pytest.raises(UsageError, match="kind='map' is not legal: class, multilabel, classmap"):
        LabelSpec(name="x", kind="map", classes={})


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 40), stride=st.integers(1, 50))
def test_windows_lie_inside_and_are_all_that_fit_on_the_stride(height: int, width: int, size: int, stride: int) -> None:
    found = list(windows(height, width, size=size, stride=stride))
    assert found == [(y, x) for y in range(height) for x in range(width)
                     if y % stride == x % stride == 0 and y + size <= height and x + size <= width]


@given(seed=st.integers(0, 1000), count=st.integers(2, 60))
def test_splits_keep_blocks_whole_and_fill_train_and_val(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(0, 3, count), rng.uniform(40, 42, count)
    split, cell = split_codes(lon, lat, seed=seed), blocks(lon, lat)
    for row in np.unique(cell, axis=0):
        assert len(set(split[(cell == row).all(axis=1)])) == 1
    if len(np.unique(cell, axis=0)) > 1:
        assert {0, 1} <= set(split.tolist())
    order = rng.permutation(count)
    np.testing.assert_array_equal(split_codes(lon[order], lat[order], seed=seed), split[order])


def test_two_blocks_are_one_train_and_one_val_whatever_the_seed() -> None:
    for seed in range(500):  # about 10 of them draw val and test, the case that needs both rules
        assert sorted(split_codes(np.array([0.0, 3.0]), np.array([40.0, 42.0]), seed=seed).tolist()) == [0, 1]


def test_splits_are_eighty_ten_ten_and_depend_on_the_seed() -> None:
    lon, lat = (g.reshape(-1) for g in np.meshgrid(np.arange(-60, 60, 0.7), np.arange(-40, 40, 0.7)))
    split = split_codes(lon, lat, seed=0)
    np.testing.assert_allclose(np.bincount(split) / split.size, [0.8, 0.1, 0.1], atol=0.01)
    assert (split != split_codes(lon, lat, seed=1)).mean() > 0.2


def test_blocks_are_about_28_km_both_ways_at_any_latitude() -> None:
    for latitude in (0.1, 45.1, 69.9):
        lon = np.linspace(10, 20, 100_001)
        column = blocks(lon, np.full(lon.shape, latitude))[:, 1]
        edges = lon[1:][np.diff(column) != 0]
        np.testing.assert_allclose(np.diff(edges) * 111.2 * np.cos(np.radians(latitude)), 27.8, rtol=0.02)
