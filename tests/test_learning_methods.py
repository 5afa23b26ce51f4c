"""What every method learns, by a linear probe of its frozen features; planted failures; fifty steps on real imagery and series. Results: docs/methods.md."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

sys.path.insert(0, str(Path(__file__).parent))
import learning_cases as cases  # noqa: E402
from archives import unpack  # noqa: E402
from learned import learned, learned_from_labels, learned_of_rows  # noqa: E402

import dsengine
from dsengine import cli, plugin
from dsengine.engine.api import Run

IMAGES = [name for name in plugin.names("dsengine.methods") if name not in ("scarf", "supervised")]
SMALL = {"byol": {"hidden": 1024}, "simsiam": {"dim": 512, "hidden": 128}, "csf": {"warmup": 0, "ramp": 2}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.make_corpus(tmp_path_factory.mktemp("learning") / "corpus")


def kept(folder: Path, record: dict) -> dict:
    """The record, left in the test's folder too: a figure that the docs give is then one that a test has held."""
    (folder / f"{record['method']}-seed{record['seed']}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


@pytest.mark.learning
@pytest.mark.parametrize("name", IMAGES)
def test_features_beat_those_of_an_untrained_encoder_and_image_statistics(corpus: Path, tmp_path: Path, name: str) -> None:
    record = kept(tmp_path, learned(corpus, tmp_path / "run", name))
    assert all(record["found"][other][2] > 0 for other in ("random", "statistics")), record["found"]
    assert not record["collapses"]


@pytest.mark.learning
def test_supervised_training_raises_the_accuracy_and_its_corpus_can_tell_networks_from_statistics(corpus: Path, tmp_path: Path) -> None:
    """On places it never saw the method is better than any constant answer. Taught the probe's labels, its encoder clears every floor: else no probe
    meant anything.
    """
    run = dsengine.train(corpus=str(corpus), out=str(tmp_path / "run"), method="supervised", encoder=cases.ENCODER, data={"size": cases.CROP},
                         train={**cases.TRAIN, "epochs": 3, "heldout_samples": 512}, device={"gpus": 0})  # of all of val
    losses = [record["heldout_loss"] for record in run.metrics if "heldout_loss" in record]
    opened = dsengine.open_corpus(corpus)
    _, counts = np.unique(opened.labels["landcover"].oindex[opened.rows("val")], return_counts=True)
    assert losses[-1] < 0.9 * entropy(counts) and losses[-1] < losses[0]  # a constant that knew the classes of val would lose its entropy
    found = kept(tmp_path, learned_from_labels(corpus, tmp_path / "taught"))["found"]
    assert all(found[other][2] > 0.05 for other in ("random", "statistics", "whitened statistics")), found


@pytest.mark.learning
@pytest.mark.parametrize("kind, method", list(cases.TABLES))
def test_features_of_rows_beat_the_numbers_and_an_untrained_encoder(tmp_path: Path, kind: str, method: str) -> None:
    found = kept(tmp_path, learned_of_rows(cases.make_rows(tmp_path / kind, kind, method), tmp_path / "run", kind, method))["found"]
    assert all(found[other][2] > 0 for other in ("random", "numbers")), found


UNSTOPPED = '''
import torch
from dsengine.methods import simsiam
from dsengine.methods.simsiam import Config, inputs
from dsengine.nn.collapse import spread

class Unstopped(simsiam.SimSiam):
    def forward(self, batch):
        pooled = self.encoders["all"](torch.cat(batch.views)).pooled
        z = self.projector(pooled)
        (p1, p2), (z1, z2) = self.predictor(z).chunk(2), z.chunk(2)
        loss = -(simsiam._cosine(p1, z2) + simsiam._cosine(p2, z1)) / 2
        return {"loss": loss, **spread(pooled.detach()), **spread(z.detach(), "projection")}

def build(config, encoders):
    return Unstopped(config, encoders)
'''


@pytest.mark.learning
@pytest.mark.parametrize("name, lr, alarms", [("simsiam", 5e-4, False), ("planted.unstopped", 5e-4, True), ("simsiam", 5e-2, True)])
def test_a_planted_failure_trips_the_collapse_alarm_and_a_sound_run_does_not(
        small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lr: float, alarms: bool) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").touch()
    (tmp_path / "planted" / "unstopped.py").write_text(UNSTOPPED)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = dsengine.train(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, method={"name": name, "dim": 256, "hidden": 64},
                         train={"epochs": 20, "batch_size": 16, "precision": "fp32", "lr": lr, "checkpoint_steps": 1000})
    assert any("collapse" in record.get("alarm", "") for record in run.metrics) == alarms


S2_BANDS = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12"


@pytest.fixture(scope="module")
def real(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TerraMesh, SSL4EO-S12 and BigEarthNet samples in one corpus of 120 px, all bands at 10 m."""
    folder, pairs = tmp_path_factory.mktemp("real"), sample_data / "pairs"
    for archive, into in (("ssl4eo_s12/0000200.tar.gz", "ssl"), ("bigearthnet/BigEarthNet-S2-Example.tar.bz2", "ben"),
                          ("bigearthnet/BigEarthNet-S1-Example.tar.bz2", "ben")):
        unpack(pairs / archive, folder / into)
    mesh = pairs / "terramesh"
    build(folder / "tm", "geotiff", "--s2", f"{mesh}/S2L2A/*.tif", "--s1", f"{mesh}/S1RTC/*.tif", "--size", "120", "--stride", "48")
    build(folder / "ssle", "ssl4eo_s12", "--root", str(folder / "ssl"), "--level", "l2a", "--seasons", "all")
    build(folder / "bene", "bigearthnet", "--root", str(folder / "ben"))
    for name, dropped in (("ssle", ("location", "scene_cloud", "season")), ("bene", ("tile", "land_cover"))):
        words = [word for column in dropped for word in ("--drop", column)]
        assert cli.main(["corpus", "convert", str(folder / name), str(folder / f"{name}120"), "--group", f"s2:1={S2_BANDS}", "--size", "120", *words]) == 0
    assert cli.main(["corpus", "merge", str(folder / "all"), *(str(folder / name) for name in ("tm", "ssle120", "bene120"))]) == 0
    assert cli.main(["corpus", "neighbours", str(folder / "all")]) == 0
    return folder / "all"


def assert_fifty_steps(run: Run) -> None:
    """All losses are finite, one of the last three is below the first, and the curve was drawn."""
    losses = [record["loss"] for record in run.metrics if "loss" in record]
    assert run.metrics[-1]["step"] == 50 and len(losses) >= 10 and np.isfinite(losses).all() and min(losses[-3:]) < losses[0]
    assert (run.dir / "figures" / "loss.png").stat().st_size > 5000


def build(out: Path, source: str, *words: str) -> None:
    assert cli.main(["corpus", "build", str(out), "--source", source, *words]) == 0


@pytest.mark.learning
@pytest.mark.parametrize("name", IMAGES)
def test_fifty_steps_on_real_imagery_leave_finite_losses_and_their_picture(real: Path, tmp_path: Path, name: str) -> None:
    run = dsengine.train(corpus=str(real), out=str(tmp_path / "run"), method={"name": name, **SMALL.get(name, {})}, encoder=cases.ENCODER,
                         data={"size": cases.CROP}, device={"gpus": 0},
                         train={"max_steps": 50, "epochs": 1000, "batch_size": 16, "log_steps": 5, "checkpoint_steps": 50})
    assert_fifty_steps(run)


@pytest.fixture(scope="module")
def real_series(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WorldCereal: the cube's 10,000 pixels in `cube`, 500 points with crops in `points`."""
    folder, samples = tmp_path_factory.mktemp("worldcereal"), sample_data / "timeseries" / "worldcereal"
    for name, file in (("cube", "worldcereal_preprocessed_inputs.nc"), ("points", "test_public_extractions.parquet")):
        build(folder / name, "worldcereal", "--root", str(samples / file))
    return folder


@pytest.mark.learning
@pytest.mark.parametrize("corpus, method", [("cube", {"name": "scarf"}), ("cube", {"name": "simclr", "modalities": ["s2", "s1"]}),
                                            ("points", {"name": "scarf"}), ("points", {"name": "supervised", "label": "crop"})],
                         ids=lambda value: value if isinstance(value, str) else value["name"])
def test_fifty_steps_on_real_series_leave_finite_losses_and_their_picture(real_series: Path, tmp_path: Path, corpus: str, method: dict) -> None:
    run = dsengine.train(corpus=str(real_series / corpus), out=str(tmp_path / "run"), method=method, encoder={"name": "temporal", "preset": "code"},
                         device={"gpus": 0}, train={"max_steps": 50, "epochs": 1000, "batch_size": 64, "lr": 1e-3, "log_steps": 5, "checkpoint_steps": 50})
    assert_fifty_steps(run)
