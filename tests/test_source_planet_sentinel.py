"""Source planet_sentinel on generated HDF5 with the published names and shapes, rightly paired and scrambled as the published code scrambles."""

import argparse
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from dsengine.corpus import open_corpus
from dsengine.corpus.build.pair_test import pair_test
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import S2_BANDS
from dsengine.corpus.series import SeriesCorpus
from dsengine.errors import UsageError

DATES, A_DATE = 4, 600


def build(root: Path, out: Path, *flags: str) -> SeriesCorpus:
    argv = ["corpus", "build", str(out), "--source", "planet_sentinel", "--root", str(root), *flags]
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


def pairs(rows: int, *, season: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digital numbers (rows, 12) and (rows, 4, 9) of the same ground."""
    rng = np.random.default_rng(seed)
    ground = np.rint(rng.gamma(3.0, 300.0, (rows, 4)) + season)
    s2 = np.rint(rng.gamma(3.0, 400.0, (rows, 12)))
    s2[:, [1, 2, 3, 7]] = ground
    return s2, np.maximum(1, np.rint(ground[:, :, None] + rng.normal(0, 40, (rows, 4, 9))))


def scrambled(planet: np.ndarray) -> np.ndarray:
    """As (4, rows * 9) read as (4, 9, rows): each row gets pixels of nine other places."""
    rows = len(planet)
    return planet.transpose(1, 0, 2).reshape(4, rows * 9).reshape(4, 9, rows).transpose(2, 0, 1)


def write(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


@pytest.fixture
def dates() -> list[tuple[np.ndarray, np.ndarray]]:
    """Dates that differ by season, so that even scrambled rows correlate over the whole file."""
    return [pairs(A_DATE, season=4000.0 * date, seed=date) for date in range(DATES)]


def write_points(root: Path, dates: list[tuple[np.ndarray, np.ndarray]], *, dtype: str = "f4", scale: float = 1.0) -> np.ndarray:
    s2, planet = (np.concatenate(parts) for parts in zip(*dates, strict=True))
    write(root / "pretraining_point2.h5", sentinel2_data=(s2 * scale).astype(dtype), planet_data=(planet * scale).astype(dtype))
    return np.concatenate([s2, planet.reshape(-1, 36)], axis=1)


@pytest.mark.parametrize("dtype, scale", [("f4", 1.0), ("u2", 1.0), ("f8", 1e-4)])
def test_points_are_stored_as_they_are_in_whatever_unit(dates: list, tmp_path: Path, dtype: str, scale: float) -> None:
    numbers = write_points(tmp_path / "in", dates, dtype=dtype, scale=scale)
    corpus = build(tmp_path / "in", tmp_path / "out", "--set", "points")
    group = zarr.open_group(tmp_path / "out", mode="r")
    np.testing.assert_array_equal(group["pixels/s2"][...], numbers[:, :12])
    np.testing.assert_array_equal(group["pixels/planet"][...], numbers[:, 12:])
    assert group["pixels/planet"].attrs["bands"][:10] == [f"blue_{y}{x}" for y in range(3) for x in range(3)] + ["green_00"]
    assert corpus.attributes["made_by"]["pair_test"]["paired"] and corpus.attributes["made_by"]["pair_test"]["correlation"] > 0.9
    np.testing.assert_allclose(corpus.contract("s2").mean, numbers[:, :12].mean(axis=0) * 1e-4, rtol=1e-12)
    assert len(corpus.rows("train")) == len(corpus) and np.isnan(corpus.index["lon"]).all()


def test_scrambled_points_are_refused_unless_allowed_and_then_marked(dates: list, tmp_path: Path) -> None:
    mixed = [(s2, scrambled(planet)) for s2, planet in dates]
    numbers = write_points(tmp_path / "in", mixed)
    over_all = np.corrcoef(numbers[:, 1], numbers[:, 12:21].mean(axis=1))[0, 1]
    assert over_all > 0.8  # what a test over the whole file would be fooled by
    with pytest.raises(UsageError, match=r"pretraining_point2.h5: .*do not see the same places: correlation -?0.\d.*--allow-scrambled"):
        build(tmp_path / "in", tmp_path / "out", "--set", "points")
    assert not (tmp_path / "out").exists()
    corpus = build(tmp_path / "in", tmp_path / "out", "--set", "points", "--allow-scrambled")
    assert corpus.attributes["made_by"]["pair_test"]["paired"] is False
    np.testing.assert_array_equal(corpus.pixels["planet"][...], numbers[:, 12:])


@pytest.mark.parametrize("cloudy", [0.0, 0.8])
def test_clouds_on_most_dates_do_not_hide_true_pairs(cloudy: float) -> None:
    runs = []
    for date in range(40):
        s2, planet = pairs(256, seed=date)
        s2 = np.full_like(s2, 7000.0) + np.random.default_rng(date).normal(0, 300, s2.shape) if date < 40 * cloudy else s2
        runs.append((s2, planet))
    assert pair_test(runs, S2_BANDS, ("blue", "green", "red", "nir")).paired
    mixed = [(s2, scrambled(planet)) for s2, planet in runs]
    assert not pair_test(mixed, S2_BANDS, ("blue", "green", "red", "nir")).paired


def test_series_pairs_keep_their_times_apart(tmp_path: Path) -> None:
    s2, planet = pairs(300)
    rng = np.random.default_rng(3)
    s2_t = np.rint(s2[:, None] * rng.uniform(0.8, 1.2, (1, 6, 1)))
    planet_t = np.rint(planet[:, None] * rng.uniform(0.8, 1.2, (1, 365, 1, 1)))
    write(tmp_path / "in" / "pretraining_time2.h5", sentinel2_data=s2_t.astype("f4"), planet_data=planet_t.astype("f4"))
    corpus = build(tmp_path / "in", tmp_path / "out", "--set", "times")
    np.testing.assert_array_equal(corpus.series["s2"][...], s2_t)
    np.testing.assert_array_equal(corpus.series["planet"][...], planet_t.reshape(300, 365, 36))
    assert (corpus.read_series([0], "s2").time == np.iinfo(np.int64).min).all()
    days = corpus.read_series([5], "planet").time[0].astype("M8[ns]").astype("M8[D]").astype(str)
    assert (days[0], days[-1]) == ("2018-01-01", "2018-12-31")
    write(tmp_path / "in" / "pretraining_time2.h5", sentinel2_data=s2_t, planet_data=np.roll(planet_t, 11, axis=0))
    with pytest.raises(UsageError, match="do not see the same places"):
        build(tmp_path / "in", tmp_path / "out2", "--set", "times")


@pytest.mark.parametrize("tile, names", [("train", ("train", "val")), ("test", ("validation_train", "validation_val"))])
def test_crop_files_become_train_and_val(tmp_path: Path, tile: str, names: tuple[str, str]) -> None:
    rng, values, labels = np.random.default_rng(0), [], []
    for name, rows in zip(names, (90, 45), strict=True):
        values.append(np.rint(rng.gamma(3.0, 400.0, (rows, 5, 12))))
        labels.append(rng.integers(1, 10, (rows, 1)))
        write(tmp_path / "in" / f"{name}_sentinel_ts.hdf5", time_series=values[-1], crop_labels=labels[-1])
    corpus = build(tmp_path / "in", tmp_path / "out", "--set", "crops", "--tile", tile)
    np.testing.assert_array_equal(corpus.series["s2"][...], np.concatenate(values))
    np.testing.assert_array_equal(corpus.labels["crop"][...], np.concatenate(labels)[:, 0])
    np.testing.assert_array_equal(corpus.rows("val"), np.arange(90, 135))
    assert corpus.labels["crop"].attrs["classes"]["6"] == "Oil Seeds"


def test_a_declared_huge_shape_is_refused_by_name_without_memory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "pretraining_point2.h5", "w") as file:
        file.create_dataset("sentinel2_data", (200_000_000, 12), "f4", chunks=(65536, 12))
        file.create_dataset("planet_data", (200_000_000, 4, 9), "f4", chunks=(65536, 4, 9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=r"point2.h5: sentinel2_data declares 8.94 GiB in 3052 chunks but stores 0 of them; legal: a complete file"):
        build(tmp_path / "in", tmp_path / "out", "--set", "points")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_chunk_that_would_inflate_to_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "pretraining_point2.h5", "w") as file:
        file.create_dataset("sentinel2_data", (50_000_000, 12), "f4", chunks=(50_000_000, 12), compression="gzip")
    with pytest.raises(UsageError, match=r"sentinel2_data has chunks of 2.24 GiB; legal: at most 256.00 MiB"):
        build(tmp_path / "in", tmp_path / "out", "--set", "points")


@pytest.mark.parametrize("kind", ["external", "link", "virtual"])
def test_values_in_other_files_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(480))
    write(tmp_path / "other.h5", sentinel2_data=np.zeros((10, 12), "f4"))
    with h5py.File(tmp_path / "in" / "pretraining_point2.h5", "w") as file:
        if kind == "external":
            file.create_dataset("sentinel2_data", (10, 12), "f4", external=[(str(secret), 0, 480)])
        elif kind == "link":
            file["sentinel2_data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "sentinel2_data")
        else:
            layout = h5py.VirtualLayout((10, 12), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "sentinel2_data", (10, 12))
            file.create_virtual_dataset("sentinel2_data", layout)
    with pytest.raises(UsageError, match="sentinel2_data (keeps its values in other files|is a link to another file)"):
        build(tmp_path / "in", tmp_path / "out", "--set", "points")


def test_files_of_other_shapes_or_labels_are_refused_with_what_is_legal(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pretraining_point2.h5: there is no such file"):
        build(tmp_path, tmp_path / "out", "--set", "points")
    write(tmp_path / "in" / "pretraining_point2.h5", sentinel2_data=np.ones((5, 12)), planet_data=np.ones((5, 36)))
    with pytest.raises(UsageError, match=r"planet_data \(5, 36\); legal: \(N, 12\) and \(N, 4, 9\)"):
        build(tmp_path / "in", tmp_path / "out", "--set", "points")
    for name in ("train", "val"):
        write(tmp_path / "in" / f"{name}_sentinel_ts.hdf5", time_series=np.ones((3, 2, 12)), crop_labels=np.array([[1], [9], [10]]))
    with pytest.raises(UsageError, match="crop_labels has 10; legal: 1 to 9"):
        build(tmp_path / "in", tmp_path / "out", "--set", "crops")
