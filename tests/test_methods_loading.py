"""What methods ask of the loader beyond crops: labels cut like the view, drawn bands, warped views; and what the run makes of their answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


import dsengine
from dsengine.augment.params import Augment
from dsengine.corpus import Corpus
from dsengine.data import labels
from dsengine.data.labels import LabelReader, label_tables
from dsengine.data.loader import Loader
from dsengine.data.reference import ReferenceLoader
from dsengine.data.sample import View, band_names, num_channels
from dsengine.engine.api import Run
from dsengine.errors import UsageError

GEOMETRY = Augment(dihedral="independent", crop_area=(0.3, 1.0), rotation=20.0, blur=0.5)


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return dsengine.open_corpus(small_corpus)


def test_warped_and_drawn_views_are_those_of_the_reference_loader(corpus: Corpus) -> None:
    views = (View(size=16, augment=GEOMETRY), View(size=16, bands=("B02", "B03", "B08"), draw_bands=1, augment=GEOMETRY), View(size=16, sensor="s1"))
    truth = ReferenceLoader(corpus, views, 8, seed=3)
    with Loader(corpus, views, 8, seed=3) as loader:
        for step in range(2):
            got, expected = next(loader), truth.batch(step)
            assert [tuple(view.shape) for view in got.views] == [(8, 14, 16, 16), (8, 1, 16, 16), (8, 2, 16, 16)]
            for a, b in zip(got.views, expected.views):
                assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_a_drawn_band_is_the_band_of_the_undrawn_view(corpus: Corpus) -> None:
    bands = ("B02", "B03", "B08", "VH")
    with Loader(corpus, (View(size=16, bands=bands, draw_bands=1),), 32, seed=1) as one, Loader(corpus, (View(size=16, bands=bands),), 32, seed=1) as all_:
        (drawn,), (every,) = next(one).views, next(all_).views
    found = (every == drawn).flatten(2).all(2)
    assert found.any(1).all() and (found.sum(0) > 2).all()


@pytest.mark.parametrize("dihedral", ["none", "independent"])
def test_a_class_map_is_cut_and_turned_like_its_view(corpus: Corpus, dihedral: str) -> None:
    """A view of the stored classes themselves cannot be had, so the draws are undone by hand on the stored map."""
    from dsengine.augment.params import draw

    view = View(size=16, augment=Augment(dihedral=dihedral))
    with Loader(corpus, (view,), 8, seed=3, label="landcover") as loader:
        batch = next(loader)
    ids = batch.sample_id.numpy()
    draws = draw(view.augment, view=0, size=16, patch_size=32, num_bands=14, seed=3, epoch=0, ids=ids, level=1.0)
    stored, values = corpus.labels["landcover"][:], label_tables(corpus)["landcover"].values
    for row, (k, (y, x), code) in enumerate(zip(ids, draws.offset, draws.code)):
        square = torch.rot90(torch.from_numpy(stored[k, y:y + 16, x:x + 16].astype(int)), int(code) & 3)
        square = square.flip(1) if code & 4 else square
        got = batch.label[row]
        assert all((got[square == value] == number).all() for number, value in enumerate(values))
    assert batch.label.dtype == torch.int64 and batch.label.min() >= 0


@pytest.mark.parametrize("resident, epochs_read", [("ram", 1), ("none", 2)])
def test_class_maps_are_read_once_where_patches_are_kept(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, resident: str, epochs_read: int) -> None:
    read, seen = labels.read_rows, []
    monkeypatch.setattr(labels, "read_rows", lambda array, rows, name: (seen.extend(rows), read(array, rows, name))[1])
    steps = 2 * (len(corpus.rows("train")) // 8)
    with Loader(corpus, (View(size=16),), 8, seed=3, label="landcover", resident=resident, prefetch=0) as loader:
        got = [next(loader) for _ in range(steps)]
    with Loader(corpus, (View(size=16),), 8, seed=3, label="landcover", resident="none", prefetch=0) as other:
        assert all(torch.equal(batch.label, next(other).label) for batch in got)
    of_other = steps * 8
    counts = np.bincount(seen[:len(seen) - of_other])
    assert counts.max() == epochs_read and counts.sum() <= steps * 8


class Stored:
    """A corpus that holds labels alone."""

    def __init__(self, values: np.ndarray, kind: str, classes: dict, ignore: int | None) -> None:
        array = type("Array", (), {"attrs": {"kind": kind, "classes": classes, "ignore": ignore}, "oindex": property(lambda self: values),
                                   "__getitem__": lambda self, rows: values[rows], "ndim": values.ndim})()
        self.labels, self.path = {"crop": array}, Path("made")


def test_classes_are_numbered_in_the_order_of_the_table_and_the_ignored_one_is_minus_one() -> None:
    reader = LabelReader(Stored(np.array([7, 0, 3, 7, 99]), "class", {"0": "nothing", "7": "rye", "3": "oats", "12": "rare"}, 0), "crop")
    assert reader.read(np.arange(5), None).tolist() == [1, -1, 0, 1, -1]
    many = LabelReader(Stored(np.array([[0, 1], [1, 1]], dtype=np.uint8), "multilabel", {"0": "a", "1": "b"}, None), "crop")
    assert many.read(np.array([1, 0]), None).tolist() == [[1.0, 1.0], [0.0, 1.0]]


def test_what_cannot_be_had_is_refused(corpus: Corpus) -> None:
    loaders = [lambda: Loader(corpus, (View(size=16, augment=GEOMETRY),), 8, label="landcover"),
               lambda: Loader(corpus, (View(size=16, bands=("B02",), draw_bands=2),), 8), lambda: Loader(corpus, (View(size=16, sensor="planet"),), 8)]
    for make, message in zip(loaders, ("label: landcover is a map", "draw_bands=2 of 1 bands", "sensor 'planet' is not in the corpus")):
        with pytest.raises(UsageError, match=message):
            make()
    with pytest.raises(UsageError, match="did you mean landcover"):
        next(Loader(corpus, (View(size=16),), 8, label="landcovre"))
    for wrong in (dict(bands=("B02",), sensor="s2"), dict(draw_bands=0), dict(draw_bands=1, augment=Augment(band_dropout=(0, 0.5)))):
        with pytest.raises(UsageError, match="^view: "):
            View(**wrong)


def test_an_encoder_has_as_many_channels_as_its_input(corpus: Corpus) -> None:
    cases = [(View(), 14), (View(sensor="s1"), 2), (View(bands=("B02", "VV")), 2), (View(sensor="s2", draw_bands=1), 1)]
    assert [num_channels(view, corpus.bands) for view, _ in cases] == [count for _, count in cases]
    assert band_names(View(sensor="s1"), corpus.bands) == ("VV", "VH")


def _run(corpus: Path, out: Path, method: dict, **more: dict) -> Run:
    return dsengine.train(corpus=str(corpus), out=str(out), device={"gpus": 0}, method=method,
                          train={"max_steps": 2, "batch_size": 16, "precision": "fp32", "log_steps": 1}, **more)


def test_a_run_with_an_encoder_a_sensor_leaves_each_of_them(small_corpus: Path, tmp_path: Path) -> None:
    run = _run(small_corpus, tmp_path / "run", {"name": "simclr", "modalities": ["s2", "s1"]}, encoders={"s1": "resnet34"})
    assert {key: encoder.in_channels for key, encoder in run.encoders.items()} == {"s2": 12, "s1": 2}
    assert len(list(run.encoders["s1"].layer3)) == 6 and len(list(run.encoders["s2"].layer3)) == 2
    encoder, contract = dsengine.load_encoder(run.dir, "s1")
    assert [band.name for band in contract.bands] == ["VV", "VH"] and len(contract.std) == 2
    weights = load_file(next((run.dir / "checkpoints").iterdir()) / "model.safetensors")
    assert torch.equal(encoder.conv1.weight, weights["encoders.s1.conv1.weight"])
    with pytest.raises(UsageError, match="2 encoders; name one: s1, s2"):
        dsengine.load_encoder(run.dir)
    with pytest.raises(UsageError, match="no encoder 's3'"):
        dsengine.load_encoder(run.dir, "s3")


def test_an_encoder_for_an_input_that_the_method_has_not_is_refused(small_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoders.s1: csf has no such input; legal: all"):
        _run(small_corpus, tmp_path / "run", {"name": "csf"}, encoders={"s1": "resnet34"})
    with pytest.raises(UsageError, match="encoders must hold an encoder for each input"):
        _run(small_corpus, tmp_path / "run", {"name": "csf"}, encoders=["resnet34"])


def test_a_picture_that_a_method_returns_is_drawn_and_open_settings_are_kept(small_corpus: Path, tmp_path: Path) -> None:
    import yaml

    assert (_run(small_corpus, tmp_path / "v", {"name": "vae"}).dir / "figures" / "reconstruction.png").stat().st_size > 1000
    run = _run(small_corpus, tmp_path / "s", {"name": "supervised"})
    method = yaml.safe_load((run.dir / "config.yaml").read_text())["method"]
    assert (method["label"], method["kind"]) == ("landcover", "classmap") and method["channels"] >= 4
    assert 0 < run.metrics[-1]["accuracy"] <= 1
