"""Runs that begin with weights that exist: public ones by band, those of another run by its contract, and what is refused."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from public_resnets import L1C, network, save  # noqa: E402

import dsengine
from dsengine import config as configuration
from dsengine.corpus import Corpus
from dsengine.engine import pretrained
from dsengine.engine.train import fresh_method
from dsengine.errors import UsageError

TRAIN = {"max_steps": 1, "batch_size": 8, "precision": "fp32", "log_steps": 1, "heldout_samples": 2}


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return dsengine.open_corpus(small_corpus)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """SSL4EO-S12's file of a ResNet18 over the 13 bands of L1C, made here."""
    w = network(18, 13, seed=1)
    return save({"state_dict": {f"module.encoder_q.{key}": value for key, value in w.items()}}, tmp_path_factory.mktemp("public") / "moco.pth"), w


@pytest.fixture(scope="module")
def finished(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an encoder for each sensor."""
    out = tmp_path_factory.mktemp("finished") / "run"
    dsengine.train(corpus=str(small_corpus), out=str(out), device={"gpus": 0}, method={"name": "simclr", "modalities": ["s2", "s1"]},
                   encoder={"name": "resnet18", "stem": "imagenet"}, train=TRAIN)
    return out


def _method(corpus: Corpus, method: dict | str, *, encoder: dict, encoders: dict | None = None) -> torch.nn.Module:
    settings = {"method": method, "encoder": {"name": "resnet18", **encoder}, **({"encoders": encoders} if encoders else {})}
    return fresh_method(configuration.resolve(settings), corpus.bands, contract=corpus.contract())


def test_a_method_begins_with_the_files_weights_and_so_does_its_target(corpus: Corpus, public: tuple[Path, dict]) -> None:
    path, w = public
    method = _method(corpus, "byol", encoder={"weights": str(path)})
    encoder = method.encoders["all"]
    assert torch.equal(encoder.layer3[1].conv2.weight, w["layer3.1.conv2.weight"])
    b02 = [band.name for band in corpus.bands].index("B02")
    assert torch.allclose(encoder.conv1.weight[:, b02], w["conv1.weight"][:, L1C.index("B02")] * 13 / 14)  # VV, VH are not in the file
    target = {key: value for key, value in method.state_dict().items() if key.startswith("target") and key.endswith("layer3.1.conv2.weight")}
    assert len(target) == 1 and torch.equal(*target.values(), w["layer3.1.conv2.weight"])
    assert "MoCo, SSL4EO-S12" in encoder.origin and "VV, VH as the mean of its 13 channels, all times 13/14" in encoder.origin


def test_one_of_several_encoders_can_begin_with_weights(corpus: Corpus, public: tuple[Path, dict]) -> None:
    path, w = public
    method = _method(corpus, {"name": "simclr", "modalities": ["s2", "s1"]}, encoder={}, encoders={"s2": {"name": "resnet18", "weights": str(path)}})
    assert torch.equal(method.encoders["s2"].conv1.weight[:, 0], w["conv1.weight"][:, 0])  # every band of S2 is in the file: nothing is scaled
    assert method.encoders["s1"].origin == "" and not torch.equal(method.encoders["s1"].bn1.running_mean, w["bn1.running_mean"])


def test_a_network_of_reflectance_takes_the_corpuss_statistics(corpus: Corpus, public: tuple[Path, dict]) -> None:
    path, w = public
    s2 = {"name": "simclr", "modalities": ["s2", "s1"]}
    own = {"s2": {"name": "resnet18", "weights": str(path), "weights_input": "physical"}}
    conv1 = _method(corpus, s2, encoder={}, encoders=own).encoders["s2"].conv1.weight
    std = corpus.contract().std[0]
    assert corpus.bands[0].name == "B01" and torch.allclose(conv1[:, 0], w["conv1.weight"][:, 0] * std)
    with pytest.raises(UsageError, match="weights_input=physical: .* has no VV, VH"):
        _method(corpus, "csf", encoder={"weights": str(path), "weights_input": "physical"})
    with pytest.raises(UsageError, match="bands drawn anew for each sample; legal: zscore"):
        _method(corpus, {"name": "byol", "pair": "bands"}, encoder={"weights": str(path), "weights_input": "physical"})


def test_a_run_says_where_its_weights_come_from_and_needs_the_file_only_once(small_corpus: Path, public: tuple[Path, dict], tmp_path: Path,
                                                                             capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "moco.pth"
    shutil.copy(public[0], path)
    settings = dict(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, method="csf")
    dsengine.train(**settings, encoder={"name": "resnet18", "weights": str(path)}, train=TRAIN)
    assert f"encoder all: weights of {path} (MoCo, SSL4EO-S12); conv1: B01" in capsys.readouterr().err
    path.unlink()
    run = dsengine.train(resume=True, out=str(tmp_path / "run"), train={"max_steps": 2})
    assert run.encoder.recipe == {"name": "resnet18", "stem": "paper", "whiten": False, "zero_init_residual": False} and "weights of" not in capsys.readouterr().err
    with pytest.raises(UsageError, match="moco.pth: no such file"):
        dsengine.train(**{**settings, "out": str(tmp_path / "again")}, encoder={"name": "resnet18", "weights": str(path)}, train=TRAIN)
    assert not (tmp_path / "again").exists()


def test_a_run_begins_with_the_encoder_of_another(corpus: Corpus, finished: Path) -> None:
    s1, _ = dsengine.load_encoder(finished, "s1")
    method = _method(corpus, {"name": "simclr", "modalities": ["s1", "s2"]}, encoder={"stem": "imagenet", "weights": str(finished)})
    assert all(torch.equal(value, s1.state_dict()[key]) for key, value in method.encoders["s1"].state_dict().items())
    assert method.encoders["s1"].origin == f"weights of the run {finished}, shown VV, VH"


@pytest.mark.parametrize("inside", ["", "encoder.safetensors"])
def test_a_run_begins_with_an_exported_encoder(corpus: Corpus, finished: Path, tmp_path: Path, inside: str) -> None:
    folder = dsengine.export_encoder(finished, tmp_path / "export", name="s2", formats=["safetensors"])
    own = {"s2": {"name": "resnet18", "stem": "imagenet", "weights": str(folder / inside)}}
    method = _method(corpus, {"name": "simclr", "modalities": ["s2", "s1"]}, encoder={}, encoders=own)
    s2, _ = dsengine.load_encoder(finished, "s2")
    assert all(torch.equal(value, s2.state_dict()[key]) for key, value in method.encoders["s2"].state_dict().items())
    with pytest.raises(UsageError, match="was shown bands B01, .*; this run shows B01, .*, VV, VH"):
        _method(corpus, "csf", encoder={"stem": "imagenet", "weights": str(folder / inside)})


def test_a_run_of_other_bands_units_or_encoders_is_refused(corpus: Corpus, finished: Path) -> None:
    pair = {"name": "simclr", "modalities": ["s2", "s1"]}
    with pytest.raises(UsageError, match="no encoder 'all'"):
        _method(corpus, "csf", encoder={"stem": "imagenet", "weights": str(finished)})
    with pytest.raises(UsageError, match=r"its encoder is another one: stem imagenet \(legal: paper\)$"):
        _method(corpus, pair, encoder={"weights": str(finished)})
    with pytest.raises(UsageError, match=r"another one: name resnet18 \(legal: resnet34\), layer1.2.conv1.weight None \(legal: .* more$"):
        _method(corpus, pair, encoder={}, encoders={"s1": {"name": "resnet34", "stem": "imagenet", "weights": str(finished)}})
    with pytest.raises(UsageError, match="has a contract that says what it was shown; legal: neither"):
        _method(corpus, pair, encoder={"weights": str(finished), "weights_bands": ["VV", "VH"]})
    encoder = dsengine.build_encoder("resnet18", 2, stem="imagenet")
    settings = configuration.resolve({"encoder": {"name": "resnet18", "stem": "imagenet", "weights": str(finished)}}).encoder_config
    contract = corpus.contract()
    with pytest.raises(UsageError, match="was shown bands VV, VH; this run shows VH, VV; legal: the same, in the same order"):
        pretrained.start(encoder, settings, contract, key="s1", numbers=[13, 12])
    with pytest.raises(UsageError, match="was shown units dB, dB; this run shows linear, linear"):
        pretrained.start(encoder, settings, replace(contract, units=("linear",) * 14), key="s1", numbers=[12, 13])
    said = pretrained.start(encoder, settings, replace(contract, resolution_m=20.0), key="s1", numbers=[12, 13])
    assert said.endswith("shown VV, VH; at 10 m a pixel, here 20 m")
