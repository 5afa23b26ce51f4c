"""A run's configuration: defaults < `--config FILE` < flags < `--set dotted.key=value`, typed and complete.

Settings travel as a nested dict until `resolve` turns them into frozen dataclasses; `dump` is its inverse, and what it
writes can be given back with `--config`.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from dsengine import plugin, typed
from dsengine.engine.settings import DataConfig, DeviceConfig, TrainConfig
from dsengine.errors import UsageError, nearest

_SECTIONS = {"train": TrainConfig, "data": DataConfig, "device": DeviceConfig}
_PLUGINS = {"method": "dsengine.methods", "encoder": "dsengine.encoders"}
_PATHS = ("corpus", "out")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run."""

    corpus: str | None  # a corpus folder; None: the small synthetic one, made once in the user's cache
    out: str | None  # the run folder; None: a new one under ./runs
    method: str
    method_config: Any  # the method's own frozen Config
    encoder: str
    encoder_config: Any
    encoders: dict[str, tuple[str, Any]]  # (name, Config) of the method's inputs that have an encoder of their own kind
    train: TrainConfig
    data: DataConfig
    device: DeviceConfig


    def encoder_of(self, key: str) -> tuple[str, Any]:
        """Name and Config of the encoder of the method's input `key`."""
        return self.encoders.get(key, (self.encoder, self.encoder_config))


def load_file(path: str | Path) -> dict:
    """A YAML file as nested settings; plain scalars, lists and mappings only."""
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"--config {path}: not readable YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--config {path}: must hold `key: value` lines, got {type(settings).__name__}")
    return settings


def assignment(text: str) -> dict:
    """`train.lr=1e-3` as {"train": {"lr": "1e-3"}}, the value still text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: must be dotted.key=value")
    return nest(key.strip(), value)


def nest(key: str, value: Any) -> dict:
    """A dotted key and its value as nested settings."""
    settings: Any = value
    for part in reversed(key.split(".")):
        settings = {part: settings}
    return settings


def merge(*layers: dict) -> dict:
    """Nested settings, later layers winning key by key."""
    merged: dict = {}
    for layer in layers:
        for key, value in layer.items():
            if key in _PLUGINS and isinstance(value, str):
                value = {"name": value}
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def resolve(settings: dict) -> RunConfig:
    """Typed configuration from nested settings; UsageError names an unknown key's neighbours or a bad value's type."""
    legal = [*_SECTIONS, *_PLUGINS, "encoders", *_PATHS]
    for key in settings:
        if key not in legal:
            hint = f"did you mean {_owners()[key]}?" if key in _owners() else nearest(str(key), legal)
            raise UsageError(f"{key} is not a setting; {hint}")
    sections = {name: _section(name, cls, settings.get(name)) for name, cls in _SECTIONS.items()}
    plugins: dict[str, Any] = {}
    for kind, default in (("method", "csf"), ("encoder", "resnet18")):
        plugins[kind], plugins[f"{kind}_config"] = _plugin(kind, default, settings.get(kind))
    paths = {key: _path(key, settings.get(key)) for key in _PATHS}
    return RunConfig(**paths, **plugins, **sections, encoders=_encoders(settings.get("encoders"), settings.get("encoder")))


def dump(config: RunConfig) -> dict:
    """The nested settings that `resolve` turns back into `config`: plain scalars and lists."""
    plugins = {kind: _named(getattr(config, kind), getattr(config, f"{kind}_config")) for kind in _PLUGINS}
    if config.encoders:
        plugins["encoders"] = {key: _named(*own) for key, own in config.encoders.items()}
    sections = {name: asdict(getattr(config, name)) for name in _SECTIONS}
    return _plain({"corpus": config.corpus, "out": config.out, **plugins, **sections})


def to_yaml(config: RunConfig) -> str:
    """`dump` as YAML text."""
    return yaml.safe_dump(dump(config), sort_keys=False)


def flatten(settings: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted.key: value}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _named(name: str, settings: Any) -> dict:
    return {"name": name, **asdict(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _section(name: str, cls: type, settings: Any) -> Any:
    if settings is None:
        return cls()
    if not isinstance(settings, dict):
        raise UsageError(f"{name} must hold settings ({', '.join(f.name for f in fields(cls))}), got {settings!r}")
    return typed.fill(cls, settings, prefix=name, elsewhere=_owners())


def _plugin(kind: str, default: str, settings: Any) -> tuple[str, Any]:
    if isinstance(settings, str):
        settings = {"name": settings}
    if not isinstance(settings, dict | None):
        raise UsageError(f"{kind} must be a name, or hold `name` and settings, got {settings!r}")
    settings = dict(settings or {})
    name = settings.pop("name", default)
    return name, plugin.configure(_PLUGINS[kind], name, settings)


def _encoders(settings: Any, run: Any) -> dict[str, tuple[str, Any]]:
    """One that names no encoder of its own is the run's, with what it sets put over the run's settings."""
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UsageError(f"encoders must hold an encoder for each input of the method, such as s2: {{name: NAME}}, got {settings!r}")
    shared = {"name": run} if isinstance(run, str) else run or {}
    return {str(key): _plugin("encoder", "resnet18", {**shared, **own} if isinstance(own, dict) and "name" not in own else own)
            for key, own in settings.items()}


def _path(key: str, value: Any) -> str | None:
    if value is None or value == "null":
        return None
    if not isinstance(value, (str, Path)):
        raise UsageError(f"{key} must be a path, got {value!r}")
    return str(value)


def _owners() -> dict[str, str]:
    """Each setting's full name."""
    return {field.name: f"{name}.{field.name}" for name, cls in _SECTIONS.items() for field in fields(cls)}
