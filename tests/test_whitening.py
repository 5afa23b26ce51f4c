"""`encoder.whiten`: the map, what it is measured from, and that it is saved with the weights."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from embed_cases import contract  # noqa: E402

import dsengine
from dsengine.engine.pretrained import _saved
from dsengine.errors import UsageError
from dsengine.nn.whitening import Whitening, whitener, without_whitening

ENCODER = {"name": "resnet18", "stem": "imagenet", "whiten": True}


def test_whitened_bands_are_uncorrelated_and_as_wide_as_the_floor_leaves_them() -> None:
    rng = np.random.default_rng(0)
    covariance = np.cov(rng.normal(size=(5, 5)) @ rng.normal(size=(5, 2000)))
    W = whitener(torch.from_numpy(covariance), floor=0.02).numpy()
    widths = np.linalg.eigvalsh(covariance)
    assert np.allclose(W, W.T, atol=1e-12)
    assert np.allclose(np.linalg.eigvalsh(W @ covariance @ W), widths / (widths + 0.02))
    assert np.allclose(W @ covariance @ W, covariance @ np.linalg.inv(covariance + 0.02 * np.eye(5)))


def test_an_encoder_that_whitens_is_one_that_is_shown_whitened_bands() -> None:
    torch.manual_seed(0)
    plain, whitening = dsengine.build_encoder("resnet18", 3).eval(), dsengine.build_encoder("resnet18", 3, whiten=True).eval()
    whitening.load_state_dict(plain.state_dict(), strict=False)
    whitening.whitening.matrix.copy_(torch.tensor([[3.0, -1, -1], [-1, 2, 0], [-1, 0, 2]]))
    x = torch.randn(2, 3, 32, 32)
    shown = torch.einsum("ij,njhw->nihw", whitening.whitening.matrix, x)
    assert torch.allclose(whitening(x).pooled, plain(shown).pooled, atol=1e-5)
    assert not torch.allclose(whitening(x).pooled, plain(x).pooled, atol=1e-2)
    plain.load_state_dict(without_whitening(whitening.state_dict()))  # as other programs read it
    assert torch.allclose(whitening(x).pooled, plain(x).pooled, atol=1e-5)


def test_whitening_computes_in_fp32_under_autocast_because_it_takes_differences_of_large_numbers() -> None:
    layer = Whitening(2)
    layer.matrix.copy_(torch.tensor([[10.0, -10], [-10, 10]]))
    x = torch.tensor([5.0, 4.97]).view(1, 2, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer(x).flatten(), torch.tensor([0.3, -0.3]), atol=1e-4)


def _of_the_training_split(path: Path) -> np.ndarray:
    """(C, C) covariance of the z-scores of pixels that have data, from the stored integers."""
    corpus = dsengine.open_corpus(path)
    rows, contract = corpus.rows("train"), corpus.contract()
    raw = np.concatenate([corpus.read(rows, name) for name in ("s2", "s1")], axis=1).astype(np.float64)
    raw[raw == contract.nodata] = np.nan
    scale, offset, mean, std = (np.array(getattr(contract, name))[:, None, None] for name in ("scale", "offset", "mean", "std"))
    pixels = ((raw * scale + offset - mean) / std).transpose(1, 0, 2, 3).reshape(len(scale), -1)
    return np.cov(pixels[:, ~np.isnan(pixels).any(0)], bias=True)


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_a_run_measures_its_training_split_and_saves_the_map_with_the_weights(small_corpus: Path, tmp_path: Path, name: str) -> None:
    heads = {"hidden": 32, "out": 16}
    run = dsengine.train(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, method={"name": name, **heads}, encoder=ENCODER,
                         data={"size": 32}, train={"max_steps": 1, "batch_size": 16, "precision": "fp32"})
    covariance = _of_the_training_split(small_corpus)
    W = run.encoder.whitening.matrix.double().numpy()
    assert np.allclose(W @ (covariance + 0.01 * np.eye(len(covariance))) @ W, np.eye(len(W)), atol=2e-3)
    loaded, _ = dsengine.load_encoder(run.dir)
    assert torch.equal(loaded.whitening.matrix, run.encoder.whitening.matrix)
    state = load_file(next((run.dir / "checkpoints").glob("step-*/model.safetensors")))
    saved = [value for key, value in state.items() if key.endswith("whitening.matrix")]
    assert len(saved) == (2 if name == "byol" else 1)  # BYOL's target network sees what its online network sees
    assert all(torch.equal(value, run.encoder.whitening.matrix) for value in saved)


def test_an_export_from_before_the_setting_is_one_without_it(tmp_path: Path) -> None:
    encoder = dsengine.build_encoder("resnet18", 3)
    card = {"encoder": {"name": "resnet18", "settings": {"stem": "paper"}}, "contract": contract(("B02", "B03", "B04"), 48).to_json()}
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors", metadata={"dsengine": json.dumps(card)})
    assert _saved(tmp_path, "all").recipe == encoder.recipe


def test_bands_that_are_drawn_for_each_sample_cannot_be_whitened(small_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoder.whiten=true: .*drawn"):
        dsengine.train(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, method={"name": "simclr", "pair": "bands"},
                       encoder={"name": "resnet18", "whiten": True}, train={"max_steps": 1, "batch_size": 16})
