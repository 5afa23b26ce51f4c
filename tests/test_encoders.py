"""Encoders: the papers' shapes and parameter totals, torchvision's key names, one contract for all."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dsengine
from dsengine import plugin
from dsengine.errors import UsageError

TOTALS = {"resnet18": 11_211_008, "resnet34": 21_319_168, "resnet18_attn": 11_621_570}
EXPECTED = Path(__file__).parent / "expected"


@pytest.mark.parametrize("name", ["resnet18", "resmlp", "temporal"])
@pytest.mark.parametrize("channels", [0, -1])
def test_an_encoder_of_no_bands_is_refused(name: str, channels: int) -> None:
    with pytest.raises(UsageError, match=f"build_encoder: in_channels={channels}: must be 1 or more"):
        dsengine.build_encoder(name, channels)


@pytest.mark.parametrize("name", TOTALS)
def test_trainable_parameters_and_shapes_are_the_papers(name: str) -> None:
    encoder = dsengine.build_encoder(name, in_channels=14)
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == TOTALS[name]
    features = encoder(torch.randn(2, 14, 128, 128))
    assert features.dense.shape == (2, 512, 8, 8)
    assert features.pooled.shape == (2, 512) == (2, encoder.dim)
    assert torch.allclose(features.pooled, features.dense.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("channels, total", [(14, 23_508_032 + 11 * 64 * 49), (3, 23_508_032), (1, 23_508_032 - 2 * 64 * 49)])
def test_resnet50_has_torchvisions_parameters_but_for_the_classifier_and_the_bands(channels: int, total: int) -> None:
    encoder = dsengine.build_encoder("resnet50", in_channels=channels)
    assert sum(p.numel() for p in encoder.parameters()) == total
    features = encoder(torch.randn(2, channels, 64, 64))
    assert features.dense.shape == (2, 2048, 2, 2) and features.pooled.shape == (2, 2048) == (2, encoder.dim)
    assert dsengine.build_encoder("resnet50", in_channels=1, stem="paper")(torch.randn(2, 1, 64, 64)).dense.shape == (2, 2048, 4, 4)


def test_resnet50_is_bottlenecks_written_out() -> None:
    """The definition with torch's own operators from the state dict alone, as torchvision's key names say."""
    encoder = dsengine.build_encoder("resnet50", in_channels=3).double().eval()
    w = encoder.state_dict()

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return F.batch_norm(x, w[f"{key}.running_mean"], w[f"{key}.running_var"], w[f"{key}.weight"], w[f"{key}.bias"])

    x = image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    x = F.max_pool2d(norm(F.conv2d(x, w["conv1.weight"], stride=2, padding=3), "bn1").relu(), 3, 2, 1)
    for layer, blocks, stride in ((1, 3, 1), (2, 4, 2), (3, 6, 2), (4, 3, 2)):
        for block in range(blocks):
            key, step = f"layer{layer}.{block}", stride if block == 0 else 1
            y = norm(F.conv2d(x, w[f"{key}.conv1.weight"]), f"{key}.bn1").relu()
            y = norm(F.conv2d(y, w[f"{key}.conv2.weight"], stride=step, padding=1), f"{key}.bn2").relu()
            y = norm(F.conv2d(y, w[f"{key}.conv3.weight"]), f"{key}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, w[f"{key}.downsample.0.weight"], stride=step), f"{key}.downsample.1")
            x = (x + y).relu()
    torch.testing.assert_close(encoder(image).dense, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", TOTALS)
def test_the_imagenet_stem_halves_maps_and_adds_no_parameter(name: str) -> None:
    encoder = dsengine.build_encoder(name, stem="imagenet")
    assert sum(p.numel() for p in encoder.parameters()) == TOTALS[name]
    assert encoder(torch.randn(2, 14, 64, 64)).dense.shape == (2, 512, 2, 2)


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


SHAPES = {"image": (2, 5, 48, 48), "pixel": (2, 5), "series": (2, 9, 5)}


@pytest.mark.parametrize("name", plugin.names("dsengine.encoders"))
def test_every_encoder_meets_the_contract(name: str) -> None:
    shape = SHAPES[getattr(plugin.find("dsengine.encoders", name), "INPUT", "image")]
    encoder = dsengine.build_encoder(name, in_channels=5)
    features = encoder(torch.randn(shape))
    assert encoder.in_channels == 5
    assert features.pooled.shape == (2, encoder.dim) and features.pooled.dtype == torch.float32
    assert features.dense is None or features.dense.shape[:2] == (2, encoder.dim)
    features.pooled.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    again = dsengine.build_encoder(name, in_channels=5)
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(shape)
    assert torch.equal(again.eval()(x).pooled, encoder.eval()(x).pooled)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(x).pooled.dtype == torch.float32  # a loss is never made of bf16 features


def test_unknown_names_and_settings_list_the_legal_ones() -> None:
    with pytest.raises(UsageError, match="encoder 'resnet81' is unknown; did you mean resnet18.*legal: resmlp, resnet18, resnet18_attn, resnet34, resnet50, temporal"):
        dsengine.build_encoder("resnet81")
    with pytest.raises(UsageError, match="encoder.depth is not a setting.*stem"):
        dsengine.build_encoder("resnet18", depth=3)


@pytest.mark.parametrize("name, last", [("resnet18", "bn2"), ("resnet34", "bn2"), ("resnet18_attn", "bn2"), ("resnet50", "bn3")])
def test_blocks_whose_residual_starts_at_zero_begin_as_their_shortcut_and_differ_in_nothing_else(name: str, last: str) -> None:
    torch.manual_seed(0)
    plain = dsengine.build_encoder(name, 2)
    torch.manual_seed(0)
    zero = dsengine.build_encoder(name, 2, zero_init_residual=True).eval()
    assert zero.recipe["zero_init_residual"] and not plain.recipe["zero_init_residual"]
    ends = {f"{path}.{last}.weight" for path, module in zero.named_modules() if hasattr(module, "downsample")}
    assert len(ends) == len([module for module in zero.modules() if hasattr(module, "downsample")])
    for (key, ours), theirs in zip(zero.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, torch.zeros_like(ours) if key in ends else theirs), key
    x = torch.randn(2, 64, 8, 8)
    block = zero.layer1[0]
    assert torch.equal(block(x), (x if block.downsample is None else block.downsample(x)).relu())
