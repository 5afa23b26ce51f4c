"""Source worldcereal on the real samples: every value against pyarrow or h5py and numpy, band by name."""

import argparse
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio.warp
import zarr

from dsengine.corpus import open_corpus
from dsengine.corpus.commands import add_parser
from dsengine.corpus.series import SeriesCorpus
from dsengine.errors import UsageError

WIDE, LONG, CUBE = "test_public_extractions.parquet", "flanders_lpis_2021.parquet", "worldcereal_preprocessed_inputs.nc"


@pytest.fixture(scope="module")
def samples(sample_data: Path) -> Path:
    return sample_data / "timeseries" / "worldcereal"


@pytest.fixture(scope="module")
def built(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SeriesCorpus]:
    out = tmp_path_factory.mktemp("worldcereal")
    extra = {CUBE: ("--predictions", str(samples / "worldcereal_croptype_classification.nc"))}
    return {name: build(samples / name, out / name, *extra.get(name, ())) for name in (WIDE, LONG, CUBE)}


def build(root: Path, out: Path, *flags: str) -> SeriesCorpus:
    argv = ["corpus", "build", str(out), "--source", "worldcereal", "--root", str(root), *flags]
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


def expected(sensor: str, numbers: np.ndarray) -> np.ndarray:
    """What the corpus should store of uint16 numbers, by the definition of the product."""
    n = numbers.astype(np.float64)
    physical = {"s2": np.minimum(n, 32767), "s1": np.round(100 * (20 * np.log10(np.where(n > 0, n, 1)) - 83))}.get(sensor, n / 100)
    return np.where((numbers == 65535) | ((sensor == "s1") & (numbers == 0)), -32768, physical).astype("f4" if sensor[0] != "s" else "i2")


def stored(corpus: SeriesCorpus, band: str) -> np.ndarray:
    """(P, T) values of a band by plain zarr-python."""
    found = next(b for b in corpus.bands if b.name == band)
    return zarr.open_group(corpus.path, mode="r")[found.array][:, :, found.channel]


def names_of(corpus: SeriesCorpus) -> list[tuple[str, str]]:
    return [(band.sensor, band.name) for band in corpus.bands]


def test_every_value_of_the_wide_table(built: dict[str, SeriesCorpus], samples: Path) -> None:
    corpus, table = built[WIDE], pq.read_table(samples / WIDE)
    column = {"VV": "SAR-VV-ts{}-20m", "VH": "SAR-VH-ts{}-20m", "temperature": "METEO-temperature_mean-ts{}-100m",
              "precipitation": "METEO-precipitation_flux-ts{}-100m"}
    assert [name for sensor, name in names_of(corpus) if sensor == "s2"] == "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split()
    for sensor, band in names_of(corpus):
        metres = 10 if band in ("B02", "B03", "B04", "B08") else 20
        numbers = np.stack([table[column.get(band, f"OPTICAL-{band}-ts{{}}-{metres}m").format(t)].to_numpy() for t in range(12)], axis=1)
        np.testing.assert_array_equal(stored(corpus, band), expected(sensor, numbers), err_msg=band)
    for name in ("lon", "lat", "year", "quality_score_ct"):
        np.testing.assert_array_equal(corpus.index[name], table[name].to_numpy())
    assert corpus.index["sample_id"].tolist() == table["sample_id"].to_pylist()
    np.testing.assert_array_equal(corpus.index["elevation"], table["DEM-alt-20m"].to_numpy().astype("f4"))


def test_every_value_of_the_long_table(built: dict[str, SeriesCorpus], samples: Path) -> None:
    corpus, table = built[LONG], pq.read_table(samples / LONG)
    assert "B8A" not in [name for _, name in names_of(corpus)]  # all of its values are 65535
    assert corpus.attributes["made_by"]["without_data"] == ["s2 B8A"]
    column = {"VV": "S1-SIGMA0-VV", "VH": "S1-SIGMA0-VH", "temperature": "AGERA5-TMEAN", "precipitation": "AGERA5-PRECIP"}
    position = {sample: row for row, sample in enumerate(corpus.index["sample_id"].tolist())}
    months = sorted(set(table["timestamp"].to_pylist()))
    rows = np.array([position[sample] for sample in table["sample_id"].to_pylist()])
    steps = np.array([months.index(moment) for moment in table["timestamp"].to_pylist()])
    for sensor, band in names_of(corpus):
        numbers = table[column.get(band, f"S2-L2A-{band}")].to_numpy()
        np.testing.assert_array_equal(stored(corpus, band)[rows, steps], expected(sensor, numbers), err_msg=band)
        cut = dict(zip(corpus.values[sensor].attrs["bands"], corpus.values[sensor].attrs["saturated"], strict=True))[band]
        assert cut == (((numbers > 32767) & (numbers < 65535)).sum() if sensor == "s2" else 0)
    assert list(corpus.index["sample_id"]) == list(dict.fromkeys(table["sample_id"].to_pylist()))
    assert corpus.read_series([0], "s2").time[0].astype("M8[ns]").astype("M8[us]").tolist() == months


def test_every_value_of_the_cube(built: dict[str, SeriesCorpus], samples: Path) -> None:
    corpus = built[CUBE]
    column = {"VV": "S1-SIGMA0-VV", "VH": "S1-SIGMA0-VH", "temperature": "AGERA5-TMEAN", "precipitation": "AGERA5-PRECIP"}
    with h5py.File(samples / CUBE) as file:
        for sensor, band in names_of(corpus):
            numbers = file[column.get(band, f"S2-L2A-{band}")][...].view(np.uint16)
            np.testing.assert_array_equal(stored(corpus, band), expected(sensor, numbers.reshape(12, -1).T), err_msg=band)
        x, y = np.meshgrid(file["x"][...], file["y"][...])
        np.testing.assert_array_equal(corpus.index["slope"], file["slope"][0].reshape(-1).astype("f4"))
    np.testing.assert_array_equal(corpus.index["x"], x.reshape(-1))
    back = rasterio.warp.transform("EPSG:4326", "EPSG:32631", corpus.index["lon"], corpus.index["lat"])
    np.testing.assert_allclose(back, (x.reshape(-1), y.reshape(-1)), atol=0.01)
    with h5py.File(samples / "worldcereal_croptype_classification.nc") as file:
        bands = [name.decode() for name in file["bands"][...]]
        predicted = file["__xarray_dataarray_variable__"][bands.index("classification")]
    np.testing.assert_array_equal(corpus.labels["predicted"][...], predicted.reshape(-1))


def test_months_without_optical_data_are_not_valid(built: dict[str, SeriesCorpus]) -> None:
    months = built[CUBE].read_series([0, 4321, 9999], "s2")
    assert months.time[0].astype("M8[ns]").astype("M8[M]").astype(str).tolist()[:4] == ["2020-11", "2020-12", "2021-01", "2021-02"]
    np.testing.assert_array_equal(months.valid, np.tile([True, False, False] + [True] * 9, (3, 1)))
    assert (months.values[:, 1:3] == -32768).all()
    assert built[CUBE].valid["s1"][...].all()


def test_statistics_leave_missing_months_out_and_are_in_physical_units(built: dict[str, SeriesCorpus], samples: Path) -> None:
    table = pq.read_table(samples / WIDE)
    contract = built[WIDE].contract("s1")
    for name, mean, std in zip(("VV", "VH"), contract.mean, contract.std, strict=True):
        numbers = np.stack([table[f"SAR-{name}-ts{t}-20m"].to_numpy() for t in range(12)])
        decibel = np.round(20 * np.log10(numbers[numbers != 65535].astype(float)) - 83, 2)
        np.testing.assert_allclose([mean, std], [decibel.mean(), decibel.std()], rtol=1e-9)
    assert contract.units == ("dB", "dB") and -13 < contract.mean[0] < -9


def test_points_at_one_place_share_a_split(built: dict[str, SeriesCorpus], samples: Path) -> None:
    corpus = built[WIDE]
    lon, lat, split, place = (corpus.index[name] for name in ("lon", "lat", "split", "place"))
    metres = 111_195 * np.hypot((lon[:, None] - lon) * np.cos(np.radians(lat[:, None])), lat[:, None] - lat)
    near = (metres < 49) & ~np.eye(len(lon), dtype=bool)
    assert (metres[near] < 10).sum() >= 50
    assert (split[:, None] == split)[near].all() and (place[:, None] == place)[near].all()
    assert not (place[:, None] == place)[metres > 1000].any()


def test_crop_codes_have_the_names_of_the_table(built: dict[str, SeriesCorpus], samples: Path) -> None:
    table, label = pq.read_table(samples / WIDE), built[WIDE].labels["crop"]
    assert label[...].tolist() == table["ewoc_code"].to_pylist()
    assert [label.attrs["classes"][str(code)] for code in label[...].tolist()] == table["label_full"].to_pylist()
    named = built[WIDE].labels["sampling_label"]
    assert [named.attrs["classes"][str(code)] for code in named[...].tolist()] == table["sampling_label"].to_pylist()
    np.testing.assert_array_equal(built[LONG].labels["crop"][0], pq.read_table(samples / LONG)["ewoc_code"][0].as_py())


def test_a_folder_of_tables_is_one_corpus_and_mixed_layouts_are_refused(samples: Path, tmp_path: Path) -> None:
    table = pq.read_table(samples / LONG)
    ids = sorted(set(table["sample_id"].to_pylist()))
    for name, part in (("ref_id=a", ids[:40]), ("ref_id=b", ids[40:])):
        (tmp_path / "in" / name).mkdir(parents=True)
        pq.write_table(table.filter(pa.compute.is_in(table["sample_id"], pa.array(part))), tmp_path / "in" / name / "data_0.parquet")
    assert sorted(build(tmp_path / "in", tmp_path / "out").index["sample_id"].tolist()) == ids
    (tmp_path / "in" / "wide.parquet").symlink_to(samples / WIDE)
    with pytest.raises(UsageError, match="legal: one layout"):
        build(tmp_path / "in", tmp_path / "out2")


def test_a_sample_with_fewer_times_ends_early_and_one_with_a_time_twice_is_refused(samples: Path, tmp_path: Path) -> None:
    table = pq.read_table(samples / LONG)
    first = table["sample_id"][0].as_py()
    keep = np.array([s != first or t.month % 2 == 0 for s, t in zip(table["sample_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True)])
    pq.write_table(table.filter(pa.array(keep)), tmp_path / "short.parquet")
    corpus = build(tmp_path / "short.parquet", tmp_path / "out")
    row = corpus.index["sample_id"].tolist().index(first)
    values, time, valid = corpus.read_series([row, row + 1], "s1")
    assert time[0, 8:].tolist() == [np.iinfo(np.int64).min] * 8 and not valid[0, 8:].any() and valid[1].all()
    assert np.all(np.diff(time[0, :8]) > 0) and (values[0, 8:] == -32768).all()
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), tmp_path / "twice.parquet")
    with pytest.raises(UsageError, match="has two rows for 2020-11-01"):
        build(tmp_path / "twice.parquet", tmp_path / "out2")


def test_tables_and_cubes_that_declare_too_much_are_refused_by_name(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"flanders.*declares 1600 rows.*--max-gib"):
        build(samples / LONG, tmp_path / "out", "--max-gib", "0.0001")
    with h5py.File(tmp_path / "huge.nc", "w") as file:
        file.create_dataset("S2-L2A-B02", (12, 20_000, 20_000), "i2", chunks=(1, 1000, 1000), compression="gzip")
    with pytest.raises(UsageError, match=r"huge.nc: S2-L2A-B02 declares 8.94 GiB in 4800 chunks but stores 0 of them"):
        build(tmp_path / "huge.nc", tmp_path / "out")
