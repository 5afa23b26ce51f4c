"""`corpus preview`: the sheet shows the pixels of the patches it names, the map their places; `corpus info` as tables and as JSON."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import zarr
from matplotlib.image import imread

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.colours import NATURAL, SPARE, class_colours
from dsengine.corpus.columns import write_column
from dsengine.corpus.preview import NODATA, _label_panel, _sensor_panels, pick_rows
from dsengine.corpus.preview_map import _unwrapped, location_map
from dsengine.corpus.schema import ArraySpec, LabelSpec, Layout
from dsengine.errors import RunError, UsageError

NUM, SIDE = 9, 16
LAYOUT = Layout(
    arrays=(ArraySpec(name="s2", sensor="s2", bands=("B02", "B03", "B04"), units="reflectance", scale_factor=1e-4),
            ArraySpec(name="s2_20m", sensor="s2", bands=("B05",), units="reflectance", scale_factor=1e-4, factor=2),
            ArraySpec(name="s1", sensor="s1", bands=("VV", "VH"), units="dB", scale_factor=0.01)),
    patch_size=SIDE, resolution_m=10.0, labels=(LabelSpec(name="cover", kind="classmap", classes={0: "water", 1: "forest", 2: "lava"}, ignore=255),
                                                LabelSpec(name="crop", kind="class", classes={0: "rye", 1: "oat"}),
                                                LabelSpec(name="seen", kind="multilabel", classes={4: "owl", 7: "fox"})))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    arrays = {spec.name: rng.integers(0, 3000, (NUM, len(spec.bands), *[LAYOUT.side(spec)] * 2)).astype(np.int16) for spec in LAYOUT.arrays}
    arrays["s2"][:, :, :2] = -32768
    cover = np.zeros((NUM, SIDE, SIDE), np.uint8)
    cover[:, 4:8], cover[:, 8:], cover[0, 0] = 1, 2, 255
    labels = {"cover": cover, "crop": (np.arange(NUM) % 3 == 0).astype(np.uint8), "seen": np.stack([np.ones(NUM), np.arange(NUM) < 3], 1).astype(np.uint8)}
    stamp = int(datetime.fromisoformat("2020-05-06T07:08:09+00:00").timestamp()) * 10**9
    index = {"lon": np.linspace(5, 6, NUM), "lat": np.linspace(50, 51, NUM), "time_s2": np.full(NUM, stamp)}
    with CorpusWriter(tmp_path_factory.mktemp("preview") / "fields", layout=LAYOUT, num_patches=NUM, made_by={"s2_offset": {}}) as writer:
        writer.append(Block(arrays, index, labels, {}, ["tile 7 is [cut] short"]))
        return writer.finish()


def test_the_sheet_and_the_map_are_written_and_named(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpus", "preview", str(made), "--out", str(tmp_path / "x.png"), "--count", "4"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "x.png"), str(tmp_path / "x-map.png")]
    sheet, places = imread(tmp_path / "x.png"), imread(tmp_path / "x-map.png")
    assert min(sheet.shape[:2]) > 300 and min(places.shape[:2]) > 300
    forest = np.array([int(class_colours({1: "forest"})[1][i:i + 2], 16) / 255 for i in (1, 3, 5)])
    near = np.abs(sheet[..., :3] - forest).max(axis=-1) < 0.01
    assert near.sum() > 4 * 1000  # a quarter of each of four class maps


def test_the_same_seed_draws_the_same_sheet_and_another_does_not(made: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli.main(["corpus", "preview", str(made), "--out", str(tmp_path / f"{name}.png"), "--count", "3", "--seed", str(seed)]) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_rows_are_taken_as_written_and_chance_avoids_quarantine(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made, tmp_path / "c")
    write_column(open_corpus(path), "quarantine", np.arange(NUM) > 3)
    corpus = open_corpus(path)
    assert pick_rows(corpus, rows="7,2-4", count=1, seed=0).tolist() == [7, 2, 3, 4]
    assert pick_rows(corpus, rows=None, count=99, seed=0).tolist() == [0, 1, 2, 3]
    for rows in ("9", "a", "4-", "", "-1", "3-2"):
        with pytest.raises(UsageError, match="--rows"):
            pick_rows(corpus, rows=rows, count=1, seed=0)
    with pytest.raises(UsageError, match="--count 0"):
        pick_rows(corpus, rows=None, count=0, seed=0)


def test_true_colour_is_red_green_blue_in_one_monotone_stretch_and_nodata_has_its_own_colour(made: Path) -> None:
    group, rows = zarr.open_group(made, mode="r"), np.array([5, 1])
    colour, radar = _sensor_panels(open_corpus(made), rows)
    stored = group["s2"][...][rows][:, [2, 1, 0]].transpose(0, 2, 3, 1)  # B04, B03, B02
    valid = (stored != -32768).all(axis=-1)
    shown, order = colour.pictures[valid].ravel(), np.argsort(stored[valid].ravel(), kind="stable")
    assert (np.diff(shown[order]) >= 0).all() and shown.min() == 0 and shown.max() == 1
    assert (colour.pictures[~valid] == NODATA).all() and (~valid).sum() == 2 * 2 * SIDE
    vv = group["s1"][...][rows][:, 0]
    assert (np.diff(radar.pictures[..., 0].ravel()[np.argsort(vv.ravel())]) >= 0).all() and radar.name == "VV"


def test_the_class_map_has_the_colours_of_its_legend(made: Path) -> None:
    panel, legend = _label_panel(open_corpus(made), np.array([0, 8]), "cover")
    assert list(legend) == ["water", "forest", "lava", "ignored"] and len(set(legend.values())) == 4
    cells = {tuple(np.round(panel.pictures[0, y, 0] * 255).astype(int)) for y in (0, 2, 5, 12)}
    assert cells == {tuple(int(colour[i:i + 2], 16) for i in (1, 3, 5)) for colour in legend.values()}


def test_classes_get_distinct_colours_that_do_not_change() -> None:
    table = {k: name for k, name in enumerate(["water", "sea", "trees", "pine forest", *(f"kind {k}" for k in range(12))])}
    colours = class_colours(table)
    assert len(set(colours.values())) == len(table) and colours == class_colours(table)
    assert not {colour for colour, _ in NATURAL} & set(SPARE)


def test_places_across_the_date_line_stay_together() -> None:
    lon = np.array([179.5, -179.8, 179.9, -179.0])
    assert np.ptp(_unwrapped(lon)) < 2 and np.ptp(_unwrapped(np.array([-80.0, 34.0, 9.0]))) == 114


def test_an_outline_is_drawn_and_one_that_is_none_is_refused(made: Path, tmp_path: Path, sample_data: Path) -> None:
    corpus, land = open_corpus(made), sample_data / "labels/naturalearth/ne_110m_land.json"
    assert len(location_map(corpus, outline=land).axes[0].lines) > 50
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageError, match="--outline .*x.json: cannot be read"):
        location_map(corpus, outline=tmp_path / "x.json")


@pytest.mark.parametrize("out, words", [("x.jpg", "ends in .png"), ("no/x.png", "there is no folder")])
def test_a_picture_that_cannot_be_written_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, words: str) -> None:
    assert cli.main(["corpus", "preview", str(made), "--out", str(tmp_path / out)]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_damaged_patch_is_named(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made, tmp_path / "c")
    file = path / "s1/c/0/0/0/0"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(RunError, match="s1: cannot be read .*corpus verify"):
        _sensor_panels(open_corpus(path), np.arange(NUM))


def test_info_says_in_json_what_the_files_hold(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpus", "info", str(made), "--json", "--where", "lat > 50.5"]) == 0
    said = json.loads(capsys.readouterr().out)
    group = zarr.open_group(made, mode="r")
    assert said["rows"] == NUM and said["sensors"] == ["s2", "s1"] and [band["name"] for band in said["bands"]] == ["B02", "B03", "B04", "B05", "VV", "VH"]
    assert said["bands"][4]["mean"] == pytest.approx(group["s1"][:, 0].mean() * 0.01) and said["bands"][3]["resolution_m"] == 20
    file = (made / "s2_20m/c/0/0/0/0").stat().st_size
    assert said["arrays"]["s2_20m"] == {"shape": [NUM, 1, 8, 8], "dtype": "int16", "codec": "bytes, blosc lz4 5, crc32c", "chunk": [1, 1, 8, 8],
                                        "shard_rows": 64, "stored_bytes": file, "raw_bytes": NUM * 128, "ratio": NUM * 128 / file}
    assert said["bytes"]["all"] == sum(f.stat().st_size for f in made.rglob("*") if f.is_file())
    assert said["extent"] == {"west": 5.0, "east": 6.0, "south": 50.0, "north": 51.0}
    assert said["times"]["s2"] == {"first": "2020-05-06T07:08:09Z", "last": "2020-05-06T07:08:09Z", "unknown": 0} and said["times"]["s1"]["first"] is None
    cover = group["labels/cover"][...]
    assert said["labels"]["cover"]["shares"] == pytest.approx({str(k): (cover == k).mean() for k in (0, 1, 2, 255)})
    assert said["labels"]["crop"]["shares"] == pytest.approx({"0": 6 / 9, "1": 3 / 9}) and said["labels"]["seen"]["shares"] == pytest.approx({"4": 1, "7": 3 / 9})
    assert said["faults"] == ["tile 7 is [cut] short"] and said["sealed"] and said["quarantine"] == 0
    assert sum(said["where"]["splits"].values()) == 4


def test_info_fits_80_columns_and_prints_brackets_of_strangers_as_they_are(made: Path, capsys: pytest.CaptureFixture[str],
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["corpus", "info", str(made)]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])  # the first is the path
    for words in ("tile 7 is [cut] short", "blosc lz4 5", "1 oat 33.3%", "quarantine", "2020-05-06 07:08", "VH", "manifest"):
        assert words in out, words
