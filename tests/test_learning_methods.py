"""What every method learns, by a linear probe of its frozen features; planted failures; fifty steps on real imagery. See docs/methods.md for results."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from probe import compare  # noqa: E402

import dsengine
from dsengine import cli, plugin
from dsengine.corpus.synth import synthesize

TABLES = {"scarf"}
IMAGES = [name for name in plugin.names("dsengine.methods") if name not in TABLES | {"supervised"}]
SIZE, EPOCHS = 48, 5
SMALL = {"byol": {"hidden": 1024}, "simsiam": {"dim": 512, "hidden": 128}, "csf": {"warmup": 0, "ramp": 2}}
FALLS_SHORT = {"simclr": "3 to 12 epochs: 0.42 to 0.50 right, untrained features 0.44, image statistics 0.64"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("learning") / "corpus", num_patches=2000, size=64)


@pytest.mark.learning
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.xfail(reason=FALLS_SHORT[name])] if name in FALLS_SHORT else []) for name in IMAGES])
def test_features_beat_those_of_an_untrained_encoder_and_image_statistics(corpus: Path, tmp_path: Path, name: str) -> None:
    run = dsengine.train(corpus=str(corpus), out=str(tmp_path / "run"), method={"name": name, **SMALL.get(name, {})}, data={"size": SIZE},
                         train={"epochs": EPOCHS, "batch_size": 64})
    found = compare(str(corpus), run.encoder, size=SIZE)
    print(f"\n{name}: {found}")
    assert not any("alarm" in record for record in run.metrics)
    assert all(found[other][2] > 0 for other in ("random", "statistics")), found


@pytest.mark.learning
def test_supervised_training_raises_the_accuracy_on_what_it_never_saw(corpus: Path, tmp_path: Path) -> None:
    run = dsengine.train(corpus=str(corpus), out=str(tmp_path / "run"), method="supervised", data={"size": SIZE}, train={"epochs": EPOCHS, "batch_size": 64})
    losses = [record["heldout_loss"] for record in run.metrics if "heldout_loss" in record]
    assert losses[-1] < 0.8 * losses[0] and run.metrics[-1]["accuracy"] > 0.5


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
                         train={"epochs": 20, "batch_size": 16, "precision": "fp32", "lr": lr})
    assert any("collapse" in record.get("alarm", "") for record in run.metrics) == alarms


@pytest.fixture(scope="module")
def real(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, out = sample_data / "pairs" / "terramesh", tmp_path_factory.mktemp("real") / "corpus"
    assert cli.main(["corpus", "build", str(out), "--source", "geotiff", "--s2", f"{folder}/S2L2A/*.tif", "--s1", f"{folder}/S1RTC/*.tif",
                     "--label", f"lulc={folder}/LULC/*.tif", "--size", "128", "--stride", "48"]) == 0
    return out


@pytest.mark.learning
@pytest.mark.parametrize("name", [*IMAGES, "supervised"])
def test_fifty_steps_on_real_imagery_leave_finite_losses_and_their_picture(real: Path, tmp_path: Path, name: str) -> None:
    run = dsengine.train(corpus=str(real), out=str(tmp_path / "run"), method={"name": name, **SMALL.get(name, {})}, data={"size": 64},
                         train={"max_steps": 50, "epochs": 1000, "batch_size": 16, "log_steps": 5})
    losses = [record["loss"] for record in run.metrics if "loss" in record]
    assert run.metrics[-1]["step"] == 50 and len(losses) >= 10 and min(losses[-3:]) < losses[0]
    assert (run.dir / "figures" / "loss.png").stat().st_size > 5000
