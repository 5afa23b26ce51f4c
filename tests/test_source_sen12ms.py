"""Source sen12ms on a tree in the published layout, against rasterio and numpy, band by name; and what it refuses."""

import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio.transform import from_origin
from scipy.ndimage import zoom

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import NODATA, SPLITS, UNKNOWN_TIME
from dsengine.errors import RunError, UsageError

S2_FILE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
LC_FILE_ORDER = ("igbp", "lccs_lc", "lccs_lu", "lccs_sh")
LEGENDS = {"igbp": range(1, 18), "lccs_lc": (1, 2, 3, 11, 12, 13, 14, 15, 16, 21, 22, 31, 32, 41, 42, 43),
           "lccs_lu": (1, 2, 3, 9, 10, 20, 25, 30, 35, 36, 40), "lccs_sh": (1, 2, 3, 10, 20, 27, 30, 40, 50, 51)}
# (folder, scene, patch, epsg, left, top): patches of a scene overlap by half; the scenes lie in two zones and both hemispheres.
PATCHES = [("ROIs1158_spring", 1, p, 32632, 400000 + 1280 * i, 5300000) for i, p in enumerate((30, 31, 200))]
PATCHES += [("ROIs1158_spring", 17, p, 32733, 300000, 6200000 - 1280 * i) for i, p in enumerate((5, 100))]
PATCHES += [("ROIs1868_summer", 146, p, 32654, 500000 + 1280 * i, 4000000) for i, p in enumerate((201, 202))]
BROKEN = "ROIs1868_summer_s1_146_p202"


def smooth(rng: np.random.Generator, bands: int, low: float, high: float) -> np.ndarray:
    """(bands, 256, 256) float64 imagery between low and high: a coarse field with a little grain."""
    fields = np.stack([zoom(rng.uniform(low, high, (9, 9)), 256 / 9, order=1) for _ in range(bands)])
    return np.clip(fields + rng.normal(0, (high - low) / 50, fields.shape), low, high)


def write(path: Path, x: np.ndarray, epsg: int, left: float, top: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = from_origin(left, top, 10, 10)
    with rasterio.open(path, "w", driver="GTiff", height=x.shape[1], width=x.shape[2], count=len(x), dtype=x.dtype, crs=f"EPSG:{epsg}",
                       transform=transform) as file:
        file.write(x)


def path_of(root: Path, part: str, patch: tuple) -> Path:
    folder, scene, number = patch[:3]
    return root / folder / f"{part}_{scene}" / f"{folder}_{part}_{scene}_p{number}.tif"


def make_tree(root: Path) -> Path:
    for row, patch in enumerate(PATCHES):
        rng = np.random.default_rng(row)
        s1 = smooth(rng, 2, -28, 2).astype(np.float32)
        if patch[1:3] == (146, 202):
            s1[:, 100:, :] = np.nan
        lc = np.stack([zoom(rng.choice(list(LEGENDS[name]), (8, 8)), 32, order=0) for name in LC_FILE_ORDER])
        write(path_of(root, "s2", patch), smooth(rng, 13, 100, 6000).astype(np.uint16), *patch[3:])
        write(path_of(root, "s1", patch), s1, *patch[3:])
        write(path_of(root, "lc", patch), lc.astype(np.uint16), *patch[3:])
    return root


def build(root: Path, out: Path, *extra: str) -> Corpus:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "sen12ms", "--root", str(root), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


def raw(root: Path, part: str, patch: tuple) -> np.ndarray:
    with rasterio.open(path_of(root, part, patch)) as file:
        return file.read()


def edit(root: Path, part: str, patch: tuple, *changes: tuple) -> None:
    """Rewrite a file with x[index] = value for each (index, value)."""
    x = raw(root, part, patch)
    for index, value in changes:
        x[index] = value
    write(path_of(root, part, patch), x, *patch[3:])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("sen12ms") / "tree")


@pytest.fixture(scope="module")
def corpus(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tree, tmp_path_factory.mktemp("sen12ms") / "corpus")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A tree of three patches of one scene that a test may damage."""
    root = tmp_path / "tree"
    for patch in PATCHES[:3]:
        for part, x in (("s2", np.full((13, 256, 256), 500, np.uint16)), ("s1", np.full((2, 256, 256), -9.5, np.float32)),
                        ("lc", np.full((4, 256, 256), 10, np.uint16))):
            write(path_of(root, part, patch), x, *patch[3:])
        edit(root, "lc", patch, (1, 11))
    return root


def test_every_band_of_every_patch_is_what_rasterio_reads_by_name(corpus: Corpus, tree: Path) -> None:
    assert [b.name for b in corpus.bands] == [*S2_FILE_ORDER, "VV", "VH"]
    s2, s1 = (corpus.read(range(len(corpus)), name) for name in ("s2", "s1"))
    channel = {b.name: b.channel for b in corpus.bands}
    for row, patch in enumerate(PATCHES[:-1]):
        for band, plane in zip(S2_FILE_ORDER, raw(tree, "s2", patch), strict=True):
            np.testing.assert_array_equal(s2[row, channel[band]], plane, err_msg=f"{patch} {band}")
        for band, plane in zip(("VV", "VH"), raw(tree, "s1", patch), strict=True):
            assert np.abs(s1[row, channel[band]] * 0.01 - plane).max() <= 0.005 + 1e-6, (patch, band)


def test_decibels_keep_their_fractions(corpus: Corpus) -> None:
    assert (corpus.read([0], "s1") % 100 != 0).mean() > 0.9  # whole decibels would all be multiples of 100


def test_the_four_land_cover_bands_are_four_labels_with_their_legends(corpus: Corpus, tree: Path) -> None:
    for band, name in enumerate(LC_FILE_ORDER):
        stored = corpus.labels[name][...]
        for row, patch in enumerate(PATCHES[:-1]):
            np.testing.assert_array_equal(stored[row], raw(tree, "lc", patch)[band], err_msg=name)
        attrs = dict(corpus.labels[name].attrs)
        assert attrs["kind"] == "classmap" and attrs["ignore"] == 255 and set(map(int, attrs["classes"])) == set(LEGENDS[name])
    assert corpus.labels["igbp"].attrs["classes"]["17"] == "water" and corpus.labels["lccs_sh"].attrs["classes"]["51"] == "tundra"


def test_places_are_those_of_the_files_in_both_hemispheres(corpus: Corpus, tree: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    for row, patch in enumerate(PATCHES[:-1]):
        lon, lat = pyproj.Transformer.from_crs(patch[3], 4326, always_xy=True).transform(patch[4] + 1280, patch[5] - 1280)
        np.testing.assert_allclose([corpus.index.lon[row], corpus.index.lat[row]], [lon, lat], atol=1e-8)
        assert (corpus.index.epsg[row], corpus.index.x[row], corpus.index.y[row]) == patch[3:]
        assert corpus.index.source[row] == str(path_of(Path(), "s2", patch))
    assert (corpus.index.time_s2 == UNKNOWN_TIME).all()
    assert corpus.resolution_m == 10 and corpus.patch_size == 256


def test_the_known_broken_patch_is_left_out_by_name_and_counted(corpus: Corpus) -> None:
    assert len(corpus) == len(PATCHES) - 1 and not [s for s in corpus.index.source if "_146_p202" in s]
    assert corpus.attributes["made_by"]["left_out"] == {f"known to be broken ({BROKEN})": 1, "a file is missing": 0}


def test_a_scene_stays_in_one_split(corpus: Corpus) -> None:
    scenes = [s.rsplit("_p", 1)[0] for s in corpus.index.source]
    for scene in set(scenes):
        assert len({int(code) for code, mine in zip(corpus.index.split, scenes, strict=True) if mine == scene}) == 1


def test_a_scene_wider_than_a_block_stays_in_one_split(copy: Path, tmp_path: Path) -> None:
    for number in range(40):  # 5 km apart: 200 km, seven blocks
        patch = ("ROIs1158_spring", 2, number, 32632, 400000 + 5000 * number, 5300000)
        for part, source in (("s2", PATCHES[1]), ("s1", PATCHES[1])):
            write(path_of(copy, part, patch), raw(copy, part, source), *patch[3:])
    corpus = build(copy, tmp_path / "c", "--labels", "none", "--seed", "1")
    assert len(set(corpus.index.split[3:].tolist())) == 1


def test_values_that_are_not_finite_become_nodata_and_are_reported(copy: Path, tmp_path: Path) -> None:
    edit(copy, "s1", PATCHES[1], ((0, slice(3, 5)), np.nan))
    edit(copy, "s1", PATCHES[2], ((1, 7, 7), np.inf), ((0, 9, 9), 0.0))
    edit(copy, "s2", PATCHES[2], ((slice(None), 0, 0), 0), ((4, 1, 1), 0))
    corpus = build(copy, tmp_path / "c")
    s1, s2 = corpus.read(range(3), "s1"), corpus.read(range(3), "s2")
    assert (s1[1, 0, 3:5] == NODATA).all() and (s1 == NODATA).sum() == 2 * 256 + 2 and s1[2, 1, 7, 7] == s1[2, 0, 9, 9] == NODATA
    assert (s2[2, :, 0, 0] == NODATA).all() and (s2 == NODATA).sum() == 13 and s2[2, 4, 1, 1] == 0
    assert corpus.arrays["s1"].attrs["mean"] == pytest.approx([-9.5, -9.5]) and corpus.arrays["s1"].attrs["count"] == [3 * 65536 - 513, 3 * 65536 - 1]
    assert [line.split(":")[0] for line in corpus.attributes["faults"]] == [str(path_of(Path(), "s1", p)) for p in PATCHES[1:3]]


def test_numbers_beyond_int16_are_cut_and_counted(copy: Path, tmp_path: Path) -> None:
    edit(copy, "s2", PATCHES[0], ((4, 0, slice(0, 3)), (32767, 32768, 65535)))
    corpus = build(copy, tmp_path / "c", "--labels", "none")
    assert corpus.read([0], "s2")[0, 4, 0, :4].tolist() == [32767, 32767, 32767, 500]
    assert corpus.arrays["s2"].attrs["saturated"] == [0, 0, 0, 0, 2] + [0] * 8


def test_fill_values_of_the_legend_are_ignored_and_unknown_values_are_named(copy: Path, tmp_path: Path) -> None:
    edit(copy, "lc", PATCHES[0], ((0, 0, 0), 0), ((0, 0, 1), 255))
    assert build(copy, tmp_path / "c").labels["igbp"][0, 0, :3].tolist() == [255, 255, 10]
    edit(copy, "lc", PATCHES[0], ((1, 0, 0), 99))
    with pytest.raises(RunError, match=r"lc_1_p30.tif band 2 \(lccs_lc\) has value 99; legal: 0, 1, 2, 3, 11"):
        build(copy, tmp_path / "d")


def test_labels_and_seasons_can_be_chosen(tree: Path, tmp_path: Path) -> None:
    corpus = build(tree, tmp_path / "c", "--seasons", "spring", "--labels", "igbp")
    assert len(corpus) == 5 and set(corpus.labels) == {"igbp"}
    for flag, value in (("--seasons", "autumn"), ("--labels", "igbp,lcss_lc")):
        with pytest.raises(UsageError, match=flag):
            build(tree, tmp_path / "d", flag, value)
    assert not (tmp_path / "d").exists()


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, list[str]]:
    """The published lists name S2 files of single patches; the broken one was taken out of them."""
    names = [path_of(Path(), "s2", patch).name for patch in PATCHES]
    return {"train": names[:3] + names[5:6], "test": names[3:5]}


def splits(corpus: Corpus) -> dict[str, str]:
    return {Path(source).name: SPLITS[code] for source, code in zip(corpus.index.source, corpus.index.split, strict=True)}


@pytest.mark.parametrize("suffix", ["pkl", "txt"])
def test_published_lists_decide_the_splits(tree: Path, lists: dict[str, list[str]], tmp_path: Path, suffix: str) -> None:
    for split, names in lists.items():
        content = pickle.dumps(names, protocol=3) if suffix == "pkl" else "\n".join(names).encode()
        (tmp_path / f"{split}_list.{suffix}").write_bytes(content)
    flags = [flag for split in lists for flag in ("--list", f"{split}={tmp_path}/{split}_list.{suffix}")]
    corpus = build(tree, tmp_path / "c", "--labels", "none", *flags)
    assert splits(corpus) == {name: split for split, names in lists.items() for name in names}
    assert corpus.attributes["splits"]["by"] == "given"
    again = build(tree, tmp_path / "d", "--labels", "none", *flags, "--split", "block")
    assert len(again) == len(corpus) and again.attributes["splits"]["by"] == "block"


def test_hold_out_scenes_and_the_rest_and_a_share_of_training_scenes(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "SEN12MS_holdOutScenes.txt").write_text("ROIs1158_spring/s1_17\n")
    flags = ["--labels", "none", "--list", f"test={tmp_path}/SEN12MS_holdOutScenes.txt", "--rest", "train"]
    found = splits(build(tree, tmp_path / "c", *flags))
    assert {name for name, split in found.items() if split == "test"} == {path_of(Path(), "s2", p).name for p in PATCHES[3:5]}
    assert set(found.values()) == {"train", "test"}
    for seed in range(20):  # some draw takes one of the two training scenes, as a whole
        found = splits(build(tree, tmp_path / f"c{seed}", *flags, "--val-share", "0.5", "--seed", str(seed)))
        val = {name.rsplit("_p", 1)[0] for name, split in found.items() if split == "val"}
        assert all(split == "val" for name, split in found.items() if name.rsplit("_p", 1)[0] in val)
        if len(val) == 1:
            return
    raise AssertionError("no seed gave one scene to val")


def test_patches_in_no_list_are_left_out_and_counted(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("ROIs1158_spring_s2_1_p30.tif\nROIs1158_spring_s2_1_p31.tif\nROIs1868_summer_s2_146_p202.tif\n")
    corpus = build(tree, tmp_path / "c", "--labels", "none", "--list", f"train={tmp_path}/l.txt")
    assert len(corpus) == 2 and corpus.attributes["made_by"]["left_out"]["in no list"] == 4
