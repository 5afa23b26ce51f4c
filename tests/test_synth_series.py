"""The synthetic pixels and series: the same bytes for a seed, however they are cut; what they show is what the label says."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.synth.seasons import DORMANT, FULL_LEAF
from dsengine.corpus.synth.series import DAYS, Rows, synthesize_series
from dsengine.corpus.synth.spectra import CLASSES, CROP, NEEDLELEAF, SNOW, WATER
from dsengine.errors import UsageError

HASHES = {"pixels": "9126cc82e8a72895", "series": "116634bec2035191"}  # of version 1, seed 0, 64 rows


@pytest.fixture(scope="module", params=["pixels", "series"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def _arrays(kind: str, rows: range, seed: int = 0) -> list[np.ndarray]:
    block = Rows(seed, kind)(rows)
    return [*block.arrays.values(), *block.labels.values(), *(block.index[name] for name in ("lon", "lat"))]


def test_the_world_is_frozen(kind: str) -> None:
    digest = hashlib.sha256(b"".join(x.tobytes() for x in _arrays(kind, range(64)))).hexdigest()
    assert digest[:16] == HASHES[kind]


def test_a_row_is_the_same_in_any_block_and_other_seeds_are_other_worlds(kind: str) -> None:
    whole, part, other = _arrays(kind, range(100)), _arrays(kind, range(37, 60)), _arrays(kind, range(37, 60), seed=1)
    assert all(np.array_equal(x[37:60], y) for x, y in zip(whole, part))
    assert not any(np.array_equal(x, y) for x, y in zip(part, other))


def test_a_corpus_holds_both_sensors_with_label_and_splits(kind: str, tmp_path: Path) -> None:
    corpus = open_corpus(synthesize_series(tmp_path / "c", kind=kind, num_rows=500, seed=2))
    assert corpus.kind == kind and len(corpus) == 500 and corpus.sensors == ("s2", "planet") and [b.sensor for b in corpus.bands].count("planet") == 36
    assert all(len(corpus.rows(split)) > 10 for split in ("train", "val", "test"))
    np.testing.assert_array_equal(corpus.values["planet"][:], _arrays(kind, range(500), 2)[1])
    assert set(np.unique(corpus.labels["landcover"][:])) == set(CLASSES)
    if kind == "series":
        assert corpus.values["s2"].shape == (500, len(DAYS), 12)
        clear = corpus.valid["s2"][:].mean()
        assert 0.6 < clear < 0.8 and 0.95 < corpus.valid["planet"][:].mean() < 0.99
    corpus.contract()


def test_mixtures_are_whole() -> None:
    for table in (DORMANT, FULL_LEAF):
        np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-12)
        assert (table >= 0).all()


def test_surfaces_look_like_what_their_label_says() -> None:
    block = Rows(0, "series")(range(3000))
    s2, planet, label = block.arrays["s2"].astype(float), block.arrays["planet"].astype(float), block.labels["landcover"]
    s2[s2 == -32768], planet[planet == -32768] = np.nan, np.nan
    ndvi = (s2[..., 7] - s2[..., 3]) / (s2[..., 7] + s2[..., 3])
    of = {name: np.nanmean(ndvi[label == name], axis=0) for name in (WATER, NEEDLELEAF, CROP, SNOW)}
    assert of[NEEDLELEAF].min() > 0.4 and of[WATER].max() < 0.25
    assert of[CROP].max() - of[CROP].min() > 0.2  # comes and goes
    assert np.argmax(of[CROP]) in range(11, 22)  # in early summer
    assert np.nanmean(s2[label == SNOW][..., 1]) > 2 * np.nanmean(s2[label == NEEDLELEAF][..., 1])
    # A Planet band is the mean of its nine pixels, and follows Sentinel-2's of the same place.
    red = planet[..., 18:27].mean(axis=-1)
    both = ~np.isnan(red) & ~np.isnan(s2[..., 3])
    assert np.corrcoef(red[both], s2[..., 3][both])[0, 1] > 0.97


def test_the_command_writes_either_kind_and_refuses_what_does_not_go_with_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["corpus", "synth", str(tmp_path / "c"), "--kind", "series", "--rows", "40", "--seed", "5"]) == 0
    assert open_corpus(tmp_path / "c").kind == "series" and "planet" in capsys.readouterr().out
    for flags, words in ((["--kind", "pixels"], "--rows N"), (["--kind", "pixels", "--rows", "9", "--patches", "9"], "--patches 9"), ([], "--patches N"),
                         (["--kind", "pixels", "--rows", "9", "--size", "64"], "--size 64"), (["--rows", "9", "--patches", "9"], "--rows 9"),
                         (["--kind", "pixels", "--rows", "0"], "num_rows: 0")):
        assert cli.main(["corpus", "synth", str(tmp_path / "d"), *flags]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UsageError, match="kind: 'patches' is not legal: series, pixels"):
        synthesize_series(tmp_path / "e", kind="patches", num_rows=4)
