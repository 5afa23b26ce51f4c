"""The neighbour table: all pairs that brute force and scikit-learn find, sorted, date line and poles included, in bounded memory."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import BallTree

from dsengine import cli
from dsengine.corpus import neighbours as module
from dsengine.corpus import open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.neighbours import find_pairs, write_neighbours
from dsengine.corpus.schema import standard_layout
from dsengine.corpus.verify import verify
from dsengine.errors import RunError, UsageError

EARTH_KM = 6371.0088


def haversine_km(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """(N, N) float64 by the textbook formula."""
    east, north = np.radians(lon), np.radians(lat)
    a = np.sin((north[:, None] - north) / 2) ** 2 + np.cos(north[:, None]) * np.cos(north) * np.sin((east[:, None] - east) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(a, 1)))


def table(lon: np.ndarray, lat: np.ndarray, radius_km: float) -> list[tuple[list[int], np.ndarray]]:
    """(neighbours, km) of each point."""
    rows = []
    for pairs in find_pairs(lon, lat, radius_km=radius_km):
        ends = np.cumsum(pairs.counts)
        rows += [(pairs.indices[lo:hi].tolist(), pairs.km[lo:hi]) for lo, hi in zip([0, *ends[:-1]], ends)]
    return rows


def everywhere(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))


def assert_is_brute_force(lon: np.ndarray, lat: np.ndarray, radius_km: float) -> None:
    km, found = haversine_km(lon, lat), table(lon, lat, radius_km)
    assert len(found) == len(lon)
    for row, (ids, distances) in enumerate(found):
        surely = set(np.flatnonzero(km[row] < radius_km - 1e-6)) - {row}
        maybe = set(np.flatnonzero(km[row] <= radius_km + 1e-6)) - {row}
        assert surely <= set(ids) <= maybe and len(set(ids)) == len(ids)
        np.testing.assert_allclose(distances, km[row][ids], rtol=1e-6, atol=1e-6)
        assert list(zip(distances.tolist(), ids)) == sorted(zip(distances.tolist(), ids))


@pytest.mark.parametrize("radius_km", [0.5, 111.2, 2500.0, 9000.0, 19000.0])
def test_pairs_are_those_of_brute_force_haversine(radius_km: float) -> None:
    lon, lat = everywhere(300)
    assert_is_brute_force(lon, lat, radius_km)


@settings(max_examples=60, deadline=None)
@given(points=st.lists(st.tuples(st.sampled_from([-180.0, -179.99, 179.99, 180.0, 0.0, 0.01, 12.3]),
                                 st.sampled_from([-90.0, -89.99, 0.0, 0.01, 50.0, 89.9, 90.0])), min_size=1, max_size=30),
       radius_km=st.sampled_from([0.001, 1.0, 5.0, 111.2, 20015.0]))
def test_date_line_poles_and_equal_places_are_as_brute_force_says(points: list, radius_km: float) -> None:
    lon, lat = np.array(points).T
    assert_is_brute_force(lon, lat, radius_km)


def test_pairs_are_those_of_scikit_learns_balltree() -> None:
    lon, lat = everywhere(4000, seed=1)
    lon[:1500], lat[:1500] = 20 + lon[:1500] / 100, 45 + lat[:1500] / 100  # a cluster
    radians = np.radians(np.stack([lat, lon], 1))
    ids, km = BallTree(radians, metric="haversine").query_radius(radians, 111.2 / EARTH_KM, return_distance=True)
    for row, (found, distances) in enumerate(table(lon, lat, 111.2)):
        expected = {int(k): d * EARTH_KM for k, d in zip(ids[row], km[row]) if k != row}
        assert set(found) == expected.keys()
        np.testing.assert_allclose(distances, [expected[k] for k in found], rtol=1e-5, atol=1e-6)


def test_pairs_do_not_depend_on_how_rows_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    lon, lat = everywhere(500, seed=2)
    whole = table(lon, lat, 900.0)
    for pairs, rows in ((1, 65536), (40, 65536), (10**9, 7)):
        monkeypatch.setattr(module, "BLOCK_PAIRS", pairs)
        monkeypatch.setattr(module, "BLOCK_ROWS", rows)
        for (ids, km), (other_ids, other_km) in zip(whole, table(lon, lat, 900.0), strict=True):
            assert ids == other_ids
            np.testing.assert_array_equal(km, other_km)


def test_mean_nearest_distance_is_that_of_random_points_on_a_sphere() -> None:
    # Expected 1 / (2 sqrt(density)): 18.4 km for 100,000 points on 135 million km2 of land; here 510 million km2 and fewer points.
    count = 20_000
    nearest = np.array([km[0] for _, km in table(*everywhere(count, seed=3), 500.0)])
    assert nearest.mean() == pytest.approx(0.5 * np.sqrt(4 * np.pi * EARTH_KM**2 / count), rel=0.02)


@pytest.fixture
def path(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


def test_the_stored_table_is_read_by_plain_zarr_and_by_the_corpus(path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["corpus", "neighbours", str(path), "--radius-km", "40"]) == 0
    assert "neighbours of 96 patches within 40 km" in capsys.readouterr().out
    corpus, group = open_corpus(path), zarr.open_group(path, mode="r")["neighbours"]
    km = haversine_km(corpus.index.lon, corpus.index.lat)
    np.fill_diagonal(km, np.inf)
    indptr, indices, distance = (group[name][...] for name in ("indptr", "indices", "distance_km"))
    assert (indptr.dtype, indices.dtype, distance.dtype) == (np.int64, np.int32, np.float32)
    assert indptr[-1] == len(indices) == len(distance) == (km <= 40).sum() == group.attrs["pairs"]
    assert group.attrs["radius_km"] == 40 and group.attrs["earth_radius_km"] == EARTH_KM and group.attrs["rows"] == 96
    for row in range(96):
        ids, near = corpus.neighbours.of(row)
        assert set(ids) == set(np.flatnonzero(km[row] <= 40))
        np.testing.assert_allclose(near, km[row][ids], rtol=1e-6)
        np.testing.assert_array_equal(indices[indptr[row]:indptr[row + 1]], ids)
    assert all(np.array_equal(a, b) for a, b in zip(corpus.neighbours.load(), (indptr, indices, distance)))
    assert not verify(corpus).problems


def test_a_table_of_many_chunks_is_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_neighbours(open_corpus(path), radius_km=60)
    whole = open_corpus(path).neighbours.load()
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "BLOCK_PAIRS", 100)
    write_neighbours(open_corpus(path), radius_km=60)
    assert len(list((path / "neighbours/indices/c").iterdir())) == -(-len(whole[1]) // 64) > 5
    assert all(np.array_equal(a, b) for a, b in zip(open_corpus(path).neighbours.load(), whole))


def test_only_patches_that_meet_the_condition_have_neighbours_or_are_some(path: Path) -> None:
    corpus = open_corpus(path)
    rows = corpus.rows("all", "cloud == 0 and split == 'train'")
    write_neighbours(corpus, radius_km=50, where="cloud == 0 and split == 'train'")
    indptr, indices, _ = open_corpus(path).neighbours.load()
    assert set(indices) <= set(rows) and set(np.flatnonzero(np.diff(indptr))) <= set(rows) and 0 < len(rows) < 96
    km = haversine_km(corpus.index.lon[rows], corpus.index.lat[rows])
    assert len(indices) == (km <= 50).sum() - len(rows)


def test_an_empty_table_is_a_table(path: Path) -> None:
    assert write_neighbours(open_corpus(path), radius_km=50, where="cloud > 2") == write_neighbours(open_corpus(path), radius_km=1e-9) == 0
    ids, km = open_corpus(path).neighbours.of(5)
    assert ids.shape == km.shape == (0,) and not verify(open_corpus(path)).problems


def test_what_is_not_legal_is_refused_and_nothing_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus(path)
    with pytest.raises(UsageError, match=r"has no neighbour table: run `dsengine corpus neighbours"):
        corpus.neighbours  # noqa: B018
    for radius in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="radius_km"):
            write_neighbours(corpus, radius_km=radius)
    monkeypatch.setattr(module, "MOST_PAIRS", 100)
    with pytest.raises(UsageError, match=r"pairs of 96 patches lie within the radius; legal: at most 100"):
        write_neighbours(corpus, radius_km=50)
    assert not (path / "neighbours").exists() and not [f for f in path.iterdir() if f.name.startswith(".change")]


def test_a_table_of_another_corpus_or_a_damaged_one_is_named(path: Path) -> None:
    write_neighbours(open_corpus(path), radius_km=50)
    with pytest.raises(UsageError, match="id=96 is not legal: 0 to 95"):
        open_corpus(path).neighbours.of(96)
    described = path / "neighbours/indptr/zarr.json"
    text = described.read_text()
    described.write_text(text.replace('"data_type": "int64"', '"data_type": "nonsense"'))
    with pytest.raises((RunError, UsageError), match="neighbours"):
        open_corpus(path, checked=False).neighbours  # noqa: B018
    described.write_text(text.replace("97", "90"))
    with pytest.raises((RunError, UsageError), match="89 patches, the corpus has 96|damaged"):
        open_corpus(path, checked=False).neighbours  # noqa: B018


def test_a_run_that_fails_midway_leaves_the_table_there_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_neighbours(open_corpus(path), radius_km=30)
    before = {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()}
    monkeypatch.setattr(module, "BLOCK_PAIRS", 100)

    def failing(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_neighbours(open_corpus(path), radius_km=60, progress=failing)
    assert before == {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_memory_grows_with_a_block_and_not_with_the_pairs() -> None:
    # 6,000 points of one cluster are 36 million pairs, 860 MB as scipy makes them; a block is 2 million.
    code = """
import resource, numpy as np
from dsengine.corpus.neighbours import find_pairs
rng = np.random.default_rng(0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
total = sum(len(p.km) for p in find_pairs(rng.uniform(0, .3, 6000), rng.uniform(0, .3, 6000), radius_km=111.2))
print(total, peak() - before)
"""
    total, grown_mib = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(total) == 6000 * 5999
    assert float(grown_mib) < 400


def test_patches_without_a_place_have_no_neighbours_and_are_nobodys(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with CorpusWriter(tmp_path / "c", layout=standard_layout(4), num_patches=5, made_by={}, split="given") as writer:
        pixels = {name: np.arange(5 * bands * 16, dtype=np.int16).reshape(5, bands, 4, 4) for name, bands in (("s2", 12), ("s1", 2))}
        nowhere = np.array([0.0, np.nan, 0.1, np.nan, 0.2])
        writer.append(Block(pixels, {"lon": nowhere, "lat": nowhere, "split": np.zeros(5)}))
        path = writer.finish()
    assert cli.main(["corpus", "neighbours", str(path), "--radius-km", "20"]) == 0
    assert "4 neighbours of 3 patches" in capsys.readouterr().out
    near = open_corpus(path).neighbours
    assert [sorted(near.of(row)[0].tolist()) for row in range(5)] == [[2], [], [0, 4], [], [2]]
    assert write_neighbours(open_corpus(path), where="not lon < 1") == 0
