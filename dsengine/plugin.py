"""Finding an encoder or a method: the file name is the registration, and a dotted path reaches code outside."""

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

from dsengine import typed
from dsengine.errors import UsageError, nearest


def names(package: str) -> list[str]:
    """Public plug-in names: the modules of `package` whose name has no leading underscore."""
    path = import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def find(package: str, name: str) -> ModuleType:
    """The plug-in module `package`.`name`, or the module at a dotted path; UsageError lists the legal names."""
    kind = kind_of(package)
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{kind} {name!r} is not a name; legal: {', '.join(names(package))}, or a dotted path to a module")
    if "." not in name and name not in names(package):
        raise UsageError(f"{kind} {name!r} is unknown; {nearest(name, names(package))}")
    try:
        module = import_module(name if "." in name else f"{package}.{name}")
    except ModuleNotFoundError as error:
        raise UsageError(f"{kind} {name!r}: no module of that path ({error})") from error
    if not hasattr(module, "Config") or not hasattr(module, "build"):
        raise UsageError(f"{kind} {name!r}: {module.__file__} must define Config and build")
    return module


def configure(package: str, name: str, settings: dict) -> Any:
    """The plug-in's frozen Config from settings; UsageError names an unknown key's neighbours or a bad value's type.

    The setting `preset` chooses one of the file's PRESETS, which holds where no value is given.
    """
    module = find(package, name)
    presets, settings = getattr(module, "PRESETS", {}), dict(settings)
    preset = settings.pop("preset", None)
    if preset is not None and preset not in presets:
        legal = nearest(str(preset), presets) if presets else f"{name} has none"
        raise UsageError(f"{kind_of(package)}.preset={preset!r} is unknown; {legal}")
    return typed.fill(module.Config, {**presets.get(preset, {}), **settings}, prefix=kind_of(package))


def kind_of(package: str) -> str:
    """ "method" for dsengine.methods, "encoder" for dsengine.encoders."""
    return package.rpartition(".")[2].rstrip("s")
