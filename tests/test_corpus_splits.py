"""Splits by block, at random and by column: units stay whole, fractions hold, the date line is no edge between equals; and what leaks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import haversine_distances

from dsengine import cli
from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.grid import SplitRule, assign, blocks
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.leakage import leakage
from dsengine.corpus.schema import standard_layout
from dsengine.corpus.splits import site_places
from dsengine.corpus.verify import verify
from dsengine.errors import UsageError

FRACTIONS = st.sampled_from([(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.0, 0.5, 0.5), (0.9, 0.1, 0.0), (0.0, 0.0, 1.0), (0.3, 0.0, 0.7)])


def columns(count: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    return {"lon": lon, "lat": lat, "split_lon": lon, "split_lat": lat, "country": rng.choice(["at", "fi", "pt", "ie", "rs", "lu", "be"], count),
            "fold": rng.integers(0, 5, count).astype(np.uint8)}


@pytest.mark.parametrize("by", ["block", "random", "column:fold", "column:country"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 40), fractions=FRACTIONS)
def test_units_stay_whole_and_no_wanted_split_is_empty_while_there_are_units(by: str, seed: int, count: int, fractions: tuple) -> None:
    made = columns(count, seed=seed)
    codes = assign(made, SplitRule(by, fractions), seed=seed)
    units = {"block": [str(b) for b in blocks(made["lon"], made["lat"]).tolist()], "random": list(range(count))}.get(by)
    units = np.asarray(made[by.removeprefix("column:")] if units is None else units)
    assert all(len(set(codes[units == unit])) == 1 for unit in np.unique(units))
    wanted = [k for k in range(3) if fractions[k] > 0]
    assert set(codes) <= set(wanted)
    assert set(wanted[:len(np.unique(units))]) <= set(codes)


@pytest.mark.parametrize("by", ["block", "random"])
def test_fractions_hold_over_many_units_and_the_seed_matters(by: str) -> None:
    made = columns(20_000)
    codes = [assign(made, SplitRule(by, (0.6, 0.3, 0.1)), seed=seed) for seed in (0, 1)]
    np.testing.assert_allclose(np.bincount(codes[0]) / 20_000, [0.6, 0.3, 0.1], atol=0.015)
    assert 0.4 < (codes[0] != codes[1]).mean() < 0.7  # 1 - (.36 + .09 + .01) for independent draws


@pytest.mark.parametrize("by", ["block", "column:country"])
def test_a_unit_has_the_same_split_in_every_corpus_that_fills_all_splits(by: str) -> None:
    whole = columns(3000)
    part = {name: values[1000:] for name, values in whole.items()}
    np.testing.assert_array_equal(assign(part, SplitRule(by), seed=4), assign(whole, SplitRule(by), seed=4)[1000:])


def test_the_date_line_is_one_meridian_whatever_its_sign() -> None:
    lat = np.linspace(-80, 80, 333)
    for east, west in ((180.0, -180.0), (180.05, -179.95), (-180.1, 179.9), (359.0, -1.0)):
        np.testing.assert_array_equal(blocks(np.full(333, east), lat), blocks(np.full(333, west), lat))


def test_a_larger_block_keeps_neighbours_together_that_a_smaller_one_parts() -> None:
    lon, lat = np.meshgrid(np.arange(10, 12, 0.4), np.arange(40, 42, 0.4))
    assert len(np.unique(blocks(lon.ravel(), lat.ravel(), block_deg=0.25), axis=0)) == lon.size
    assert len(np.unique(blocks(lon.ravel(), lat.ravel(), block_deg=5.0), axis=0)) <= 4


@pytest.mark.parametrize(("rule", "match"), [
    (lambda: SplitRule("place"), "legal: block, random, column:NAME|not legal: block"),
    (lambda: SplitRule("column:"), "not legal"),
    (lambda: SplitRule("block", (0.5, 0.5)), "3 numbers"),
    (lambda: SplitRule("block", (0.5, 0.2, 0.2)), "together 1"),
    (lambda: SplitRule("block", (1.2, -0.1, -0.1)), "from 0 to 1"),
    (lambda: SplitRule("block", block_deg=0.0), "above 0"),
    (lambda: assign(columns(5), SplitRule("column:contry"), seed=0), "no such index column; did you mean country"),
    (lambda: assign({**columns(5), "split_lon": np.full(5, np.nan)}, SplitRule("block"), seed=0), "5 of 5 rows have no place"),
])
def test_a_rule_that_is_not_legal_is_named_with_what_is(rule: object, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        rule()


def write(path: Path, lon: np.ndarray, lat: np.ndarray, *, split: str | SplitRule = "block", **more: object) -> Path:
    """A corpus of 16 px patches of 10 m at the given places."""
    count, extra = len(lon), {name: "str" for name in more if name == "country"}
    with CorpusWriter(path, layout=standard_layout(16, sensors=("s1",)), num_patches=count, made_by={}, split=split, columns=extra) as writer:
        while writer.next_row < count:
            rows = slice(writer.next_row, writer.next_row + writer.next_count)
            pixels = np.random.default_rng(rows.start).integers(-2000, 0, (writer.next_count, 2, 16, 16)).astype(np.int16)
            writer.append(Block({"s1": pixels}, {"lon": lon[rows], "lat": lat[rows], **{k: np.asarray(v)[rows] for k, v in more.items()}}))
        return writer.finish()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = columns(150, seed=2)
    return write(tmp_path_factory.mktemp("splits") / "corpus", 10 + made["lon"] / 90, 45 + made["lat"] / 90, country=made["country"],
                 source=[f"scene {k // 10}" for k in range(150)], split=SplitRule("random", (0.5, 0.2, 0.3)))


@pytest.mark.parametrize("by", ["block", "random", "column:country", "column:source"])
def test_split_command_rewrites_the_column_and_what_the_root_says_and_nothing_else(small: Path, tmp_path: Path, by: str) -> None:
    path = Path(shutil.copytree(small, tmp_path / "c"))
    before = {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()}
    assert cli.main(["corpus", "split", str(path), "--by", by, "--fractions", "0.4,0.3,0.3", "--seed", "9"]) == 0
    changed = {str(name) for name in before if (path / name).read_bytes() != before[name] and not str(name).startswith("manifest")}
    assert changed == {"zarr.json", "index/split/c/0"} and {f.relative_to(path) for f in path.rglob("*") if f.is_file()} == before.keys()
    corpus = open_corpus(path)
    assert corpus.attributes["splits"]["by"] == by and corpus.attributes["splits"]["fractions"] == [0.4, 0.3, 0.3]
    assert not verify(corpus).problems
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["index/split"][...], corpus.index.split)
    if by == "column:country":
        country = np.asarray(corpus.columns["country"][...])
        assert all(len(set(corpus.index.split[country == name])) == 1 for name in set(country))
    assert {len(corpus.rows(name)) > 0 for name in ("train", "val", "test")} == {True}


def test_split_without_a_flag_changes_nothing_and_given_is_refused(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = Path(shutil.copytree(small, tmp_path / "c"))
    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}
    assert cli.main(["corpus", "split", str(path)]) == 0
    assert "test to the nearest train patch" in capsys.readouterr().out and before == {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}
    for flags in (["--by", "given"], ["--by", "random", "--block-deg", "1"], ["--fractions", "a,b"], ["--by", "column:nope"]):
        assert cli.main(["corpus", "split", str(path), *flags]) == 2


def test_split_reports_on_a_corpus_that_does_not_state_its_rule(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = Path(shutil.copytree(small, tmp_path / "c"))
    shutil.rmtree(path / "manifest")
    root = json.loads((path / "zarr.json").read_text())
    described = root["attributes"]["dsengine"]
    described["splits"] = {"seed": 0, "block_deg": 0.25}  # all that earlier builds said
    del described["sealed"]
    (path / "zarr.json").write_text(json.dumps(root))
    assert cli.main(["corpus", "split", str(path)]) == 0
    assert "by a rule that it does not state: train" in capsys.readouterr().out


def test_patches_of_one_small_raster_go_together_when_split_anew(small: Path) -> None:
    lon, lat = np.array([9.99, 10.01, 10.02, 50.0, 58.0]), np.array([44.99, 45.01, 45.02, 0.0, 0.0])
    place = site_places({"lon": lon, "lat": lat, "source": np.array(["a", "a", "a", "b", "b"], object)}, 0.25)
    assert len(set(zip(*(p[:3] for p in place)))) == 1 and place[0][3:].tolist() == [50.0, 58.0]
    assert len(np.unique(blocks(*place), axis=0)) == 3 and len(np.unique(blocks(lon, lat), axis=0)) == 4


def brute(corpus: Corpus, split: str) -> np.ndarray:
    """(n,) km from each patch of the split to the nearest train patch, by scikit-learn's haversine."""
    train, held = (np.radians(np.stack([corpus.index.lat, corpus.index.lon], 1)[corpus.rows(name)]) for name in ("train", split))
    return haversine_distances(held, train).min(axis=1) * 6371.0088


@pytest.mark.parametrize("split", ["val", "test"])
def test_leakage_is_what_brute_force_haversine_finds(small: Path, split: str) -> None:
    corpus = open_corpus(small)
    found, km = leakage(corpus, split), brute(corpus, split)
    np.testing.assert_allclose([found.least_km, found.percentile_1_km, found.median_km], [km.min(), np.percentile(km, 1), np.median(km)], rtol=1e-7)
    assert found.num_patches == len(km) and found.num_overlapping == (km < 0.16 * np.sqrt(2)).sum()


def test_overlapping_windows_split_at_random_are_counted_and_by_block_are_not(tmp_path: Path) -> None:
    step = 0.08 / 111.2  # half a patch, across the date line
    lon, lat = (g.ravel() for g in np.meshgrid(180 + np.arange(-9, 9) * step, np.arange(9) * step))
    corpus = open_corpus(write(tmp_path / "r", (lon + 180) % 360 - 180, lat, split="random"))
    found = leakage(corpus)
    assert found.num_overlapping == found.num_patches == len(corpus.rows("test")) > 0 and found.least_km < 0.09
    assert "within a patch diagonal" in found.sentence() and "80 m" in found.sentence()
    far = open_corpus(write(tmp_path / "b", np.tile([10.0, 20.0, 30.0], 6), np.repeat(np.arange(6) * 5.0, 3)))
    assert leakage(far).num_overlapping == 0 and leakage(far).least_km > 100


def test_without_train_or_without_the_split_there_is_no_distance(tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path / "c", np.array([1.0, 30.0]), np.zeros(2), split=SplitRule("random", (0.5, 0.5, 0.0))))
    assert leakage(corpus, "test") is None and leakage(corpus, "val") is not None
