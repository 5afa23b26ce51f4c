"""Source denethor on a small tile in both published layouts: every value against numpy indexing of what was written."""

import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.features import rasterize
from rasterio.transform import from_origin

from dsengine.corpus import open_corpus
from dsengine.corpus.build.pair_test import pair_test
from dsengine.corpus.commands import add_parser
from dsengine.corpus.schema import S2_BANDS
from dsengine.corpus.series import SeriesCorpus
from dsengine.corpus.sources import denethor

from . import tree

LAYOUTS = ("original", "mlhub")
KEPT_FIDS = [fid for fid, _, corners in tree.fields() if corners[1][0] - corners[0][0] > 50]


@pytest.fixture(scope="module")
def made() -> tree.Truth:
    return tree.truth()


@pytest.fixture(scope="module", params=LAYOUTS)
def root(request: pytest.FixtureRequest, made: tree.Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree.write(tmp_path_factory.mktemp(request.param), request.param, made=made)


def build(root: Path, out: Path, *flags: str) -> SeriesCorpus:
    argv = ["corpus", "build", str(out), "--source", "denethor", "--root", str(root), *flags]
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    assert args.run(args) == 0
    return open_corpus(out)


def around(index: np.ndarray, size: int) -> np.ndarray:
    """(n, 3) Planet rows or columns: the one that holds the centre of the 10 m pixel, found by comparing metres, and its neighbours."""
    edges = np.arange(size + 1) * 3.0
    centre = np.searchsorted(edges, index * 10.0 + 5.0, side="right") - 1
    return np.minimum(np.maximum(centre[:, None] + [-1, 0, 1], 0), size - 1)


def planet_of(made: tree.Truth, day: int, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """(n, 36) Planet numbers, band by band, row by row."""
    rows, columns = around(row, 80), around(column, 100)
    return np.stack([made.planet[day][:, r][:, :, c].reshape(36) for r, c in zip(rows, columns, strict=True)])


def field_map(made: tree.Truth, fids: list[int], *, all_touched: bool = True) -> np.ndarray:
    shapes = [({"type": "Polygon", "coordinates": [corners]}, fid) for fid, _, corners in made.fields if fid in fids]
    return rasterize(shapes, (tree.HEIGHT, tree.WIDTH), fill=-1, transform=from_origin(tree.LEFT, tree.TOP, 10, 10), all_touched=all_touched,
                     dtype="int16")


def test_points_have_the_pixels_of_both_sensors_on_the_same_day(root: Path, made: tree.Truth, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "points", "--pixels", "20")
    row, column, dates = corpus.index["row"], corpus.index["column"], 5  # the sixth step has no Planet image
    assert len(corpus) == 20 * dates and corpus.kind == "pixels"
    group = zarr.open_group(tmp_path / "out", mode="r")
    for date in range(dates):
        part = slice(20 * date, 20 * date + 20)
        r, c = row[part], column[part]
        numbers = np.rint(made.bands[date, r, c].astype(np.float64) * 1e4)
        numbers[(numbers == 0).all(axis=1)] = -32768
        np.testing.assert_array_equal(group["pixels/s2"][part], numbers)
        np.testing.assert_array_equal(group["pixels/planet"][part], planet_of(made, 2 * date, r, c))
        np.testing.assert_array_equal(corpus.index["clp"][part], made.clp[date, r, c, 0])
        assert len(set(zip(r.tolist(), c.tolist(), strict=True))) == 20
        assert (corpus.index["time_s2"][part] == np.datetime64(tree.MOMENTS[date], "ns").astype(np.int64)).all()
        assert (corpus.index["time_planet"][part] == np.datetime64(tree.days()[2 * date], "ns").astype(np.int64)).all()
    assert [band.name for band in corpus.bands if band.sensor == "s2"] == list(S2_BANDS)
    assert corpus.attributes["made_by"]["dates_without_planet"] == ["2018-04-11"]
    assert (group["pixels/s2"][...] == -32768).any(), "no empty pixel was drawn: choose another seed"


def test_pixels_are_drawn_from_pretraining_fields_larger_than_1000_square_metres(root: Path, made: tree.Truth, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "points", "--pixels", "60")
    assert set(corpus.index["field"].tolist()) <= set(KEPT_FIDS)
    # Nine fields of each crop are kept, of which int(0.7 * 9) = 6 are for pretraining.
    by_crop = [{f for f in set(corpus.index["field"].tolist()) if (f < 10) == first} for first in (True, False)]
    assert [len(fields) for fields in by_crop] == [6, 6]
    np.testing.assert_array_equal(corpus.index["field"], field_map(made, KEPT_FIDS)[corpus.index["row"], corpus.index["column"]])
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out" / "labels" / "crop")[...], np.where(corpus.index["field"] < 10, 1, 5))


def test_centre_touched_pixels_are_fewer_than_all_touched(root: Path, made: tree.Truth, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "times", "--pixels", "40", "--touched", "centre")
    inside = field_map(made, KEPT_FIDS, all_touched=False)
    assert (inside >= 0).sum() < (field_map(made, KEPT_FIDS) >= 0).sum()
    np.testing.assert_array_equal(corpus.index["field"], inside[corpus.index["row"], corpus.index["column"]])


def test_times_are_whole_series_of_both_sensors(root: Path, made: tree.Truth, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "times", "--pixels", "50")
    row, column = corpus.index["row"], corpus.index["column"]
    assert (np.diff(row.astype(int) * tree.WIDTH + column) > 0).all()
    values, time, valid = corpus.read_series(range(50), "s2")
    expected = np.rint(made.bands[:, row, column].astype(np.float64) * 1e4).transpose(1, 0, 2)
    empty = (expected == 0).all(axis=2)
    expected[empty] = -32768
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(valid, (made.clp[:, row, column, 0].T < 40) & ~empty)
    np.testing.assert_array_equal(time[7].astype("M8[ns]"), np.array(tree.MOMENTS, "M8[ns]"))
    planet, days, _ = corpus.read_series(range(50), "planet")
    np.testing.assert_array_equal(planet, np.stack([planet_of(made, day, row, column) for day in range(tree.DAYS)], axis=1))
    np.testing.assert_array_equal(days[0].astype("M8[ns]"), np.array(tree.days(), "M8[ns]"))


def test_crops_are_balanced_and_split_by_field(root: Path, made: tree.Truth, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "crops", "--per-class", "30,12")
    crop, split, field = zarr.open_array(tmp_path / "out" / "labels" / "crop")[...], corpus.index["split"], corpus.index["field"]
    for code, count in ((0, 30), (1, 12)):
        assert [int(((crop == c) & (split == code)).sum()) for c in (1, 5)] == [count, count]
    assert not set(field[split == 0].tolist()) & set(field[split == 1].tolist())
    pretraining = build(root, tmp_path / "points", "--set", "points", "--pixels", "60").index["field"]
    assert not set(field.tolist()) & set(pretraining.tolist())
    row, column = corpus.index["row"], corpus.index["column"]
    expected = np.rint(made.bands[:, row, column].astype(np.float64) * 1e4).transpose(1, 0, 2)
    expected[(expected == 0).all(axis=2)] = -32768
    np.testing.assert_array_equal(corpus.series["s2"][...], expected)
    assert corpus.sensors == ("s2",)


def test_classes_with_too_few_pixels_repeat_them_and_say_so(root: Path, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "crops", "--per-class", "10,500")
    repeated = corpus.attributes["made_by"]["drawn_with_replacement"]
    assert set(repeated) == {"val Wheat", "val Corn"}
    pixel = corpus.index["row"].astype(int) * tree.WIDTH + corpus.index["column"]
    in_val = corpus.index["split"] == 1
    assert len(np.unique(pixel[in_val])) <= sum(repeated.values()) < 1000 == in_val.sum()
    assert len(np.unique(pixel[~in_val])) == (~in_val).sum()


def test_both_layouts_and_any_number_of_processes_give_the_same_values(made: tree.Truth, tmp_path: Path) -> None:
    corpora = [build(tree.write(tmp_path / layout, layout, made=made, degrees=layout == "mlhub"), tmp_path / f"{layout}.out", "--set", "times",
                     "--pixels", "30") for layout in LAYOUTS]
    for name in ("series/s2", "series/planet", "valid/s2", "index/field", "labels/crop"):
        one, other = (zarr.open_group(corpus.path, mode="r")[name][...] for corpus in corpora)
        np.testing.assert_array_equal(one, other)
    assert not (tmp_path / "original.out.scratch").exists()


def test_another_seed_draws_other_pixels_and_the_same_seed_the_same(root: Path, tmp_path: Path) -> None:
    drawn = [build(root, tmp_path / name, "--set", "points", "--pixels", "20", "--seed", seed).index
             for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))]
    assert (drawn[0]["row"] == drawn[1]["row"]).all() and (drawn[0]["column"] == drawn[1]["column"]).all()
    assert (drawn[0]["row"] != drawn[2]["row"]).any()


def test_the_test_tile_is_split_seventy_thirty(made: tree.Truth, tmp_path: Path) -> None:
    root = tree.write(tmp_path / "tile", "mlhub", tile="test", made=made)
    corpus = build(root, tmp_path / "out", "--set", "crops", "--tile", "test", "--per-class", "400,200", "--with-planet")
    fields = [{f for f in corpus.index["field"][corpus.index["split"] == code].tolist() if f < 10} for code in (0, 1)]
    assert [len(found) for found in fields] == [6, 3]
    planet = corpus.series["planet"][...]
    np.testing.assert_array_equal(planet[:, 4], planet_of(made, 4, corpus.index["row"], corpus.index["column"]))


def test_places_are_those_of_the_pixel_centres(root: Path, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "times", "--pixels", "10")
    x, y = rasterio.warp.transform("EPSG:4326", f"EPSG:{tree.EPSG}", corpus.index["lon"], corpus.index["lat"])
    np.testing.assert_allclose(x, tree.LEFT + 10 * corpus.index["column"] + 5, atol=0.01)
    np.testing.assert_allclose(y, tree.TOP - 10 * corpus.index["row"] - 5, atol=0.01)


def test_pairs_that_are_built_pass_the_pairing_test(root: Path, tmp_path: Path) -> None:
    corpus = build(root, tmp_path / "out", "--set", "points", "--pixels", "60")
    s2, planet = corpus.pixels["s2"][:60], corpus.pixels["planet"][:60].reshape(60, 4, 9)
    result = pair_test([(s2, planet)], S2_BANDS, ("blue", "green", "red", "nir"))
    assert result.paired and result.correlation > 0.8
    rolled = pair_test([(s2, np.roll(planet, 7, axis=0))], S2_BANDS, ("blue", "green", "red", "nir"))
    assert not rolled.paired


def test_cuts_are_pure_and_travel_to_other_processes(root: Path, tmp_path: Path) -> None:
    for number, flags in enumerate((("points", "--pixels", "20"), ("times", "--pixels", "30"), ("crops", "--per-class", "20,10", "--with-planet"))):
        parser = argparse.ArgumentParser()
        denethor.add_arguments(parser)
        args = parser.parse_args(["--root", str(root), "--set", *flags])
        args.seed, args.out = 0, tmp_path / str(number)
        plan = denethor.plan(args)
        plan.prepare()
        whole, cut = plan.cut(range(10, 30)), pickle.loads(pickle.dumps(plan.cut))
        parts = [cut(range(10, 23)), cut(range(23, 30))]
        for sensor, values in whole.arrays.items():
            np.testing.assert_array_equal(values, np.concatenate([part.arrays[sensor] for part in parts]))
        for name, column in whole.index.items():
            np.testing.assert_array_equal(column, np.concatenate([part.index[name] for part in parts]))
        np.testing.assert_array_equal(whole.labels["crop"], np.concatenate([part.labels["crop"] for part in parts]))
