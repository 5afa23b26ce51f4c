"""Folded encoders against the encoders they come from, in evaluation mode, with running statistics that are not 0 and 1."""

import pytest
import torch
from torch import nn

from dsengine.encoders import build_encoder
from dsengine.errors import UsageError
from dsengine.nn.fold import folded
from dsengine.nn.norm import GroupedBatchNorm2d


def trained(name: str) -> nn.Module:
    """An encoder in float64 whose norms do something."""
    encoder = build_encoder(name, in_channels=3).double().eval()
    g = torch.Generator().manual_seed(1)
    for layer in encoder.modules():
        if isinstance(layer, GroupedBatchNorm2d):
            for tensor, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight.data, 0.5), (layer.bias.data, -0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=g, dtype=torch.float64) + low)
    return encoder


@pytest.mark.parametrize("name", ["resnet18", "resnet18_attn", "resnet34", "resnet50"])
def test_a_folded_encoder_gives_the_features_of_the_encoder(name: str) -> None:
    encoder = trained(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    found, want = folded(encoder)(x), encoder(x)
    torch.testing.assert_close(found.pooled, want.pooled, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.dense, want.dense, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_no_norm_is_left() -> None:
    layers = folded(trained("resnet18")).modules()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


def test_a_norm_without_its_convolution_is_named() -> None:
    with pytest.raises(UsageError, match="norm 1"):
        folded(nn.Sequential(nn.ReLU(), GroupedBatchNorm2d(3)))
