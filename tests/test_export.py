"""Exported encoders: each form gives the features of the run's encoder and its contract, in other people's software too."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from embed_cases import Looking, contract, numbers, write  # noqa: E402
from public_resnets import features, network  # noqa: E402

import dsengine
from dsengine import cli
from dsengine.encoders import build_encoder
from dsengine.engine import checkpoint
from dsengine.errors import RunError, UsageError
from dsengine.export import encoder as exporting
from dsengine.export.load import load_encoder
from dsengine.export.timm_form import config

BANDS = ("B02", "B03", "B04")
EXPORT_FLAGS = {"--help", "--run", "--encoder", "--out", "--formats"}
EMBED_FLAGS = {"--help", "--run", "--encoder", "--corpus", "--raster", "--out", "--pooled", "--dense", "--dtype", "--window", "--bands", "--s2-offset",
               "--where", "--device", "--map", "--nearest", "--top", "--min-km"}


class Wrapped(nn.Module):
    """As a method holds its encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"all": encoder})


def as_trained(encoder: nn.Module) -> nn.Module:
    """Norms and attention that do something."""
    g = torch.Generator().manual_seed(1)
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        if "bn" in name or "downsample.1" in name:
            if tensor.is_floating_point():
                tensor.data.copy_(torch.rand(tensor.shape, generator=g) + (0.5 if name.endswith(("var", "weight")) else -0.5))
        if name.endswith("gamma"):
            tensor.data.fill_(0.3)
    return encoder.eval()


def make_run(folder: Path, name: str, **settings: str) -> tuple[Path, nn.Module]:
    """A run folder with one checkpoint of a fresh encoder of three bands."""
    encoder = as_trained(build_encoder(name, 3, **settings))
    method = Wrapped(encoder)
    checkpoint.save(folder, step=1, method=method, optimizer=torch.optim.SGD(method.parameters(), lr=0.1), loader={"step": 1},
                    config={"encoder": {"name": name, **settings}}, contract=contract(BANDS, 48), keep=2)
    return folder, encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A ResNet18 with attention: all that our networks compute."""
    return make_run(tmp_path_factory.mktemp("run"), "resnet18_attn")


@pytest.fixture(scope="module")
def exported(run: tuple[Path, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dsengine.export_encoder(run[0], tmp_path_factory.mktemp("exported") / "all")


def difference(encoder: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest over the largest feature."""
    x = torch.randn(shape)
    with torch.no_grad():
        want, found = encoder(x), other(x)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(want, found, strict=True))


@pytest.mark.parametrize("file", ["", "encoder.safetensors", "encoder.pt2", "encoder.onnx"])
def test_every_form_is_read_back_with_its_features_and_contract(run: tuple[Path, nn.Module], exported: Path, file: str) -> None:
    if file == "encoder.onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
    encoder, stated = dsengine.load_encoder(exported / file)
    assert stated == contract(BANDS, 48) and encoder.in_channels == 3 and not encoder.training
    for shape in [(1, 3, 48, 48), (5, 3, 48, 48), (2, 3, 33, 70)]:  # batches and sizes that nothing was traced with
        assert difference(run[1], encoder, shape) < 1e-4
    mine = dsengine.load_encoder(run[0])
    assert mine[1] == stated and difference(run[1], mine[0], (1, 3, 48, 48)) == 0


def test_the_onnx_file_is_valid_states_its_opset_and_runs_without_us(run: tuple[Path, nn.Module], exported: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
    model = onnx.load(exported / "encoder.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == exporting.OPSET == 18
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["dsengine"])["contract"]["bands"][1]["name"] == "B03"
    x = torch.randn(4, 3, 48, 48)
    pooled, dense = runtime.InferenceSession(exported / "encoder.onnx", providers=["CPUExecutionProvider"]).run(["pooled", "dense"], {"x": x.numpy()})
    with torch.no_grad():
        want = run[1](x)
    assert np.abs(pooled - want.pooled.numpy()).max() < 1e-4 * float(want.pooled.abs().max())
    assert np.abs(dense - want.dense.numpy()).max() < 1e-4 * float(want.dense.abs().max())


def test_weights_with_torchvisions_names_come_out_with_torchvisions_names(tmp_path: Path) -> None:
    depth = 18
    public = {key: value for key, value in network(depth, 3).items() if not key.startswith("fc.")}
    encoder = build_encoder(f"resnet{depth}", 3, stem="imagenet").eval()
    encoder.load_state_dict(public)
    card = exporting.make_card(encoder, contract(BANDS, 48), {"name": "all", "encoder": {"name": f"resnet{depth}", "settings": {"stem": "imagenet"}}})
    exporting.write_safetensors(encoder, card, tmp_path)
    weights = load_file(tmp_path / "encoder.safetensors")
    assert set(weights) == set(public)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():  # the network as torch's own operators, fed with the file
        torch.testing.assert_close(load_encoder(tmp_path)[0](x).dense, features(weights, x, depth=depth), rtol=1e-4, atol=1e-4)


def test_timm_reads_the_folder(tmp_path: Path) -> None:
    folder, encoder = make_run(tmp_path / "run", "resnet18", stem="imagenet")
    out = dsengine.export_encoder(folder, tmp_path / "out", formats=["timm"])
    described = json.loads((out / "config.json").read_text())
    assert described["architecture"] == "resnet18" and described["model_args"] == {"in_chans": 3, "num_classes": 0}
    assert set(load_file(out / "model.safetensors")) == set(encoder.state_dict())
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), encoder(x).pooled, rtol=1e-4, atol=1e-4)


def test_an_encoder_that_timm_lacks_is_not_passed_off_as_one_of_its_own(run: tuple[Path, nn.Module], exported: Path, tmp_path: Path) -> None:
    assert not (exported / "config.json").exists()
    with pytest.raises(UsageError, match="not a network of timm; legal: resnet18"):
        dsengine.export_encoder(run[0], tmp_path / "out", formats=["timm"])
    assert list(tmp_path.iterdir()) == []
    card = {"in_channels": 3, "patch_size": 48, "dim": 512, "encoder": {"name": "resnet18", "settings": {}}}
    assert config("resnet18", card)["pretrained_cfg"]["first_conv"] is None


def test_a_program_embeds_rasters_of_any_size(tmp_path: Path) -> None:
    encoder = Looking(3).eval()
    card = exporting.make_card(encoder, contract(BANDS), {"name": "all", "encoder": {"name": "of.my.own", "settings": {}}})
    exporting.write_program(encoder, card, tmp_path, exporting.traced(encoder, card))
    raster = write(tmp_path / "a.tif", numbers(90, 140, bands=BANDS), bands=BANDS)
    import zarr

    found = [zarr.open_group(dsengine.embed(model, raster, tmp_path / f"{k}.zarr", s2_offset="0")[0])["embedding"][...]
             for k, model in enumerate([(encoder, contract(BANDS)), tmp_path / "encoder.pt2"])]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_damaged_and_foreign_files_are_told_apart(exported: Path, tmp_path: Path) -> None:
    for name in ("encoder.safetensors", "encoder.pt2", "encoder.onnx"):
        if name == "encoder.onnx" and not (exported / name).exists():
            continue
        (tmp_path / name).write_bytes((exported / name).read_bytes()[:5000])
        with pytest.raises(RunError, match=name):
            load_encoder(tmp_path / name)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="carries no contract"):
        load_encoder(tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="no such file"):
        load_encoder(tmp_path / "gone.onnx")
    with pytest.raises(UsageError, match="holds encoder 'all'; legal: that name"):
        load_encoder(exported, "s2")
    with pytest.raises(UsageError, match="no checkpoint"):
        load_encoder(tmp_path / "empty")


def test_the_command_writes_a_new_folder_or_nothing(run: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert cli.main(["export", "--run", str(run[0]), "--out", str(out), "--formats", "safetensors"]) == 0
    assert capsys.readouterr().out.split() == [str(out / "contract.json"), str(out / "encoder.safetensors")]
    for argv, words in [([], "exists; legal: a new name"), (["--formats", "onxx"], "did you mean onnx?")]:
        target = out if not argv else tmp_path / "new"
        assert cli.main(["export", "--run", str(run[0]), "--out", str(target), *argv]) == 2
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert dsengine.export_encoder(out, tmp_path / "again", formats=["safetensors"]).exists()  # from what was exported


@pytest.mark.parametrize("name, flags", [("embed", EMBED_FLAGS), ("export", EXPORT_FLAGS)])
def test_the_flags_do_not_grow(name: str, flags: set[str]) -> None:
    commands = next(a for a in cli.build_parser([])._actions if hasattr(a, "choices") and a.choices).choices
    assert set(commands[name].all_flags()) == flags


def test_the_example_of_the_page_runs_as_it_is_printed(run: tuple[Path, nn.Module], exported: Path, checkout: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (checkout / "docs" / "embed.md").read_text(), flags=re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(run[0])
    (tmp_path / "exported").symlink_to(exported)
    write(tmp_path / "T32TMS" / "place.tif", numbers(96, 250, bands=BANDS), bands=BANDS)
    found: dict = {}
    exec(code.replace("(7.44, 46.95)", "(-106.17, 40.64)").replace('"T32TMS.zarr")', '"T32TMS.zarr", s2_offset="0")'), found)  # noqa: S102: our own page
    assert len(found["similar"].id) == 5 and found["similar"].km.min() >= 1.0 and found["contract"] == contract(BANDS, 48)
