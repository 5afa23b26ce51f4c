"""Scenes by band and things in patches: bands by their names, public weights repeated over one band, points and polygons against literal loops."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from evaluate_cases import planted, untrained_run  # noqa: E402

import dsengine
from dsengine.errors import UsageError
from dsengine.evaluate import patches, scene
from dsengine.evaluate.metrics import roc_auc
from dsengine.evaluate.subjects import FLOORS, with_floors

FAST = {"num_draws": 20, "epochs": 5, "probes": ("linear",), "label": "scene"}


def rows(path: Path) -> dict[tuple, dict]:
    return {(row["name"], row.get("band")): row for row in json.loads(path.read_text())["rows"]}


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "ordered", ("B02", "B08", "B8A", "B11", "B12"))


def test_a_band_is_found_by_name_wherever_the_corpus_has_it(ordered: Path, tmp_path: Path) -> None:
    """The classes are in B02 alone. A reader that went by position would find them elsewhere in the second corpus."""
    last = planted(tmp_path / "last", ("B08", "B11", "B12", "B8A", "B02"))
    run = untrained_run(tmp_path / "run", ordered, in_channels=1)
    for name, corpus, bands in (("a", ordered, None), ("b", last, ("B02", "B8A"))):
        found = rows(scene.evaluate([str(run)], corpus, tmp_path / name, scene.Setting(**FAST, floors=("statistics",), bands=bands), quiet=True))
        assert {band for _, band in found} == set(bands or ("B02", "B08", "B8A", "B11", "B12"))
        for (who, band), row in found.items():
            value = row["figures"]["f1_weighted"]["value"]
            assert row["protocol"]["bands"] == [band] and (value > 0.95 if band == "B02" else value < 0.75), (who, band, value)
        assert "| B8A | NNIR | SWIR12 |" in (tmp_path / name / "table.md").read_text()
        assert (tmp_path / name / "figures" / "bands.png").exists()


def test_encoders_of_all_bands_are_judged_with_all_or_with_the_others_at_zero(ordered: Path, tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", ordered)
    found = rows(scene.evaluate([str(run)], ordered, tmp_path / "all", scene.Setting(**FAST, floors=()), quiet=True))
    assert set(found) == {("run", "all")}
    setting = scene.Setting(**FAST, floors=("statistics",), by_band="all", bands=("B02", "B11"))
    alone = scene.evaluate([str(run)], ordered, tmp_path / "alone", setting, quiet=True)
    value = {key: row["figures"]["f1_weighted"]["value"] for key, row in rows(alone).items()}
    assert value["image statistics", "B02"] > 0.95 > 0.75 > value["image statistics", "B11"]
    single = untrained_run(tmp_path / "single", ordered, in_channels=1)
    with pytest.raises(UsageError, match="by_band=none: single takes one band"):
        scene.evaluate([str(single)], ordered, tmp_path / "x", scene.Setting(**FAST, by_band="none"), quiet=True)


def test_the_imagenet_row_is_the_files_network_on_a_band_three_times(ordered: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = dsengine.build_encoder("resnet50", 3).state_dict()
    torch.save({**weights, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet50.pth")
    contract = dsengine.open_corpus(ordered).contract()
    subject = scene.imagenet_subject(tmp_path / "resnet50.pth", contract)
    expected = dsengine.build_encoder("resnet50", 3)
    expected.load_state_dict(weights)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(subject.encoder(x).pooled, expected.eval()(torch.cat((x, x, x), 1)).pooled)
    assert subject.takes_any and subject.channels == 1 and subject.name == "ImageNet"
    floors = with_floors([subject], FLOORS, seed=0)[1:]
    assert [floor.name for floor in floors] == ["image statistics", "untrained resnet50, band repeated", "random convolutions"]
    assert all(floor.channels == 1 and floor.encoder(x).pooled.shape[0] == 2 for floor in floors)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("mines") / "corpus")


def places(corpus: Path) -> tuple[np.ndarray, np.ndarray]:
    index = dsengine.open_corpus(corpus).index
    return index.x, index.y


def test_points_inside_a_patch_make_it_one_with_and_the_auc_is_of_its_scores(corpus: Path, tmp_path: Path) -> None:
    x, y = places(corpus)
    there = dsengine.open_corpus(corpus).labels["there"][...] == 1
    points = [(x[k] + 80, y[k] - 80) for k in np.flatnonzero(there)] + [(x[k] + 161, y[k] - 80) for k in range(5)]  # the last lie just outside
    (tmp_path / "mines.csv").write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in points))
    setting = patches.Setting(num_draws=20, floors=("statistics",))
    out = patches.evaluate(["none"], corpus, tmp_path / "out", setting, things=f"points:{tmp_path}/mines.csv,crs=EPSG:32632", quiet=True)
    found = json.loads(out.read_text())
    assert found["patches_with"] == there.sum() and found["figure"] == "roc_auc"
    (row,) = [row for row in found["rows"] if row["kind"] == "floor"]
    assert row["figures"]["roc_auc"]["value"] == 1.0  # the planted level is in a band's mean
    stored = [np.load(path) for path in (tmp_path / "out" / "rows").glob("*.npz")]
    truths = [part["ranked"] for part in stored]
    said = {round(other["figures"]["roc_auc"]["value"], 12) for other in found["rows"]}
    assert len(truths) == 2 and {round(roc_auc(*part[:2]), 12) for part in truths} == said


def test_a_polygon_touches_the_patches_whose_pixels_it_covers(corpus: Path, tmp_path: Path) -> None:
    x, y = places(corpus)
    features = [{"type": "Feature", "properties": {"kind": "mine"}, "geometry": {"type": "Polygon", "coordinates": [
        [[x[k] + a, y[k] - b] for a, b in ((20, 20), (70, 20), (70, 70), (20, 70), (20, 20))]]}} for k in range(0, 120, 3)]
    path = tmp_path / "mines.geojson"
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    out = patches.evaluate(["none"], corpus, tmp_path / "out", patches.Setting(num_draws=5, floors=()), things=f"vector:{path}", quiet=True)
    found = json.loads(out.read_text())
    assert found["patches_with"] == 40 and sum(map(sum, found["rows"][0]["confusion"])) == found["folds"][0]["test"]


def test_things_that_are_everywhere_or_nowhere_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "far.csv").write_text("lon,lat\n-120,10\n")
    with pytest.raises(UsageError, match="no patch of .* holds one"):
        patches.evaluate(["none"], corpus, tmp_path / "out", patches.Setting(), things=f"points:{tmp_path}/far.csv", quiet=True)
