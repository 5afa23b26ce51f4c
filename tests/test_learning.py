"""Training learns: the held-out loss falls and features do not collapse, on synthetic and on real imagery."""

from pathlib import Path

import pytest

import dsengine
from dsengine import cli
from dsengine.corpus.synth import synthesize


def _heldout(metrics: list[dict]) -> list[float]:
    return [record["heldout_loss"] for record in metrics if "heldout_loss" in record]


def test_the_heldout_loss_falls_on_a_small_corpus_and_features_spread(small_corpus: Path, tmp_path: Path) -> None:
    run = dsengine.train(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, method={"warmup": 0, "ramp": 0},
                         train={"epochs": 5, "batch_size": 16, "precision": "fp32"})
    losses = _heldout(run.metrics)
    assert losses[-1] < 0.85 * losses[0]
    # feature_std is the std of L2-normalised features times sqrt(D): 0 is collapse.
    assert all(record["feature_std"] > 0.2 for record in run.metrics)


@pytest.mark.learning
def test_the_default_job_learns(tmp_path: Path) -> None:
    corpus = synthesize(tmp_path / "corpus", num_patches=1024, size=64)
    # Of its 20 epochs of 48 px: a minute each where nothing computes bf16.
    run = dsengine.train(corpus=str(corpus), out=str(tmp_path / "run"), data={"size": 32}, train={"epochs": 9})
    losses = _heldout(run.metrics)
    assert losses[-1] < 0.7 * losses[0] and min(r["feature_std"] for r in run.metrics) > 0.2


@pytest.mark.learning
def test_twenty_epochs_on_real_imagery_learn(sample_data: Path, tmp_path: Path) -> None:
    folder = sample_data / "pairs" / "terramesh"
    build = ["corpus", "build", str(tmp_path / "corpus"), "--source", "geotiff", "--s2", f"{folder}/S2L2A/*.tif", "--s1", f"{folder}/S1RTC/*.tif",
             "--label", f"lulc={folder}/LULC/*.tif", "--size", "128", "--stride", "48"]
    assert cli.main(build) == 0
    run = dsengine.train(corpus=str(tmp_path / "corpus"), out=str(tmp_path / "run"), encoder="resnet18_attn", data={"size": 64},
                         train={"epochs": 20, "checkpoint_steps": 1000})
    losses = _heldout(run.metrics)
    assert losses[-1] < losses[0] and min(r["feature_std"] for r in run.metrics) > 0.2
