"""Public weights: the encoder gives what the published network gives, whatever its layout and bands; what does not fit is named."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from public_resnets import L1C, L2A, features, network, published, save  # noqa: E402

import dsengine
from dsengine.encoders._weights import load_public
from dsengine.errors import UsageError

LAYOUTS = ("torchvision", "torchgeo", "moco", "dino", "torchgeo classification", "torchgeo moco", "torchgeo byol", "torchgeo segmentation")
S12 = (*L2A, "VV", "VH")


@pytest.fixture(scope="module")
def rgb() -> dict[str, Tensor]:
    return network(18, 3, seed=1)


def _forward(encoder: torch.nn.Module, x: Tensor) -> Tensor:
    return encoder.double().eval()(x).dense


def _doubled(w: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in w.items()}


def _expect(w: dict[str, Tensor], x: Tensor, *, depth: int = 18) -> Tensor:
    return features(_doubled(w), x, depth=depth)


def test_the_networks_made_here_have_torchvisions_keys(rgb: dict[str, Tensor]) -> None:
    lines = (Path(__file__).parent / "expected" / "torchvision_resnet18.txt").read_text().splitlines()[1:]
    made = {key: "x".join(map(str, value.shape)) or "scalar" for key, value in rgb.items() if key != "conv1.weight" and not key.startswith("fc.")}
    assert made == dict(line.split() for line in lines)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_features_of_the_network_in_it(layout: str, tmp_path: Path) -> None:
    w, other = network(18, 13, seed=2), network(18, 13, seed=3)
    path = save(published(layout, w, other), tmp_path / "weights.pth")
    encoder = dsengine.build_encoder("resnet18", 13, stem="imagenet")
    said = load_public(encoder, path, L1C)
    x = torch.randn(2, 13, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(_forward(encoder, x), _expect(w, x), rtol=1e-9, atol=1e-9)
    assert f"weights of {path}" in said and "B01, B02" in said and "by name" in said
    left = {"torchvision": "its head fc (2 tensors)", "moco": "encoder_k (122 tensors), queue (1 tensors), queue_ptr", "dino": "head (1 tensors)",
            "torchgeo moco": "backbone_momentum (120 tensors)", "torchgeo segmentation": "criterion (1 tensors)"}
    assert left.get(layout, "") in said


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_ssl4eo_resnet50_of_l1c_reads_l2a_by_the_names_of_bands(suffix: str, tmp_path: Path) -> None:
    w = network(50, 13, seed=4)
    path = save({key: value for key, value in w.items() if not key.startswith("fc.")}, tmp_path / f"moco{suffix}")
    shuffled = tuple(reversed(L2A))  # a corpus may have them in any order
    encoder = dsengine.build_encoder("resnet50", 12, weights=str(path), bands=shuffled)
    x = torch.randn(2, 13, 64, 64, dtype=torch.float64)
    x[:, L1C.index("B10")] = 0
    ours = torch.stack([x[:, L1C.index(band)] for band in shuffled], dim=1)
    torch.testing.assert_close(_forward(encoder, ours), _expect(w, x, depth=50), rtol=1e-9, atol=1e-9)


def test_bands_that_the_file_lacks_take_the_mean_and_all_are_scaled(rgb: dict[str, Tensor], tmp_path: Path) -> None:
    """The file's network, shown what the rule makes of 14 bands, is the encoder shown the 14 bands."""
    path = save(rgb, tmp_path / "imagenet.pth")
    encoder = dsengine.build_encoder("resnet18", 14, stem="imagenet")
    said = load_public(encoder, path, S12)
    x = torch.randn(2, 14, 64, 64, dtype=torch.float64)
    named = [S12.index(band) for band in ("B04", "B03", "B02")]
    rest = x[:, [k for k in range(14) if k not in named]].sum(1, keepdim=True) / 3
    torch.testing.assert_close(_forward(encoder, x), _expect(rgb, (x[:, named] + rest) * 3 / 14), rtol=1e-5, atol=1e-5)  # fp32 means
    assert "B02, B03, B04 by name; B01, B05" in said and "VV, VH as the mean of its 3 channels, all times 3/14" in said
    same = torch.randn(1, 1, 64, 64, dtype=torch.float64)  # an image that is the same in every band
    torch.testing.assert_close(_forward(encoder, same.expand(1, 14, 64, 64)), _expect(rgb, same.expand(1, 3, 64, 64)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels, bands, names", [
    (2, ("VH", "VV"), ("VV", "VH")), (3, ("B02", "B03", "B04"), ("B04", "B03", "B02")), (12, S12[:5], L2A), (13, ("B8A",), L1C)])
def test_a_subset_of_the_files_bands_is_taken_as_it_is(channels: int, bands: tuple, names: tuple, tmp_path: Path) -> None:
    w = network(18, channels, seed=5)
    encoder = dsengine.build_encoder("resnet18", len(bands), weights=str(save(w, tmp_path / "w.pth")), bands=bands, stem="imagenet")
    x = torch.randn(1, len(bands), 64, 64, dtype=torch.float64)
    theirs = torch.zeros(1, channels, 64, 64, dtype=torch.float64)
    for k, band in enumerate(bands):
        theirs[:, names.index(band)] = x[:, k]
    torch.testing.assert_close(_forward(encoder, x), _expect(w, theirs), rtol=1e-9, atol=1e-9)


def test_bands_that_are_drawn_stand_in_for_the_mean(rgb: dict[str, Tensor], tmp_path: Path) -> None:
    encoder = dsengine.build_encoder("resnet18", 1, stem="imagenet")
    load_public(encoder, save(rgb, tmp_path / "w.pth"), None)
    x = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(_forward(encoder, x), _expect(rgb, x.expand(1, 3, 64, 64)), rtol=1e-5, atol=1e-5)


def test_channels_can_be_named_and_must_be_where_their_number_does_not_tell(tmp_path: Path) -> None:
    w = network(18, 9, seed=6)
    path = str(save(w, tmp_path / "nine.pth"))
    satlas = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B11", "B12")
    encoder = dsengine.build_encoder("resnet18", 9, weights=path, weights_bands=satlas, bands=satlas[::-1], stem="imagenet")
    x = torch.randn(1, 9, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(_forward(encoder, x.flip(1)), _expect(w, x), rtol=1e-9, atol=1e-9)
    with pytest.raises(UsageError, match="conv1 has 9 channels, whose bands are not known; name them in encoder.weights_bands.*13: B01"):
        dsengine.build_encoder("resnet18", 9, weights=path, bands=satlas)
    with pytest.raises(UsageError, match="conv1 of .* has 9 channels; legal: as many names, each once"):
        dsengine.build_encoder("resnet18", 9, weights=path, weights_bands=satlas[:8], bands=satlas)


def test_what_a_file_lacks_or_has_besides_is_listed(rgb: dict[str, Tensor], tmp_path: Path) -> None:
    def load(w: dict, **settings) -> None:
        dsengine.build_encoder("resnet18", 3, weights=str(save(w, tmp_path / "w.pth")), bands=("B04", "B03", "B02"), **settings)

    with pytest.raises(UsageError, match="is not this encoder; missing: layer4.1.bn2.bias$"):
        load({key: value for key, value in rgb.items() if key != "layer4.1.bn2.bias"})
    with pytest.raises(UsageError, match="unexpected: layer5.weight$"):
        load({**rgb, "layer5.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"of another shape: layer1.0.bn1.bias \(63,\) \(legal: \(64,\)\)$"):
        load({**rgb, "layer1.0.bn1.bias": torch.zeros(63)})
    with pytest.raises(UsageError, match="not finite: bn1.bias$"):
        load({**rgb, "bn1.bias": torch.full((64,), torch.nan)})
    with pytest.raises(UsageError, match=r"unexpected: .*conv3.weight and 192 more; of another shape: .* and 17 more"):
        load(network(50, 3))
    with pytest.raises(UsageError, match=r"conv1.weight is \(64, 3, 3, 3\); legal: \(64, any, 7, 7\)"):
        load({**rgb, "conv1.weight": torch.zeros(64, 3, 3, 3)})


def test_files_without_counts_of_batches_are_read(rgb: dict[str, Tensor], tmp_path: Path) -> None:
    old = {key: value for key, value in rgb.items() if not key.endswith("num_batches_tracked")}
    encoder = dsengine.build_encoder("resnet18", 3, weights=str(save(old, tmp_path / "w.pth")), bands=("B04", "B03", "B02"), stem="imagenet")
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(_forward(encoder, x), _expect(rgb, x), rtol=1e-9, atol=1e-9)


def test_attention_blocks_stay_the_identity_that_they_start_as_and_a_missing_pool_is_said(rgb: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(rgb, tmp_path / "w.pth")
    encoder = dsengine.build_encoder("resnet18_attn", 3, stem="imagenet")
    said = load_public(encoder, path, ("B04", "B03", "B02"))
    assert "as initialised: attention3, attention4" in said and "max-pool" not in said
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(_forward(encoder, x), _expect(rgb, x), rtol=1e-9, atol=1e-9)
    assert "max-pool that this encoder has not (encoder.stem=imagenet" in load_public(dsengine.build_encoder("resnet18", 3), path, ("B04", "B03", "B02"))


class _Harmful:
    """An object whose unpickling would run a program."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/dsengine_harm"),))


def test_files_that_are_no_network_are_refused_with_what_is_legal(rgb: dict[str, Tensor], tmp_path: Path) -> None:
    def refused(found: object, message: str, name: str = "w.pth") -> None:
        path = tmp_path / name
        path.write_bytes(found) if isinstance(found, bytes) else torch.save(found, path)
        with pytest.raises(UsageError, match=message):
            dsengine.build_encoder("resnet18", 3, weights=str(path), bands=("B04", "B03", "B02"))

    refused({"encoder.0.weight": torch.zeros(1)}, r"no ResNet in a known layout; its keys begin encoder.0.weight; legal: conv1.weight \(torchvision")
    refused({"epoch": 3}, "no ResNet in a known layout; its keys begin with no tensor")
    refused([torch.zeros(1)], "holds a list; legal: a state dict")
    refused({"state_dict": _Harmful()}, "not readable as tensors alone")
    refused(b"no weights at all", "not readable as tensors alone")
    refused(b"no weights at all", "not readable as tensors alone", "w.safetensors")
    assert not Path("/tmp/dsengine_harm").exists()
    with pytest.raises(UsageError, match="no such file; legal: a state dict"):
        dsengine.build_encoder("resnet18", 3, weights=str(tmp_path / "none.pth"), bands=("B04", "B03", "B02"))
    with pytest.raises(UsageError, match="is a folder; legal: a file, or dsengine.load_encoder"):
        dsengine.build_encoder("resnet18", 3, weights=str(tmp_path))
    path = str(save(rgb, tmp_path / "rgb.pth"))
    with pytest.raises(UsageError, match=r"fitted by band; legal: bands=\[...\] with 3 names"):
        dsengine.build_encoder("resnet18", 3, weights=path)
    from safetensors.torch import save_file

    save_file(rgb, tmp_path / "ours.safetensors", metadata={"dsengine": "{}"})
    with pytest.raises(UsageError, match="has a contract of its own; legal: dsengine.load_encoder"):
        dsengine.build_encoder("resnet18", 3, weights=str(tmp_path / "ours.safetensors"), bands=("B04", "B03", "B02"))
    with pytest.raises(UsageError, match="public weights are of ResNets; legal: a run folder of ResMLP"):
        dsengine.build_encoder("resmlp", 3, weights=path, bands=("B04", "B03", "B02"))


def test_a_network_shown_reflectance_gives_the_same_stem_from_z_scores(tmp_path: Path) -> None:
    w = network(18, 13, seed=7)
    g = torch.Generator().manual_seed(8)
    mean, std = torch.rand(12, generator=g) + 0.1, torch.rand(12, generator=g) + 0.05
    encoder = dsengine.build_encoder("resnet18", 12, stem="imagenet")
    said = load_public(encoder, save(w, tmp_path / "w.pth"), L2A, statistics=(mean.tolist(), std.tolist()))
    assert said.count("shown physical values") == 1
    z = torch.randn(1, 12, 32, 32, generator=g)
    physical = torch.zeros(1, 13, 32, 32)
    physical[:, [L1C.index(band) for band in L2A]] = z * std[None, :, None, None] + mean[None, :, None, None]
    encoder.eval()
    ours = encoder.bn1(encoder.conv1(z))
    theirs = torch.nn.functional.conv2d(physical, w["conv1.weight"], stride=2, padding=3)
    theirs = torch.nn.functional.batch_norm(theirs, w["bn1.running_mean"], w["bn1.running_var"], w["bn1.weight"], w["bn1.bias"])
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-4)  # inside the padding
    with pytest.raises(UsageError, match="weights_input=physical: .* has no VV, VH, whose units"):
        load_public(dsengine.build_encoder("resnet18", 14), tmp_path / "w.pth", S12, statistics=([0.0] * 14, [1.0] * 14))
