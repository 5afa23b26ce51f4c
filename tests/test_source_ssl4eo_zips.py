"""Source ssl4eo_s12, release 1.1: zip files in the published layout, written and read back by zarr-python, band by name; and what it refuses."""

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import SPLITS
from dsengine.corpus.sources import ssl4eo_s12
from dsengine.errors import UsageError

BANDS = {"S2L2A": ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"],
         "S2L1C": ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"], "S1GRD": ["vv", "vh"]}
DIMENSIONS = {"bands": ("sample", "time", "band", "y", "x"), "cloud_mask": ("sample", "time", "y", "x"), "time_": ("sample", "time"),
              "file_id": ("sample", "time"), "sample_id": ("sample", "time"), "x_": ("sample", "x"), "y_": ("sample", "y")}
DAYS_S2, DAYS_S1 = np.array([5, 100, 190, 280]), np.array([280, 8, 103, 188])  # of 2020; the radar images are not in the order of the others
ZONES = ((32651, 714900.0, 4728000.0, 125.6, 42.66), (32638, 500000.0, 6700000.0, 45.0, 60.4), (32752, 300000.0, 6500000.0, 127.0, -31.6))


def smooth(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """(..., 264, 264): blocks of 8 pixels, so that files stay small."""
    return rng.uniform(low, high, (*shape, 33, 33)).repeat(8, axis=-1).repeat(8, axis=-2)


def contents(modality: str, samples: list[int], seed: int) -> dict[str, np.ndarray]:
    """Arrays of one file, as the release describes them. Reflectance carries the +1000 and has a frame of no data."""
    rng, count = np.random.default_rng(seed), len(samples)
    epsg, left, top, lon, lat = (np.array([ZONES[s % 3][i] for s in samples]) for i in range(5))
    days, radar = (DAYS_S1, True) if modality == "S1GRD" else (DAYS_S2, False)
    bands = smooth(rng, (count, 4, len(BANDS[modality])), -28, 2) if radar else 1000 + smooth(rng, (count, 4, len(BANDS[modality])), 5, 3000)
    if not radar:
        bands[..., :3, :] = 0
    if modality == "S2L1C":
        bands[:, :, 10] = np.where(bands[:, :, 10] > 0, 1000 + bands[:, :, 10] % 40, 0)
    arrays = {
        "band": np.array(BANDS[modality]), "sample": np.array([f"{s:07d}" for s in samples]), "time": np.arange(4), "x": np.arange(264),
        "y": np.arange(264), "bands": bands.astype(np.float16 if radar else np.int16), "center_lon": lon + 0.001, "center_lat": lat, "crs": epsg,
        "file_id": np.full((count, 4), "20201116T023001_20201116T022955_T51TYG"), "sample_id": np.array([[f"{s:07d}_{t}" for t in range(4)] for s in samples]),
        "time_": days[None] * 86400 + np.arange(count)[:, None], "x_": left[:, None] + 5 + 10.0 * np.arange(264),
        "y_": top[:, None] - 5 - 10.0 * np.arange(264)}
    return arrays if radar else {**arrays, "cloud_mask": rng.choice([0, 1, 3, 4, 5, 6], (count, 4, 33, 33)).repeat(8, 2).repeat(8, 3).astype(np.uint8)}


def write(path: Path, arrays: dict[str, np.ndarray], chunks: tuple[int, ...] = (1, 1), attributes: dict[str, Any] | None = None) -> None:
    """One file; `chunks` are the leading ones of bands and cloud_mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with ZipStore(path, mode="w") as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about strings in Zarr v2, and members written anew
        group = zarr.open_group(store, mode="w", zarr_format=2)
        for name, x in arrays.items():
            shape = (*chunks, *x.shape[len(chunks):]) if name in ("bands", "cloud_mask") else x.shape
            units = {"units": "seconds since 2020-01-01", "calendar": "proleptic_gregorian"} if name == "time_" else {}
            array = group.create_array(name, shape=x.shape, chunks=shape, dtype=x.dtype, compressors=numcodecs.Blosc(),
                                       attributes={"_ARRAY_DIMENSIONS": list(DIMENSIONS.get(name, (name,))), **units, **(attributes or {})})
            array[...] = x


def read(path: Path, name: str) -> np.ndarray:
    """An array as zarr-python reads it."""
    with ZipStore(path, mode="r") as store:
        return np.asarray(zarr.open_group(store, mode="r", zarr_format=2)[name][...])


FILES = {("train", 1): [11, 12, 13], ("train", 2): [14, 15, 16], ("val", 1): [20, 21, 22]}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ssl4eo") / "data"
    for seed, ((split, number), samples) in enumerate(FILES.items()):
        for modality in ("S2L2A", "S1GRD") if number == 1 else BANDS:
            write(file(root, split, number, modality), contents(modality, samples, seed), chunks=(1, 1) if seed else (3, 1, 5, 100))
    return root


def file(root: Path, split: str, number: int, modality: str) -> Path:
    return root / split / modality / f"ssl4eos12_{split}_seasonal_data_{number:06d}.zarr.zip"


def build(root: Path, out: Path, *extra: str) -> Corpus:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "ssl4eo_s12", "--root", str(root), *extra]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


@pytest.fixture(scope="module")
def corpus(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(release, tmp_path_factory.mktemp("out") / "corpus")


def rows(corpus: Corpus, samples: list[int]) -> np.ndarray:
    """(samples, 4) rows of the corpus, by its columns location and season."""
    where = {(name, season): row for row, (name, season) in enumerate(zip(corpus.columns["location"][...], corpus.columns["season"][...].tolist(),
                                                                          strict=True))}
    return np.array([[where[f"{sample:07d}", season] for season in range(4)] for sample in samples])


def test_every_value_of_every_band_is_what_zarr_python_reads_less_the_offset(corpus: Corpus, release: Path) -> None:
    stored = zarr.open_group(corpus.path, mode="r")["s2"]
    assert len(corpus) == 36 and stored.attrs["bands"] == BANDS["S2L2A"]
    for (split, number), samples in FILES.items():
        raw = read(file(release, split, number, "S2L2A"), "bands")
        for row, sample, season in zip(rows(corpus, samples).ravel(), np.repeat(range(3), 4), np.tile(range(4), 3), strict=True):
            expected = np.where(raw[sample, season] == 0, -32768, raw[sample, season].astype(np.int32) - 1000)
            np.testing.assert_array_equal(stored[row], expected)


def test_radar_is_the_image_nearest_in_time_in_decibels(corpus: Corpus, release: Path) -> None:
    stored = zarr.open_group(corpus.path, mode="r")["s1"][...]
    for (split, number), samples in FILES.items():
        raw = read(file(release, split, number, "S1GRD"), "bands").astype(np.float64)
        for season, partner in enumerate((1, 2, 3, 0)):  # days 5, 100, 190, 280 against 280, 8, 103, 188
            at = rows(corpus, samples)[:, season]
            assert np.abs(stored[at] * 0.01 - raw[:, partner]).max() <= 0.005 + 1e-9
            day = (corpus.index.time_s1[at].astype("datetime64[ns]") - np.datetime64("2020-01-01")) // np.timedelta64(1, "D")
            assert (day == DAYS_S1[partner]).all()


def test_index_columns_are_those_of_the_file(corpus: Corpus, release: Path) -> None:
    for (split, number), samples in FILES.items():
        path, at = file(release, split, number, "S2L2A"), rows(corpus, samples)
        for season in range(4):
            index = {name: getattr(corpus.index, name)[at[:, season]] for name in corpus.index._fields}
            np.testing.assert_array_equal(index["lon"], read(path, "center_lon"))
            np.testing.assert_array_equal(index["epsg"], read(path, "crs"))
            np.testing.assert_array_equal(index["x"], read(path, "x_")[:, 0] - 5)
            np.testing.assert_array_equal(index["y"], read(path, "y_")[:, 0] + 5)
            expected = np.datetime64("2020-01-01", "ns") + read(path, "time_")[:, season].astype("timedelta64[s]")
            np.testing.assert_array_equal(index["time_s2"], expected.astype(np.int64))
            mask = read(path, "cloud_mask")[:, season]
            clouds = ((mask == 3) | (mask == 4)).sum(axis=(1, 2)) / (mask <= 5).sum(axis=(1, 2))
            np.testing.assert_allclose(index["cloud_fraction"], clouds, rtol=1e-6)
            assert {SPLITS[code] for code in index["split"]} == {split}


def test_seasons_of_a_location_share_a_split_by_place_too(release: Path, tmp_path: Path) -> None:
    corpus = build(release, tmp_path / "c", "--split", "block")
    assert corpus.attributes["splits"]["by"] == "block"
    for samples in FILES.values():
        split = corpus.index.split[rows(corpus, samples)]
        assert (split == split[:, :1]).all()


def test_level_1c_has_the_cirrus_band_and_first_season_only_when_asked(release: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for modality in ("S2L1C", "S1GRD"):
        folder = tmp_path / "train" / modality
        folder.mkdir()
        (folder / "a.zarr.zip").symlink_to(file(release, "train", 2, modality))
    corpus = build(tmp_path, tmp_path / "c", "--level", "l1c", "--seasons", "first")
    assert [b.name for b in corpus.bands] == [*BANDS["S2L1C"], "VV", "VH"] and len(corpus) == 3
    raw = read(file(release, "train", 2, "S2L1C"), "bands")[:, 0].astype(np.int32)
    np.testing.assert_array_equal(corpus.read(range(3), "s2"), np.where(raw == 0, -32768, raw - 1000))
    (decision,) = corpus.attributes["made_by"]["s2_offset"].values()
    assert decision["offset"] == -1000 and "B10" in decision["reason"]


def test_a_plan_pickles_and_cuts_the_same_rows_in_any_portions(release: Path, corpus: Corpus) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    ssl4eo_s12.add_arguments(parser)
    plan = pickle.loads(pickle.dumps(ssl4eo_s12.plan(parser.parse_args(["--root", str(release)]))))
    for rows in (range(0, 7), range(7, 25), range(25, 36)):
        block = plan.cut(rows)
        for sensor in ("s2", "s1"):
            np.testing.assert_array_equal(block.arrays[sensor], corpus.read(rows, sensor))
        np.testing.assert_array_equal(block.index["time_s1"], corpus.index.time_s1[rows.start:rows.stop])


def test_files_directly_under_the_root_are_split_by_place(release: Path, tmp_path: Path) -> None:
    assert build(release / "val", tmp_path / "c").attributes["splits"]["by"] == "block"


def test_bands_are_taken_by_name_when_a_file_has_them_in_another_order(release: Path, tmp_path: Path, corpus: Corpus) -> None:
    arrays = contents("S2L2A", FILES["val", 1], 2)
    write(tmp_path / "S2L2A" / "a.zarr.zip", {**arrays, "band": arrays["band"][::-1], "bands": arrays["bands"][:, :, ::-1]})
    other = build(tmp_path, tmp_path / "c", "--sensors", "s2")
    np.testing.assert_array_equal(other.read(rows(other, [20]).ravel(), "s2"), corpus.read(rows(corpus, [20]).ravel(), "s2"))


def pair(root: Path, s2: dict[str, np.ndarray] | None = None, s1: dict[str, np.ndarray] | None = None) -> Path:
    """A root with one small file a sensor, with some arrays changed."""
    for modality, changes in (("S2L2A", s2), ("S1GRD", s1)):
        arrays = {**contents(modality, [1], 0), **(changes or {})}
        write(root / modality / "a.zarr.zip", {name: x for name, x in arrays.items() if x is not None})
    return root


@pytest.mark.parametrize(("s2", "s1", "message"), [
    ({}, {"sample": np.array(["0000002"])}, "S1GRD/a.zarr.zip does not hold the locations of .*S2L2A/a.zarr.zip"),
    ({"bands": np.zeros((1, 4, 12, 128, 128), np.int16)}, {}, r"bands has shape \(1, 4, 12, 128, 128\); legal: .*264, 264"),
    ({"bands": np.ones((1, 4, 12, 264, 264), np.float32)}, {}, "bands is float32; legal: integers"),
    ({"band": np.array([*BANDS["S2L2A"][:-1], "B99"])}, {}, "band is B01, .*B99; legal: B01,"),
    ({"bands": np.ones((1, 4, 11, 264, 264), np.int16)}, {}, "bands has 11 bands, band names 12"),
    ({"bands": None}, {}, "bands/.zarray is missing"),
    ({"cloud_mask": np.zeros((1, 4, 264, 265), np.uint8)}, {}, r"cloud_mask is uint8 of shape .*265\); legal: numbers of shape \(1, 4, 264, 264\)"),
    ({}, {"time_": np.zeros((1, 3), np.int64)}, r"S1GRD/a.zarr.zip: time_ is int64 of shape \(1, 3\)"),
    ({}, {"bands": np.full((1, 4, 2, 264, 264), 0.05, np.float16)}, "is not in dB"),
    ({"bands": np.full((1, 4, 12, 264, 264), 300, np.int16)}, {}, "--s2-offset auto: -1000 by release 1.1.*, but 0 for"),
])
def test_files_that_do_not_hold_what_the_release_says_are_refused(tmp_path: Path, s2: dict[str, Any], s1: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(pair(tmp_path / "root", s2, s1), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_file_without_its_partner_is_named(tmp_path: Path) -> None:
    root = pair(tmp_path / "root")
    (root / "S1GRD" / "a.zarr.zip").rename(root / "S1GRD" / "b.zarr.zip")
    with pytest.raises(UsageError, match="S1GRD/a.zarr.zip is missing: a.zarr.zip needs a file in S2L2A and S1GRD"):
        build(root, tmp_path / "c")
