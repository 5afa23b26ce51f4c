"""A run's configuration: defaults < `--config FILE` < flags < `--set dotted.key=value`, typed and complete.

Settings travel as a nested dict until `resolve` turns them into frozen dataclasses; `dump` is its inverse, and what it
writes can be given back with `--config`.
"""

import types
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dsengine import plugin
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
    train: TrainConfig
    data: DataConfig
    device: DeviceConfig


def load_file(path: str | Path) -> dict:
    """A YAML file as nested settings; plain scalars, lists and mappings only."""
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
    legal = [*_SECTIONS, *_PLUGINS, *_PATHS]
    for key in settings:
        if key not in legal:
            raise UsageError(f"{key} is not a setting; {_nearest_anywhere(key, legal)}")
    sections = {name: _section(name, cls, settings.get(name)) for name, cls in _SECTIONS.items()}
    plugins: dict[str, Any] = {}
    for kind, default in (("method", "csf"), ("encoder", "resnet18")):
        plugins[kind], plugins[f"{kind}_config"] = _plugin(kind, default, settings.get(kind))
    paths = {key: None if settings.get(key) is None else str(settings[key]) for key in _PATHS}
    return RunConfig(**paths, **plugins, **sections)


def dump(config: RunConfig) -> dict:
    """The nested settings that `resolve` turns back into `config`: plain scalars and lists."""
    plugins = {kind: {"name": getattr(config, kind), **asdict(getattr(config, f"{kind}_config"))} for kind in _PLUGINS}
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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _section(name: str, cls: type, settings: Any) -> Any:
    if settings is None:
        return cls()
    if not isinstance(settings, dict):
        raise UsageError(f"{name} must hold settings ({', '.join(f.name for f in fields(cls))}), got {settings!r}")
    return cls(**_typed(name, cls, settings))


def _plugin(kind: str, default: str, settings: Any) -> tuple[str, Any]:
    if isinstance(settings, str):
        settings = {"name": settings}
    settings = dict(settings or {})
    name = settings.pop("name", default)
    cls = plugin.find(_PLUGINS[kind], name).Config
    return name, cls(**_typed(kind, cls, settings))


def _typed(prefix: str, cls: type, settings: dict) -> dict:
    hints = get_type_hints(cls)
    legal = [f.name for f in fields(cls)]
    for key in settings:
        if key not in legal:
            raise UsageError(f"{prefix}.{key} is not a setting; {_nearest_anywhere(f'{prefix}.{key}', legal, prefix)}")
    return {key: coerce(value, hints[key], f"{prefix}.{key}") for key, value in settings.items()}


def _nearest_anywhere(key: str, legal: list[str], prefix: str = "") -> str:
    """Near names among the siblings, and the section that owns a key of that name."""
    last = key.rpartition(".")[2]
    owners = [f"{name}.{last}" for name, cls in _SECTIONS.items() if last in {f.name for f in fields(cls)}]
    return f"did you mean {', '.join(owners)}?" if owners else nearest(last, legal or ["nothing"])


def coerce(value: Any, hint: Any, key: str) -> Any:
    """`value` (text from the command line, or a YAML scalar or list) as the annotated type; UsageError names `key`."""
    if isinstance(value, str) and hint is not str:
        value = _from_text(value)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return coerce(value, next(a for a in args if a is not type(None)), key)
    if origin is Literal:
        if value not in args:
            raise UsageError(f"{key}={value!r} is not legal; {nearest(str(value), map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise UsageError(f"{key} must be {len(args)} values like [{', '.join(a.__name__ for a in args)}], got {value!r}")
        return tuple(coerce(v, a, key) for v, a in zip(value, args))
    return _scalar(value, hint, key)


def _from_text(value: str) -> Any:
    try:
        parsed = yaml.safe_load(value)
        # YAML takes 1e-3 for text; what Python reads as a number is one.
        return float(parsed) if isinstance(parsed, str) and parsed[:1] in "+-.0123456789" else parsed
    except (ValueError, yaml.YAMLError):
        return value


def _scalar(value: Any, hint: type, key: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UsageError(f"{key} must be {hint.__name__}, got {value!r}")
    return value
