"""Source worldcereal on generated tables and cubes: attributes of NetCDF, dekads, places at an edge of blocks, and what is refused."""

import argparse
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rasterio.crs import CRS

from dsengine.corpus import open_corpus
from dsengine.corpus.build.places import places
from dsengine.corpus.build.series_plan import build_series
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.sources import worldcereal
from dsengine.errors import RunError, UsageError


def build(root: Path, out: Path, *flags: str) -> SeriesCorpus:
    parser = argparse.ArgumentParser()
    worldcereal.add_arguments(parser)
    args = parser.parse_args(["--root", str(root), *flags])
    args.seed, args.out = 0, out
    return open_corpus(build_series(out, worldcereal.plan(args)))


def cube(path: Path, *, units: str = "hours since 2019-03-01 06:00:00", **variables: tuple[np.ndarray, dict]) -> Path:
    """A (2, 3, 4) cube at the equator."""
    with h5py.File(path, "w") as file:
        file["t"] = np.array([0, 744], np.int32)
        file["t"].attrs["units"] = np.bytes_(units)
        file["x"], file["y"] = 500_005.0 + 10 * np.arange(4), 95.0 - 10 * np.arange(3)
        file["crs"] = np.bytes_(b"")
        file["crs"].attrs["crs_wkt"] = np.bytes_(CRS.from_epsg(32631).to_wkt())
        for name, (values, attributes) in variables.items():
            file[name] = values
            file[name].attrs.update(attributes)
    return path


def wide(path: Path, columns: dict[str, list], *, start: str = "2020-05-01", end: str = "2020-06-21", lon: list[float] = (5.0, 6.0)) -> Path:
    count = len(lon)
    pq.write_table(pa.table({"sample_id": [f"s{i}" for i in range(count)], "lon": list(lon), "lat": [0.1] * count, "start_date": [start] * count,
                             "end_date": [end] * count, "ewoc_code": [1101060000] * count, **columns}), path)
    return path


def test_fill_values_scale_and_sign_of_a_variable_are_minded(tmp_path: Path) -> None:
    raw = np.arange(24).reshape(2, 3, 4)
    plain = (raw + 100).astype(np.uint16)
    signed = np.array([40_000], np.uint16).view(np.int16)[0]
    unsigned = raw.astype(np.int16)
    unsigned[0, 0, :2] = [-1, signed]
    packed, floats = (raw * 2).astype(np.int16), raw.astype(np.float32)
    packed[1, 2, 3], floats[0, 1, 1], floats[0, 1, 2] = -999, np.nan, -9999
    corpus = build(cube(tmp_path / "a.nc", **{
        "S2-L2A-B02": (plain, {"missing_value": np.uint16(105)}), "S2-L2A-B03": (unsigned, {"_Unsigned": np.bytes_(b"true")}),
        "S2-L2A-B04": (packed, {"_FillValue": np.array([-999], np.int16), "scale_factor": np.array([0.5]), "add_offset": 7.0}),
        "S2-L2A-B08": (floats, {"_FillValue": np.float32(-9999)})}), tmp_path / "out")
    b02, b03, b04, b08 = np.moveaxis(corpus.series["s2"][...].astype(int), -1, 0)
    expected = [np.where(plain == 105, -32768, plain.astype(int)), raw.copy(), raw + 7, raw.copy()]
    expected[1][0, 0, :2] = [-32768, 32767]  # 65535 and 40000, of which one is no data and one does not fit
    expected[2][1, 2, 3] = expected[3][0, 1, 1] = expected[3][0, 1, 2] = -32768
    for got, want in zip((b02, b03, b04, b08), expected, strict=True):
        np.testing.assert_array_equal(got, want.reshape(2, -1).T)
    assert corpus.series["s2"].attrs["saturated"] == [0, 1, 0, 0]
    times = corpus.read_series([0], "s2").time[0].astype("M8[ns]").astype("M8[m]").astype(str).tolist()
    assert times == ["2019-03-01T06:00", "2019-04-01T06:00"]


def test_cubes_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    raw = np.ones((2, 3, 4), np.uint16)
    with pytest.raises(UsageError, match=r"variables have shapes \(2, 3, 3\), \(2, 3, 4\)"):
        build(cube(tmp_path / "a.nc", **{"S2-L2A-B02": (raw, {}), "slope": (raw[:, :, :3], {})}), tmp_path / "out")
    with pytest.raises(UsageError, match="units of t are 'fortnights since 2000-01-01'"):
        build(cube(tmp_path / "b.nc", units="fortnights since 2000-01-01", **{"S2-L2A-B02": (raw, {})}), tmp_path / "out")
    sloping = np.stack([raw[0], raw[1] + 1])
    with pytest.raises(RunError, match="slope changes with time"):
        build(cube(tmp_path / "c.nc", **{"S2-L2A-B02": (raw, {}), "slope": (sloping, {})}), tmp_path / "out")
    with pytest.raises(UsageError, match="no band of Sentinel-2, Sentinel-1 or weather has data"):
        build(cube(tmp_path / "d.nc", **{"S2-L2A-B02": (np.full((2, 3, 4), 65535, np.uint16), {})}), tmp_path / "out2")
    (tmp_path / "e.nc").write_bytes(b"not HDF5")
    with pytest.raises(UsageError, match="e.nc cannot be read as HDF5"):
        build(tmp_path / "e.nc", tmp_path / "out3")


def test_dekads_are_recognised_by_their_number(tmp_path: Path) -> None:
    columns = {f"OPTICAL-B02-ts{t}-10m": pa.array([t + 1, t + 2], pa.uint16()) for t in range(6)}
    time = build(wide(tmp_path / "a.parquet", columns), tmp_path / "out").read_series([1], "s2").time[0]
    assert time.astype("M8[ns]").astype("M8[D]").astype(str).tolist() == [f"2020-0{m}-{d}" for m in (5, 6) for d in ("01", "11", "21")]
    del columns["OPTICAL-B02-ts5-10m"]
    with pytest.raises(UsageError, match=r"5 time steps between .*legal: one a month \(2\) or one a dekad \(6\)"):
        build(wide(tmp_path / "b.parquet", columns), tmp_path / "out2")


def test_radar_numbers_of_zero_have_no_decibel(tmp_path: Path) -> None:
    columns = {f"SAR-VV-ts{t}-20m": pa.array([0, 10_000], pa.uint16()) for t in range(2)}
    corpus = build(wide(tmp_path / "a.parquet", columns), tmp_path / "out")
    np.testing.assert_array_equal(corpus.series["s1"][:, 0, 0], [-32768, -300])  # 20 log10(10000) - 83 = -3 dB
    assert corpus.valid["s1"][...].tolist() == [[False, False], [True, True]]


def test_a_place_on_the_edge_of_a_block_is_not_torn_apart(tmp_path: Path) -> None:
    # Pairs 20 m apart across a multiple of 0.25 degrees at the equator, where blocks end.
    lon = [edge + side for edge in np.arange(1, 41) * 0.25 for side in (-0.00009, 0.00009)]
    columns = {f"OPTICAL-B02-ts{t}-10m": pa.array(range(1, 81), pa.uint16()) for t in range(2)}
    split = build(wide(tmp_path / "a.parquet", columns, lon=lon), tmp_path / "out").index["split"].reshape(-1, 2)
    assert (split[:, 0] == split[:, 1]).all() and len(set(split[:, 0].tolist())) == 3
    torn = build(tmp_path / "a.parquet", tmp_path / "torn", "--place-m", "1").index["split"].reshape(-1, 2)
    assert (torn[:, 0] != torn[:, 1]).any()


def test_places_join_across_the_date_line_and_in_chains() -> None:
    lon = np.array([179.9999, -179.9999, 10.0, 10.0003, 10.0006, 50.0])
    assert places(lon, np.zeros(6), within_m=40).tolist() == [0, 0, 2, 2, 2, 5]
    assert places(np.array([0.0, 90.0, 180.0]), np.array([90.0, 90.0, 90.0]), within_m=1).tolist() == [0, 0, 0]


def test_tables_with_steps_missing_or_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    columns = {f"OPTICAL-{band}-ts{t}-10m": pa.array([1, 2], pa.uint16()) for band in ("B02", "B03") for t in range(2) if (band, t) != ("B03", 0)}
    with pytest.raises(UsageError, match=r"s2 B03 has time steps \[1\]; legal: 0 to 1"):
        build(wide(tmp_path / "a.parquet", columns), tmp_path / "out")
    with pytest.raises(UsageError, match="column OPTICAL-B02-ts0-10m has values from -1 to 2; legal: 0 to 65535"):
        build(wide(tmp_path / "b.parquet", {"OPTICAL-B02-ts0-10m": pa.array([-1, 2], pa.int32())}, end="2020-05-31"), tmp_path / "out")
    with pytest.raises(UsageError, match="has 1 empty cells"):
        build(wide(tmp_path / "c.parquet", {"OPTICAL-B02-ts0-10m": pa.array([None, 2], pa.uint16())}, end="2020-05-31"), tmp_path / "out")
