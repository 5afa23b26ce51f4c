"""`corpus build --label` end to end on small GeoTIFFs placed where the sample maps lie."""

import argparse
import hashlib
import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from dsengine import cli
from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build import labelling
from dsengine.corpus.build.labelling import LabelBlock, Request, add_labels, make_labeller, parse
from dsengine.corpus.build.plan import Grid
from dsengine.corpus.build.writer import Block
from dsengine.corpus.commands import add_parser
from dsengine.corpus.sources import geotiff
from dsengine.errors import RunError, UsageError

pyogrio, pyproj, shapely = (pytest.importorskip(name) for name in ("pyogrio", "pyproj", "shapely"))
pytest.importorskip("osmium")
PLACES = {"lanjaron": (32630, 455000.0, 4094000.0), "lanjaron_edge": (32630, 464500.0, 4094000.0), "vaduz": (32632, 538500.0, 5222000.0)}
MINES = {"iron": ("lanjaron", 400, 100), "coal": ("vaduz", 100, 600)}  # metres right of and below the corner
SIDE, SIZE = 64, 32


@pytest.fixture(scope="module")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """S1 and a class map of 64 x 64 pixels of 10 m at each place."""
    folder, rng = tmp_path_factory.mktemp("rasters"), np.random.default_rng(0)
    for name, (epsg, x, y) in PLACES.items():
        for part, pixels in (("s1", rng.uniform(-25, 0, (2, SIDE, SIDE)).astype(np.float32)),
                             ("lulc", rng.integers(1, 8, (1, SIDE, SIDE)).astype(np.uint8))):
            (folder / part).mkdir(exist_ok=True)
            with rasterio.open(folder / part / f"{name}.tif", "w", driver="GTiff", height=SIDE, width=SIDE, count=len(pixels), dtype=pixels.dtype,
                               crs=f"EPSG:{epsg}", transform=from_origin(x, y, 10, 10)) as file:
                file.write(pixels)
    lines = ["lon,lat,kind"]
    for kind, (place, dx, dy) in MINES.items():
        epsg, x, y = PLACES[place]
        lon, lat = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(x + dx, y - dy)
        lines.append(f"{lon!r},{lat!r},{kind}")
    (folder / "mines.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def flags(rasters: Path, sample_data: Path) -> list[str]:
    maps = sample_data / "labels"
    return ["--label", f"lulc={rasters}/lulc/*.tif", "--label", f"clc=corine:{maps}/corine/clc.gpkg,layer=clc,level=3",
            "--label", f"clc_raster=raster:{maps}/corine/clc.tif,classes=corine", "--label", f"osm=osm:{maps}/osm/liechtenstein-latest.osm.pbf",
            "--label", f"mines=points:{rasters}/mines.csv,as=multilabel,column=kind",
            "--label", f"land=vector:{maps}/naturalearth/ne_50m_land.json,column=featurecla,background=sea"]


def build(rasters: Path, out: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    argv = ["corpus", "build", str(out), "--source", "geotiff", "--size", str(SIZE), "--s1", f"{rasters}/s1/*.tif", "--no-quality", *flags]
    add_parser(parser.add_subparsers(), argv)
    args = parser.parse_args(argv)
    return args.run(args)


@pytest.fixture(scope="module")
def corpus(rasters: Path, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("labelled") / "corpus"
    assert build(rasters, out, *flags) == 0
    return open_corpus(out)


def test_every_label_of_one_command_is_in_the_corpus_beside_the_source_s_own(corpus: Corpus) -> None:
    shapes = {name: array.shape for name, array in corpus.labels.items()}
    maps = {name: (12, SIZE, SIZE) for name in ("lulc", "clc", "clc_raster", "osm", "land")}
    assert shapes == {**maps, "mines": (12, 2)}
    assert corpus.labels["clc"].attrs["classes"]["311"] == "broad-leaved forest" and corpus.labels["clc"].attrs["ignore"] == 0
    assert corpus.labels["mines"].attrs["kind"] == "multilabel" and corpus.labels["mines"].attrs["classes"] == {"0": "coal", "1": "iron"}
    assert (corpus.labels["land"][...] == 1).all()


def test_labels_lie_where_the_index_says_the_patch_lies(corpus: Corpus, sample_data: Path) -> None:
    """The map's own pixels at the patch's centres, found by rasterio from the index alone."""
    with rasterio.open(sample_data / "labels/corine/clc.tif") as file:
        raw, transform = file.read(1), file.transform
    steps = (np.arange(SIZE) + 0.5) * 10
    agreed = []
    for row in np.flatnonzero(corpus.index.epsg == 32630):
        x, y = np.meshgrid(corpus.index.x[row] + steps, corpus.index.y[row] - steps)
        column, line = (np.floor(v).astype(int) for v in ~transform * (x, y))  # WGS 84 and ETRS89 differ by nothing here
        inside = column < raw.shape[1]
        expected = np.where(inside, raw[line, np.minimum(column, raw.shape[1] - 1)], 0)
        got = corpus.labels["clc_raster"][row]
        assert (got != expected).mean() < 2e-3
        agreed.append(corpus.labels["clc"][row] == got)
    assert np.mean(agreed) > 0.9


def test_the_share_of_labelled_pixels_is_an_index_column(corpus: Corpus) -> None:
    for name in ("clc", "osm"):
        ignore = corpus.labels[name].attrs["ignore"]
        np.testing.assert_allclose(corpus.columns[f"labelled_{name}"][...], (corpus.labels[name][...] != ignore).mean(axis=(1, 2)))
    share = corpus.columns["labelled_clc"][...].reshape(3, 4)
    assert (share[0] == 1).all() and 0 < share[1].mean() < 1 and (share[2] == 0).all()
    assert "labelled_mines" not in corpus.columns and (corpus.columns["labelled_land"][...] == 1).all()


def test_points_mark_the_patches_that_hold_them(corpus: Corpus) -> None:
    corners = np.stack([corpus.index.epsg, corpus.index.x, corpus.index.y], axis=1).tolist()
    expected = np.zeros((12, 2), int)
    for k, kind in enumerate(("coal", "iron")):
        place, dx, dy = MINES[kind]
        epsg, x, y = PLACES[place]
        expected[corners.index([epsg, x + dx // 320 * 320, y - dy // 320 * 320]), k] = 1
    np.testing.assert_array_equal(corpus.labels["mines"][...], expected)


def _digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_processes_write_the_same_corpus_as_one(corpus: Corpus, rasters: Path, flags: list[str], tmp_path: Path) -> None:
    assert build(rasters, tmp_path / "c", "--workers", "2", *flags) == 0
    assert _digest(tmp_path / "c") == _digest(Path(corpus.path))


def test_a_labelled_plan_that_went_through_pickle_cuts_the_same_rows(rasters: Path, flags: list[str]) -> None:
    plan = _plan(rasters, flags)
    there, here = pickle.loads(pickle.dumps(plan)).cut(range(3, 9)), plan.cut(range(3, 9))
    assert there.labels.keys() == here.labels.keys() and len(pickle.dumps(plan)) < 100_000  # no map travels with it
    for name in here.labels:
        np.testing.assert_array_equal(there.labels[name], here.labels[name])


def _plan(rasters: Path, flags: list[str]) -> labelling.Plan:
    requests, _ = parse(flags[3::2])
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    geotiff.add_arguments(parser)
    args = parser.parse_args(["--size", str(SIZE), "--s1", f"{rasters}/s1/*.tif"])
    args.label = []
    return add_labels(geotiff.plan(args), requests)


def test_an_unfinished_build_does_not_go_on_with_another_label(rasters: Path, sample_data: Path, tmp_path: Path) -> None:
    path = sample_data / "labels/corine/clc.gpkg"
    made = [_plan(rasters, ["", "", "--label", f"clc=corine:{path},layer=clc{option}"]).made_by["labels"] for option in ("", ",all_touched=yes")]
    assert made[0] != made[1] and made[0]["clc"] == {"kind": "corine", "path": str(path), "bytes": path.stat().st_size, "options": {"layer": "clc"}}


def test_repaired_shapes_are_reported_in_the_corpus(rasters: Path, tmp_path: Path) -> None:
    _, x, y = PLACES["vaduz"]
    bow = shapely.Polygon([(x, y), (x + 300, y - 300), (x + 300, y), (x, y - 300)])
    pyogrio.raw.write(tmp_path / "a.gpkg", np.array([shapely.to_wkb(bow)], object), [np.array(["f"], object)], ["k"],
                      geometry_type="Polygon", crs="EPSG:32632")
    build(rasters, tmp_path / "c", "--label", f"field=vector:{tmp_path}/a.gpkg")
    corpus = open_corpus(tmp_path / "c")
    assert corpus.attributes["faults"] == [f"label field: {tmp_path}/a.gpkg layer a: invalid shape 1 repaired"]


@pytest.mark.parametrize(("text", "message"), [
    ("clc", "--label clc: legal: NAME=GLOB .source geotiff., or NAME=KIND:PATH"), ("c-l=osm:x", "--label c-l=osm:x: legal"),
    ("clc=corin:x.gpkg", "kind corin: did you mean corine"), ("clc=corine:", "no PATH"),
    ("clc=corine:x,level=1,level=2", "an option is given twice")])
def test_a_label_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse([text])


def test_paths_may_hold_commas_equals_and_colons() -> None:
    (request,), globs = parse(["a=vector:/x/a=b,c:d.gpkg,column=k,buffer=3"])
    assert request == Request("a", "vector", Path("/x/a=b,c:d.gpkg"), {"column": "k", "buffer": "3"}) and not globs
    assert parse(["a=/x/y:z/*.tif"]) == ([], ["a=/x/y:z/*.tif"])


def test_one_name_is_one_label(rasters: Path, sample_data: Path, tmp_path: Path) -> None:
    twice = ["--label", f"lulc={rasters}/lulc/*.tif", "--label", f"lulc=osm:{sample_data}/labels/osm/liechtenstein-latest.osm.pbf"]
    with pytest.raises(UsageError, match="--label lulc is given twice"):
        build(rasters, tmp_path / "c", *twice)


def test_other_sources_refuse_globs_and_name_the_form_that_works(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    code = cli.main(["corpus", "build", str(tmp_path / "c"), "--source", "eurosat_ms", "--root", str(tmp_path), "--label", "lulc=/x/*.tif"])
    err = capsys.readouterr().err
    assert code == 2 and "source eurosat_ms has no class maps beside its files; legal: NAME=KIND:PATH" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("index", "message"), [
    ({}, "has epsg 0 x nan y nan; labels need"), ({"epsg": 32632, "x": np.nan, "y": 1.0}, "x nan"),
    ({"epsg": 4326, "x": 9.0, "y": 47.0}, "EPSG:4326; labels need")])
def test_patches_without_a_place_in_metres_cannot_be_labelled(sample_data: Path, index: dict, message: str) -> None:
    step = LabelBlock((make_labeller(Request("clc", "corine", sample_data / "labels/corine/clc.tif", {})),), 32, 10.0)
    with pytest.raises(RunError, match=message):
        step(Block({}, {"lon": np.zeros(1), "lat": np.zeros(1), **index}))


def test_a_geopackage_in_use_by_another_program_is_still_read(sample_data: Path, tmp_path: Path) -> None:
    """Reading takes no lock and leaves no file behind."""
    path = tmp_path / "clc.gpkg"
    path.write_bytes((sample_data / "labels/corine/clc.gpkg").read_bytes())
    with sqlite3.connect(path) as other:
        other.execute("select count(*) from clc").fetchall()
        got = make_labeller(Request("clc", "corine", path, {"layer": "clc"}))(Grid(32630, 455000.0, 4094000.0, 32, 10.0))
    assert (got != 0).all() and [p.name for p in tmp_path.iterdir()] == ["clc.gpkg"]
