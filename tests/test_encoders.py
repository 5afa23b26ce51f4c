"""Encoders: the papers' shapes and parameter totals, torchvision's key names, one contract for all."""

from pathlib import Path

import pytest
import torch

import dsengine
from dsengine import plugin
from dsengine.errors import UsageError

TOTALS = {"resnet18": 11_211_008, "resnet34": 21_319_168, "resnet18_attn": 11_621_570}
EXPECTED = Path(__file__).parent / "expected"


@pytest.mark.parametrize("name", TOTALS)
def test_trainable_parameters_and_shapes_are_the_papers(name: str) -> None:
    encoder = dsengine.build_encoder(name, in_channels=14)
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == TOTALS[name]
    features = encoder(torch.randn(2, 14, 128, 128))
    assert features.dense.shape == (2, 512, 8, 8)
    assert features.pooled.shape == (2, 512) == (2, encoder.dim)
    assert torch.allclose(features.pooled, features.dense.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("name, blocks", [("resnet18", 18), ("resnet34", 34), ("resnet18_attn", 18)])
def test_keys_and_shapes_equal_torchvisions(name: str, blocks: int) -> None:
    lines = (EXPECTED / f"torchvision_resnet{blocks}.txt").read_text().splitlines()[1:]
    expected = dict(line.split() for line in lines)
    state = dsengine.build_encoder(name).state_dict()
    ours = {key: "x".join(map(str, value.shape)) or "scalar" for key, value in state.items()
            if key != "conv1.weight" and not key.startswith("attention")}
    assert ours == expected
    assert state["conv1.weight"].shape == (64, 14, 7, 7)


def test_layer1_of_resnet18_has_the_count_the_table_misprints() -> None:
    assert sum(p.numel() for p in dsengine.build_encoder("resnet18").layer1.parameters()) == 147_968


def test_the_attention_encoder_starts_as_the_plain_one() -> None:
    attn, plain = (dsengine.build_encoder(name).double().eval() for name in ("resnet18_attn", "resnet18"))
    plain.load_state_dict(attn.state_dict(), strict=False)
    x = torch.randn(1, 14, 32, 32, dtype=torch.float64)
    assert torch.allclose(attn(x).dense, plain(x).dense, rtol=1e-10, atol=1e-12)


def test_convolutions_are_initialised_by_kaiming_fan_out() -> None:
    weight = dsengine.build_encoder("resnet18").layer4[1].conv2.weight
    assert abs(weight.std().item() / (2 / (512 * 9)) ** 0.5 - 1) < 0.01


@pytest.mark.parametrize("name", plugin.names("dsengine.encoders"))
def test_every_encoder_meets_the_contract(name: str) -> None:
    encoder = dsengine.build_encoder(name, in_channels=5)
    features = encoder(torch.randn(2, 5, 48, 48))
    assert features.pooled.shape == (2, encoder.dim) and features.pooled.dtype == torch.float32
    assert features.dense is None or features.dense.shape[:2] == (2, encoder.dim)
    features.pooled.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    again = dsengine.build_encoder(name, in_channels=5)
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 5, 48, 48)
    assert torch.equal(again.eval()(x).pooled, encoder.eval()(x).pooled)


def test_unknown_names_and_settings_list_the_legal_ones() -> None:
    with pytest.raises(UsageError, match="encoder 'resnet81' is unknown; did you mean resnet18.*legal: resnet18, resnet18_attn, resnet34"):
        dsengine.build_encoder("resnet81")
    with pytest.raises(UsageError, match="encoder.depth is not a setting; there are none"):
        dsengine.build_encoder("resnet18", depth=3)
