"""Every method with every encoder of its kind, at 32 px: a finite loss, a gradient everywhere, and the same loss from the same state."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import METHODS, ROWS, TABLES, input_of, make, make_batch, make_table  # noqa: E402

import dsengine
from dsengine import plugin
from dsengine.nn.heads import Decoder
from dsengine.nn.norm import set_groups

ENCODERS = plugin.names("dsengine.encoders")
PAIRS = [(method, encoder) for method in METHODS for encoder in ENCODERS
         if (method not in ROWS if input_of(encoder) == "image" else method in TABLES)]


@pytest.mark.parametrize("name, encoder", PAIRS)
def test_a_method_trains_every_parameter_of_every_encoder_it_accepts(name: str, encoder: str) -> None:
    is_image = input_of(encoder) == "image"
    methods = [make(name, dsengine.build_encoder(encoder, 14)) if is_image else make_table(name, encoder, small=False) for _ in range(2)]
    for key, p in methods[0].named_parameters():
        if key.endswith("gamma"):
            p.data.fill_(0.3)  # at 0 an attention block has no gradient inside
    methods[1].load_state_dict(methods[0].state_dict(), strict=True)
    for method in methods:
        set_groups(method, 2, 4)
    batch = make_batch(methods[0], 4, size=32)
    first, second = (method(batch)["loss"] for method in methods)
    assert torch.isfinite(first) and torch.equal(first, second)
    first.backward()
    without = [key for key, p in methods[0].named_parameters() if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())]
    assert not without
    still = [key for key, p in methods[0].named_parameters() if p.requires_grad and p.grad.abs().max() == 0]
    assert not [key for key in still if "attention" not in key or "key.bias" not in key]
    for key, value in methods[0].state_dict().items():
        if key.endswith("running_mean") and not key.startswith("target"):
            assert value.abs().max() > 0, key


def _trainable(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def test_parameters_are_those_of_the_papers() -> None:
    encoder = dsengine.build_encoder("resnet18", 14)
    assert _trainable(encoder) == 11_211_008
    assert _trainable(Decoder(512, 7)) == 2_266_631
    vae = dsengine.build_method("vae", encoder=encoder)
    assert _trainable(vae) - _trainable(encoder) == 2_365_806
    simsiam = dsengine.build_method("simsiam", encoder=encoder)
    projector = 512 * 2048 + 2 * 2048 + 2048**2 + 2 * 2048 + 2048**2  # the last BatchNorm has no weights
    assert _trainable(simsiam.projector, simsiam.predictor) == projector + 2048 * 512 + 2 * 512 + 512 * 2048 + 2048
    byol = dsengine.build_method("byol", encoder=encoder)
    assert _trainable(byol.projector, byol.predictor) == sum(wide * 4096 + 2 * 4096 + 4096 * 256 + 256 for wide in (512, 256))
    assert _trainable(byol) == _trainable(encoder, byol.projector, byol.predictor)  # the target is not trained
    for name in ("simclr", "scarf"):
        method = dsengine.build_method(name, encoder=encoder)
        assert _trainable(method) - _trainable(encoder) == 512 * 256 + 2 * 256 + 256 * 256 + 256
    supervised = dsengine.build_method("supervised", encoder=encoder, preset="parity", label="landcover", kind="classmap")
    assert _trainable(supervised.head) == 2_266_631


def test_the_vae_of_the_paper_has_a_latent_of_64_by_8_by_8_and_draws_all_bands() -> None:
    vae = dsengine.build_method("vae", encoder=dsengine.build_encoder("resnet18", 14))
    dense = torch.zeros(1, 512, 8, 8)
    assert vae.mean(dense).shape == (1, 64, 8, 8) == vae.log_variance(dense).shape
    assert vae.decoder(vae.widen(vae.mean(dense))).shape == (1, 14, 128, 128)
    shapes = []
    for block in vae.decoder.blocks:
        block.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[1:])))
    vae.decoder(dense)
    assert shapes == [(256, 16, 16), (128, 32, 32), (64, 64, 64), (32, 128, 128)]  # Table 8 prints other shapes
