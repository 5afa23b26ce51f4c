"""Checkpoints: whole or absent, verified when read, and safe to load from strangers."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from dsengine.corpus.schema import Band, Contract
from dsengine.engine import checkpoint, sums
from dsengine.errors import RunError, UsageError

CONTRACT = Contract(bands=(Band("B02", "s2", "s2", 0, 1), Band("VV", "s1", "s1", 0, 1)), units=("reflectance", "dB"), scale=(1e-4, 0.01),
                    offset=(0.0, 0.0), mean=(0.1, -12.0), std=(0.05, 4.0), nodata=-32768, patch_size=32, resolution_m=10.0)


def _parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), 0.1, fused=True)
    module(torch.randn(2, 2, 5, 5)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def _save(run: Path, step: int, keep: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    module, optimizer = _parts()
    checkpoint.save(run, step=step, method=module, optimizer=optimizer, loader={"step": step}, config={"a": 1},
                    contract=CONTRACT, keep=keep)
    return module, optimizer


def test_what_is_restored_equals_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    module, optimizer = _save(tmp_path, 7)
    found, passed = checkpoint.latest(tmp_path)
    assert (found.step, found.loader, found.config, found.contract, passed) == (7, {"step": 7}, {"a": 1}, CONTRACT, [])
    other, fresh = _parts()
    checkpoint.restore(found, other, fresh, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values()))
    for old, new in zip(optimizer.state.values(), fresh.state.values()):
        assert all(torch.equal(old[k], new[k]) for k in old)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        _save(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000010"]


def test_a_save_after_passing_over_damaged_ones_keeps_the_good_and_drops_the_damaged(tmp_path: Path) -> None:
    for step in (60, 70, 80):
        _save(tmp_path, step, keep=3)
    for step in (70, 80):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "state.pt").write_bytes(b"damage")
    _save(tmp_path, 65)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000060", "step-00000065"]
    assert checkpoint.latest(tmp_path)[0].step == 65


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, name: str, damage: str) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    path = tmp_path / "checkpoints" / "step-00000002" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    found, passed = checkpoint.latest(tmp_path)
    assert found.step == 1
    assert len(passed) == 1 and "step-00000002" in passed[0] and "\n" not in passed[0]


@pytest.mark.parametrize("point", ["save_file", "torch.save", "sync", "os.replace"])
def test_a_save_that_dies_anywhere_leaves_the_previous_checkpoint(tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)
    target = {"save_file": (checkpoint, "save_file"), "torch.save": (torch, "save"), "sync": (checkpoint, "sync"), "os.replace": (os, "replace")}

    def die(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*target[point], die)
        with pytest.raises(RunError, match="cannot be written .No space left on device"):
            _save(tmp_path, 2)
    assert checkpoint.latest(tmp_path)[0].step == 1
    _save(tmp_path, 2)
    assert checkpoint.latest(tmp_path)[0].step == 2


def test_a_folder_without_checkpoints_is_refused_by_load_encoder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint under"):
        checkpoint.load_encoder(tmp_path)


def test_a_malicious_optimiser_state_is_not_executed(tmp_path: Path) -> None:
    module, optimizer = _save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / "step-00000001"

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "attacked",))

    torch.save({"x": Attack()}, folder / "state.pt", pickle_module=pickle)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = sums.sha256(folder / "state.pt")
    manifest.pop("manifest_sha256")
    manifest["manifest_sha256"] = sums.digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.restore(checkpoint.read(folder), module, optimizer, torch.device("cpu"))
    assert not (tmp_path / "attacked").exists()
