"""Packages that come with an extra of the installation, imported where they are used."""

from importlib import import_module
from types import ModuleType

from dsengine.errors import UsageError


def need(module: str, extra: str) -> ModuleType:
    """The imported `module`, or UsageError that says which extra brings it; `a.b` returns a.b itself."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # the package is there, something that it needs is not: that is no request to install the extra
        raise UsageError(f"this needs the package {module.partition('.')[0]}: pip install 'dsengine[{extra}]'") from error
