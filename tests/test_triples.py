"""Triples: who is drawn, how often, and what the loader makes of it, against distances and frequencies computed here."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import dsengine
from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.neighbours import write_neighbours
from dsengine.data.loader import Loader
from dsengine.data.reference import ReferenceLoader
from dsengine.data.sample import View
from dsengine.data.triples import Triples
from dsengine.errors import UsageError
from dsengine.methods._two_views import TwoViews

RADIUS_KM, EPOCHS = 111.2, 4000
VIEWS = (View(size=32), View(size=32, of="neighbour"), View(size=32, of="distant"))


@pytest.fixture(scope="module")
def corpus(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """96 synthetic patches with their neighbour table."""
    path = tmp_path_factory.mktemp("triples") / "c"
    shutil.copytree(small_corpus, path)
    write_neighbours(open_corpus(path), radius_km=RADIUS_KM)
    return open_corpus(path)


@pytest.fixture(scope="module")
def km(corpus: Corpus) -> np.ndarray:
    """(N, N) great-circle distances by the haversine formula."""
    lon, lat = np.radians(corpus.index.lon), np.radians(corpus.index.lat)
    h = np.sin((lat[:, None] - lat) / 2) ** 2 + np.cos(lat[:, None]) * np.cos(lat) * np.sin((lon[:, None] - lon) / 2) ** 2
    return 2 * 6371.0088 * np.arcsin(np.sqrt(h))


def social(km: np.ndarray, rows: np.ndarray) -> int:
    """The anchor with most neighbours among `rows`."""
    near = km[np.ix_(rows, rows)] < RADIUS_KM
    return int(rows[near.sum(1).argmax()])


def counts(drawn: list[np.ndarray], num: int) -> np.ndarray:
    return np.bincount(np.concatenate(drawn), minlength=num)


@pytest.mark.parametrize("scale_km", [18.2, -40.0])
def test_neighbours_come_as_often_as_the_exponential_of_their_distance_says(corpus: Corpus, km: np.ndarray, scale_km: float) -> None:
    rows = corpus.rows("all")
    triples, anchor = Triples(corpus, rows, scale_km=scale_km), social(km, rows)
    found = counts([triples.neighbours(np.array([anchor]), seed=1, epoch=epoch) for epoch in range(EPOCHS)], len(corpus))
    near = np.flatnonzero((km[anchor] < RADIUS_KM) & (np.arange(len(corpus)) != anchor))
    assert len(near) > 2 and found.sum() == found[near].sum() == EPOCHS
    share = np.exp(-km[anchor, near] / scale_km)
    expected = EPOCHS * share / share.sum()
    often = expected > 5
    if (~often).any():  # rarer ones together
        observed, expected = (np.append(x[often], x[~often].sum()) for x in (found[near], expected))
    else:
        observed = found[near]
    keep = expected > 1
    assert stats.chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 1e-3


def test_distant_ones_are_uniform_over_what_is_neither_anchor_nor_neighbour(corpus: Corpus, km: np.ndarray) -> None:
    rows = corpus.rows("all")
    triples, anchor = Triples(corpus, rows, scale_km=18.2), social(km, rows)
    found = counts([triples.distant(np.array([anchor]), seed=1, epoch=epoch) for epoch in range(EPOCHS)], len(corpus))
    far = km[anchor] > RADIUS_KM
    assert found[~far].sum() == 0 and stats.chisquare(found[far]).pvalue > 1e-3


def test_only_patches_of_the_split_take_part_and_one_without_neighbours_is_its_own(corpus: Corpus, km: np.ndarray) -> None:
    near = km < RADIUS_KM
    first = near.argmax(1)  # the patch that leads each cluster, and all of the first cluster
    rows = np.flatnonzero((first == np.arange(len(km))) | (first == 0)).astype(np.int64)
    triples = Triples(corpus, rows, scale_km=18.2)
    alone = 0
    for epoch in range(20):
        near, far = (draw(rows, seed=4, epoch=epoch) for draw in (triples.neighbours, triples.distant))
        assert np.isin(near, rows).all() and np.isin(far, rows).all() and (km[rows, far] > RADIUS_KM).all()
        has = (km[np.ix_(rows, rows)] < RADIUS_KM).sum(1) > 1
        assert (near[has] != rows[has]).all() and (km[rows, near][has] < RADIUS_KM).all()
        np.testing.assert_array_equal(near[~has], rows[~has])
        alone += int((~has).sum())
    assert alone and has.any()


@pytest.mark.parametrize("num", [5, 17, 40])
def test_every_legal_partner_is_drawn_and_no_other(num: int) -> None:
    """Points on a line, a subset of which takes part."""
    rng = np.random.default_rng(num)
    x = rng.uniform(0, 100, num)
    apart = np.abs(x[:, None] - x)
    near = (apart < 12) & ~np.eye(num, dtype=bool)
    indices = np.concatenate([np.flatnonzero(row)[::-1] for row in near]).astype(np.int32)  # in no order of distance
    table = np.r_[0, np.cumsum(near.sum(1))], indices, apart[np.repeat(np.arange(num), near.sum(1)), indices].astype(np.float32)

    class Line:
        neighbours = SimpleNamespace(load=lambda: table, radius_km=12.0)
        index, path = SimpleNamespace(id=np.arange(num)), "line"

        def __len__(self) -> int:
            return num

    rows = np.sort(rng.choice(num, max(4, 2 * num // 3), replace=False))
    triples = Triples(Line(), rows, scale_km=5.0)
    drawn = [np.stack([draw(rows, seed=1, epoch=epoch) for epoch in range(600)], axis=1) for draw in (triples.neighbours, triples.distant)]
    for k, anchor in enumerate(rows):
        beside = set(np.flatnonzero(near[anchor])) & set(rows)
        assert set(drawn[0][k]) == (beside or {anchor})
        assert set(drawn[1][k]) == set(rows) - beside - {anchor}


def test_a_draw_depends_on_seed_epoch_and_anchor_alone(corpus: Corpus) -> None:
    rows = corpus.rows("all")
    triples = Triples(corpus, rows, scale_km=18.2)
    for draw in (triples.neighbours, triples.distant):
        whole = draw(rows, seed=3, epoch=5)
        np.testing.assert_array_equal(draw(rows[7:20], seed=3, epoch=5), whole[7:20])
        assert (draw(rows, seed=3, epoch=6) != whole).any() and (draw(rows, seed=4, epoch=5) != whole).any()


def test_views_show_the_patches_that_were_drawn(corpus: Corpus, km: np.ndarray) -> None:
    with Loader(corpus, (View(size=32), View(size=32, of="itself")), 8, split="all") as plain, Loader(corpus, VIEWS, 8, split="all") as loader:
        patches = {}
        for _ in range(plain.steps_per_epoch):
            batch = next(plain)
            patches.update(zip(batch.sample_id.tolist(), batch.views[0]))
        for _ in range(2 * loader.steps_per_epoch):
            batch = next(loader)
            ids = [[next(k for k, patch in patches.items() if torch.equal(patch, row)) for row in view] for view in batch.views]
            assert ids[0] == batch.sample_id.tolist()
            assert all(km[a, n] < RADIUS_KM < km[a, d] for a, n, d in zip(*ids))


def test_batches_are_those_of_the_slow_loader_on_any_number_of_ranks(corpus: Corpus) -> None:
    reference = ReferenceLoader(corpus, VIEWS, 8, split="all", seed=2, level=1.0)
    with Loader(corpus, VIEWS, 8, split="all", seed=2, level=1.0) as one:
        halves = [Loader(corpus, VIEWS, 8, split="all", seed=2, rank=rank, world=2, level=1.0) for rank in range(2)]
        for step in range(3):
            whole, parts, slow = next(one), [next(half) for half in halves], reference.batch(step)
            for k in range(3):
                assert torch.equal(torch.cat([part.views[k] for part in parts]), whole.views[k])
                torch.testing.assert_close(whole.views[k].double(), slow.views[k], rtol=0, atol=1e-4)
        for half in halves:
            half.close()


def test_a_position_is_not_resumed_with_another_neighbour_table(corpus: Corpus, tmp_path: Path) -> None:
    with Loader(corpus, VIEWS, 8, split="all") as loader:
        state = loader.state_dict()
    shutil.copytree(corpus.path, tmp_path / "c")
    write_neighbours(open_corpus(tmp_path / "c"), radius_km=3.0)
    with Loader(open_corpus(tmp_path / "c"), VIEWS, 8, split="all") as other, pytest.raises(UsageError, match="table_crc"):
        other.load_state_dict(state)


def test_what_is_missing_is_named(small_corpus: Path, corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="dsengine corpus neighbours"):
        Loader(open_corpus(small_corpus), VIEWS, 8)
    with pytest.raises(UsageError, match="scale_km=0"):
        Triples(corpus, corpus.rows("all"), scale_km=0)
    with pytest.raises(UsageError, match="of='near'"):
        View(of="near")


def test_a_corpus_without_a_distant_patch_is_refused(small_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(small_corpus, tmp_path / "c")
    write_neighbours(open_corpus(tmp_path / "c"), radius_km=20_000)
    corpus = open_corpus(tmp_path / "c")
    with pytest.raises(UsageError, match="a triple needs one"):
        Triples(corpus, corpus.rows("all"), scale_km=18.2)


def test_tile2vec_trains_and_its_presets_build(corpus: Corpus, tmp_path: Path) -> None:
    run = dsengine.train(method="t2v", encoder="resnet18", corpus=str(corpus.path), out=str(tmp_path / "run"), device={"gpus": 0},
                         train={"max_steps": 2, "batch_size": 8, "precision": "fp32"}, data={"size": 32})
    assert {"active", "feature_rank", "heldout_loss"} <= run.metrics[-1].keys()
    method = dsengine.build_method("t2v", encoder=dsengine.build_encoder("resnet18"), preset="parity")
    assert method.config.per_cell and method.views[1].scale_km == -1


@pytest.mark.parametrize("name, settings", [("simclr", {}), ("byol", {"hidden": 32, "pair": "bands"}), ("simsiam", {"dim": 32, "hidden": 8})])
def test_methods_of_two_views_train_on_a_patch_and_its_neighbour(corpus: Corpus, tmp_path: Path, name: str, settings: dict) -> None:
    run = dsengine.train(method={"name": name, "second": "neighbour", "scale_km": 5.0, **settings}, encoder="resnet18", corpus=str(corpus.path),
                         out=str(tmp_path / "run"), device={"gpus": 0}, train={"max_steps": 2, "batch_size": 8, "precision": "fp32"}, data={"size": 32})
    assert np.isfinite([run.metrics[-1]["loss"], run.metrics[-1]["heldout_loss"]]).all()
    encoder = dsengine.build_encoder("resnet18", 1 if "pair" in settings else 14)
    first, second = dsengine.build_method(name, encoder=encoder, second="neighbour", scale_km=5.0, **settings).views
    assert (first.of, second.of, second.scale_km) == ("itself", "neighbour", 5.0) and first.augment == second.augment


def test_a_warped_view_of_a_neighbour_is_that_of_the_slow_loader(corpus: Corpus) -> None:
    views = TwoViews(second="neighbour", rotation=15.0).views()
    views = tuple(replace(view, size=16) for view in views)
    reference = ReferenceLoader(corpus, views, 8, split="all", seed=2, level=1.0)
    with Loader(corpus, views, 8, split="all", seed=2, level=1.0) as loader:
        for step in range(2):
            got, expected = next(loader), reference.batch(step)
            for a, b in zip(got.views, expected.views, strict=True):
                assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_a_neighbour_without_a_table_or_a_scale_is_refused(small_corpus: Path) -> None:
    with pytest.raises(UsageError, match="dsengine corpus neighbours"):
        Loader(open_corpus(small_corpus), TwoViews(second="neighbour").views(), 8)
    with pytest.raises(UsageError, match="scale_km=0"):
        TwoViews(second="neighbour", scale_km=0)
    with pytest.raises(UsageError, match="of='near'"):
        TwoViews(second="near")
