"""Corpora made out of corpora: convert and merge, against plain zarr-python and numpy."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.build.plan import build_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.edit.copy import Changes, copy_plan
from dsengine.corpus.schema import NODATA, LabelSpec, standard_layout

CLASSMAP = LabelSpec(name="cover", kind="classmap", classes={0: "water", 1: "land"}, ignore=255)
SCENE = LabelSpec(name="scene", kind="class", classes={0: "a", 1: "b"})
TAGS = LabelSpec(name="tags", kind="multilabel", classes={0: "x", 1: "y", 2: "z"})


def write(path: Path, n: int, seed: int, *, size: int = 12, columns: bool = True) -> Path:
    """A corpus of random pixels with labels of every kind and an extra column."""
    rng = np.random.default_rng(seed)
    layout = standard_layout(size, labels=(CLASSMAP, SCENE, TAGS))
    with CorpusWriter(path, layout=layout, num_patches=n, made_by={"seed": seed}, columns={"region": "str"} if columns else {}) as writer:
        while writer.next_row < n:
            k = writer.next_count
            s2, s1 = rng.integers(-200, 9000, (k, 12, size, size)).astype(np.int16), rng.integers(-3000, 0, (k, 2, size, size)).astype(np.int16)
            s2[:, :, :2, :3] = NODATA
            index = {"lon": rng.uniform(-179, 179, k), "lat": rng.uniform(-60, 70, k), "cloud_fraction": rng.uniform(0, 1, k)}
            if columns:
                index["region"] = [f"r{value}" for value in rng.integers(0, 5, k)]
            labels = {"cover": rng.integers(0, 2, (k, size, size)).astype(np.uint8), "scene": rng.integers(0, 2, k).astype(np.uint8),
                      "tags": rng.integers(0, 2, (k, 3)).astype(np.uint8)}
            writer.append(Block({"s2": s2, "s1": s1}, index, labels))
        return writer.finish()


def run(*words: object) -> int:
    return cli.main(["corpus", *map(str, words)])


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("edit") / "a", 70, 1)


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("edit") / "b", 33, 2)


def everything(path: Path) -> dict[str, np.ndarray]:
    """Every array below a corpus by its name, read by zarr-python alone."""
    group = zarr.open_group(path, mode="r")
    members = [(name, node) for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)]
    return {name: np.asarray(node[...]) for name, node in members}


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none", "bitpack", "bitpack-lorenzo"])
def test_another_codec_and_shard_size_keep_every_value(a: Path, tmp_path: Path, codec: str) -> None:
    assert run("convert", a, tmp_path / "c", "--codec", codec, "--shard-patches", 16) == 0
    before, after = everything(a), everything(tmp_path / "c")
    assert before.keys() == after.keys() and {"labels/tags", "index/region", "index/split"} <= before.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    array = zarr.open_array(tmp_path / "c" / "s2", mode="r")
    assert array.shards[0] == 16 and len(list((tmp_path / "c/s2/c").iterdir())) == 5
    assert run("verify", tmp_path / "c") == 0
    assert open_corpus(tmp_path / "c").contract().to_json() == open_corpus(a).contract().to_json()


def test_merged_rows_follow_each_other_with_labels_columns_and_splits(a: Path, b: Path, tmp_path: Path) -> None:
    assert run("merge", tmp_path / "m", a, b) == 0
    first, second, both = everything(a), everything(b), everything(tmp_path / "m")
    for name in first:
        expected = np.arange(103) if name == "index/id" else np.concatenate([first[name], second[name]])
        np.testing.assert_array_equal(both[name], expected, err_msg=name)
    valid = np.where(both["s2"] == NODATA, np.nan, both["s2"].astype(np.float64)) * 1e-4
    np.testing.assert_allclose(open_corpus(tmp_path / "m").arrays["s2"].attrs["mean"], np.nanmean(valid, axis=(0, 2, 3)), rtol=1e-9)
    assert run("verify", tmp_path / "m") == 0


def test_a_group_is_the_mean_of_pixels_with_data_and_keeps_band_names(a: Path, tmp_path: Path) -> None:
    assert run("convert", a, tmp_path / "c", "--group", "s2_20m:2=B8A,B05", "--resample", "mean") == 0
    corpus, old = open_corpus(tmp_path / "c"), open_corpus(a)
    assert [band.name for band in corpus.bands] == ["B01", "B02", "B03", "B04", "B06", "B07", "B08", "B09", "B11", "B12", "B8A", "B05", "VV", "VH"]
    x = old.arrays["s2"][...][:, [8, 4]].astype(np.float64).reshape(70, 2, 6, 2, 6, 2)
    x[x == NODATA] = np.nan
    count = np.isfinite(x).sum(axis=(3, 5))
    with np.errstate(invalid="ignore"):
        expected = np.where(count >= 2, np.rint(np.nansum(x, axis=(3, 5)) / count), NODATA)
    np.testing.assert_array_equal(corpus.arrays["s2_20m"][...], expected)
    assert (count == 2).any() and (count == 0).any()  # both sides of the rule
    assert corpus.arrays["s2_20m"].attrs["resolution_m"] == 20


def test_exact_grouping_undoes_repetition_and_refuses_to_lose_detail(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("convert", a, tmp_path / "lost", "--group", "s2_20m:2=B05") == 2
    assert "band B05 is not constant in blocks of 2 x 2" in capsys.readouterr().err
    build_corpus(tmp_path / "coarse", copy_plan([a], Changes(groups=_groups("s2_60m:3=B01,B09"), resample="mean"), command="t"))
    build_corpus(tmp_path / "fine", copy_plan([tmp_path / "coarse"], Changes(groups=_groups("s2_10m:1=B01,B09")), command="t"))
    build_corpus(tmp_path / "back", copy_plan([tmp_path / "fine"], Changes(groups=_groups("s2_60m:3=B01,B09")), command="t"))
    np.testing.assert_array_equal(everything(tmp_path / "back")["s2_60m"], everything(tmp_path / "coarse")["s2_60m"])
    assert open_corpus(tmp_path / "fine").arrays["s2_10m"].shape == (70, 2, 12, 12)


def _groups(text: str) -> tuple:
    from dsengine.corpus.edit.layout import parse_group

    return (parse_group(text),)


@pytest.mark.parametrize("words, message", [
    (["--group", "s2_20m=B05"], "legal: ARRAY:FACTOR=BAND"),
    (["--group", "s2_20m:2=B5"], "band 'B5' is not in the corpus; did you mean B05"),
    (["--group", "x:2=B05,VV"], "differ in sensor"),
    (["--group", "s2:2=B05"], "array s2 still holds other bands"),
    (["--group", "s2_50m:5=B05"], "patch size 12 is not a multiple of 5"),
    (["--group", "x:2=B05", "--group", "y:2=B05"], "band B05 is named twice"),
    (["--group", "labels:1=VV,VH"], "array labels: a corpus has a folder of that name"),
    (["--group", "neighbours:1=VV,VH"], "array neighbours: a corpus has a folder of that name"),
    (["--shard-patches", "0"], "--shard-patches 0"),
    (["--resample", "median"], "legal: exact, mean"),
])
def test_what_cannot_be_is_refused_by_name(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], message: str) -> None:
    assert run("convert", a, tmp_path / "c", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_corpora_that_differ_are_not_merged_and_the_difference_is_named(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = write(tmp_path / "other", 3, 3, size=24)
    assert run("merge", tmp_path / "m", a, other) == 2
    assert "patch_size: 24 against 12" in capsys.readouterr().err
    bare = write(tmp_path / "bare", 3, 3, columns=False)
    assert run("merge", tmp_path / "m", a, bare) == 2
    assert "index columns: none against {'region': 'str'}" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [(70, 33), (64, 1), (10, 20), (70, 130)])
def test_append_gives_what_merge_gives_and_leaves_whole_shards_alone(tmp_path: Path, numbers: tuple[int, int]) -> None:
    first, second = write(tmp_path / "first", numbers[0], 5), write(tmp_path / "second", numbers[1], 6)
    assert run("merge", tmp_path / "merged", first, second) == 0
    shard = first / "s2/c/0/0/0/0"
    before = (shard.stat().st_ino, shard.read_bytes())
    assert run("append", first, second) == 0
    merged, grown = everything(tmp_path / "merged"), everything(first)
    assert merged.keys() == grown.keys()
    for name, values in merged.items():
        np.testing.assert_array_equal(grown[name], values, err_msg=name)
    if numbers[0] >= 64:
        assert (shard.stat().st_ino, shard.read_bytes()) == before
    for name in ("s2", "s1"):
        assert dict(open_corpus(first).arrays[name].attrs) == dict(open_corpus(tmp_path / "merged").arrays[name].attrs)
    assert run("verify", first) == 0
    attributes = open_corpus(first).attributes
    assert attributes["made_by"] == {"seed": 5} and [item["num_patches"] for item in attributes["appended"]] == [numbers[1]]


def test_a_dropped_neighbour_table_leaves_nothing_that_zarr_warns_of(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first", 5, 5), write(tmp_path / "second", 3, 6)
    assert run("neighbours", first) == 0 and "neighbours" in zarr.open_group(first, mode="r")
    assert run("append", first, second) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(name.startswith("neighbours") for name in everything(first))
    assert not (first / "neighbours").exists()


def _with_faults(path: Path, n: int, seed: int) -> Path:
    """A corpus of `n` patches that reports two faults of its input, and 7 values cut in B03."""
    rng = np.random.default_rng(seed)
    with CorpusWriter(path, layout=standard_layout(12), num_patches=n, made_by={"seed": seed}) as writer:
        while writer.next_row < n:
            k, first = writer.next_count, writer.next_row == 0
            pixels = {name: rng.integers(0, 900, (k, bands, 12, 12)).astype(np.int16) for name, bands in (("s2", 12), ("s1", 2))}
            cloud = np.linspace(0, 1, k)
            writer.append(Block(pixels, {"lon": np.zeros(k), "lat": np.zeros(k), "cloud_fraction": cloud}, saturated={"s2": [0, 0, 7, *[0] * 9]} if first else {},
                                faults=[f"row 1 of {seed}", f"row 2 of {seed}"] if first else []))
        return writer.finish()


def test_faults_and_cut_values_follow_the_patches_into_every_copy(tmp_path: Path) -> None:
    first, second = _with_faults(tmp_path / "first", 70, 1), _with_faults(tmp_path / "second", 5, 2)
    theirs = [f"of {second}: row 1 of 2", f"of {second}: row 2 of 2"]
    assert run("merge", tmp_path / "merged", first, second) == 0
    assert run("convert", first, tmp_path / "part", "--where", "cloud > 0.1") == 0  # without row 0
    assert run("append", first, second) == 0
    for path, faults, cut in ((tmp_path / "merged", ["row 1 of 1", "row 2 of 1", *theirs], 14), (first, ["row 1 of 1", "row 2 of 1", *theirs], 14),
                              (tmp_path / "part", [f"of {first}: row 1 of 1", f"of {first}: row 2 of 1"], 7)):
        corpus = open_corpus(path)
        assert (corpus.attributes["faults"], corpus.attributes["num_faults"]) == (faults, len(faults))
        assert corpus.arrays["s2"].attrs["saturated"] == [0, 0, cut, *[0] * 9]


def test_an_append_that_fails_leaves_the_corpus_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = write(tmp_path / "first", 70, 5), write(tmp_path / "second", 10, 6)
    before = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    damaged = next((second / "s2").rglob("c/0/0/0/0"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert run("append", first, second) == 1
    assert "second" in capsys.readouterr().err
    assert {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
