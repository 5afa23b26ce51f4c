"""Configuration: layers, types, round trip, and errors that name the nearest legal key."""

import re
from pathlib import Path

import pytest
import yaml

from dsengine import config as configuration
from dsengine.config import assignment, dump, merge, resolve, to_yaml
from dsengine.errors import UsageError


def test_defaults_are_the_papers() -> None:
    config = resolve({})
    assert (config.method, config.encoder) == ("csf", "resnet18")
    assert (config.train.epochs, config.train.lr) == (20, 5e-4)
    assert (config.method_config.warmup, config.method_config.ramp) == (5, 10)


def test_later_layers_win_key_by_key() -> None:
    merged = merge({"train": {"lr": 1.0, "epochs": 3}, "method": "csf"}, {"train": {"lr": 2.0}}, {"method": {"margin": 0.5}})
    assert merged == {"train": {"lr": 2.0, "epochs": 3}, "method": {"name": "csf", "margin": 0.5}}


def test_what_is_dumped_resolves_to_the_same_configuration(tmp_path: Path) -> None:
    config = resolve(merge(assignment("method.shift_px=[2, 8]"), assignment("train.lr=1e-3"), {"corpus": "x"}))
    assert resolve(dump(config)) == config
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert resolve(configuration.load_file(path)) == config
    assert set(yaml.safe_load(path.read_text())) == {"corpus", "out", "method", "encoder", "train", "data", "device"}


@pytest.mark.parametrize("text, path, value", [
    ("train.lr=1e-3", ("train", "lr"), 1e-3), ("train.epochs=7", ("train", "epochs"), 7), ("train.lr=1", ("train", "lr"), 1.0),
    ("train.max_steps=null", ("train", "max_steps"), None), ("train.max_steps=3", ("train", "max_steps"), 3),
    ("method.per_cell=true", ("method_config", "per_cell"), True), ("train.precision=fp64", ("train", "precision"), "fp64"),
    ("method.band_dropout=[0, 0.5]", ("method_config", "band_dropout"), (0.0, 0.5)),
])
def test_set_values_are_typed(text: str, path: tuple[str, str], value: object) -> None:
    got = getattr(getattr(resolve(assignment(text)), path[0]), path[1])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text, message", [
    ("train.learning_rate=1", "train.learning_rate is not a setting"),
    ("train.epoch=1", "did you mean epochs"),
    ("epochs=3", "epochs is not a setting; did you mean train.epochs"),
    ("method.marign=1", "method.marign is not a setting; did you mean margin"),
    ("train.epochs=many", "train.epochs must be int, got 'many'"),
    ("train.epochs=1.5", "train.epochs must be int, got 1.5"),
    ("train.epochs=true", "train.epochs must be int, got True"),
    ("train.precision=fp8", "train.precision='fp8' is not legal; did you mean fp64, fp32, fp16? legal: auto"),
    ("method.shift_px=3", "method.shift_px must be 2 values"),
    ("method.name=csv", "method 'csv' is unknown; did you mean csf"),
    ("encoder.name=resnet19", "encoder 'resnet19' is unknown"),
    ("train=3", "train must hold settings"),
    ("train.lr", "--set train.lr: must be dotted.key=value"),
])
def test_bad_settings_name_the_key_and_what_is_legal(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve(assignment(text))


@pytest.mark.parametrize("content, message", [(None, "no such file"), ("a: [", "not readable YAML"), ("- 1", "must hold `key: value` lines"),
                                              ("!!python/object/apply:os.system ['true']", "not readable YAML")])
def test_a_bad_config_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        configuration.load_file(path)


def test_a_plugin_outside_the_package_is_found_by_its_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_encoder.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True, kw_only=True)\nclass Config:\n    depth: int = 2\n"
        "def build(config, in_channels):\n    return (config.depth, in_channels)\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.py").write_text((tmp_path / "my_encoder.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    config = resolve({"encoder": {"name": "pack.mine", "depth": "3"}})
    assert config.encoder_config.depth == 3
    with pytest.raises(UsageError, match="no module of that path"):
        resolve({"encoder": "pack.yours"})


def test_an_input_that_names_no_encoder_has_the_runs_with_its_own_settings_over_it() -> None:
    config = resolve({"encoder": {"name": "resnet50", "stem": "paper"}, "encoders": {"s2": {"weights": "FILE"}, "s1": {"name": "resnet34"}}})
    (name, own), (other, plain) = config.encoder_of("s2"), config.encoder_of("s1")
    assert (name, own.stem, own.weights) == ("resnet50", "paper", "FILE")
    assert (other, plain.stem) == ("resnet34", "paper") and plain.weights is None
    assert resolve(dump(config)) == config
    assert resolve({"encoder": "resnet34", "encoders": {"s2": {"weights": "FILE"}}}).encoder_of("s2")[0] == "resnet34"
