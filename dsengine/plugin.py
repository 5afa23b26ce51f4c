"""Finding an encoder or a method: the file name is the registration, and a dotted path reaches code outside."""

import pkgutil
from dataclasses import fields
from importlib import import_module
from types import ModuleType

from dsengine.errors import UsageError, nearest


def names(package: str) -> list[str]:
    """Public plug-in names: the modules of `package` whose name has no leading underscore."""
    path = import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def find(package: str, name: str) -> ModuleType:
    """The plug-in module `package`.`name`, or the module at a dotted path; UsageError lists the legal names."""
    kind = package.rpartition(".")[2].rstrip("s")
    if "." not in name and name not in names(package):
        raise UsageError(f"{kind} {name!r} is unknown; {nearest(name, names(package))}")
    try:
        module = import_module(name if "." in name else f"{package}.{name}")
    except ModuleNotFoundError as error:
        raise UsageError(f"{kind} {name!r}: no module of that path ({error})") from error
    if not hasattr(module, "Config") or not hasattr(module, "build"):
        raise UsageError(f"{kind} {name!r}: {module.__file__} must define Config and build")
    return module


def configure(package: str, name: str, settings: dict) -> object:
    """The plug-in's frozen Config from keyword settings; UsageError names an unknown key's neighbours."""
    config = find(package, name).Config
    legal = [f.name for f in fields(config)]
    for key in settings:
        if key not in legal:
            kind = package.rpartition(".")[2].rstrip("s")
            hint = nearest(key, legal) if legal else "it has no settings"
            raise UsageError(f"{kind}.{key} is not a setting of {name!r}; {hint}")
    return config(**settings)
