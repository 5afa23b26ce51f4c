"""dsengine: self-supervised pretraining on Sentinel-1/2 imagery. The names in `__all__` are the stable public API.

Importing this package is fast and touches no GPU: each name loads its module when it is first used.
"""

from importlib import import_module
from importlib.util import find_spec

if find_spec("dsengine.kernels") is None:
    raise ImportError("dsengine is not installed (this is an uninstalled checkout): run `pip install .` in its root")

_HOME = {
    "open_corpus": "dsengine.corpus",
    "build_encoder": "dsengine.encoders",
    "build_method": "dsengine.methods",
    "Loader": "dsengine.data.loader",
    "train": "dsengine.engine.api",
    "load_encoder": "dsengine.export.load",
    "embed": "dsengine.export.embed",
    "nearest": "dsengine.export.nearest",
    "export_encoder": "dsengine.export.encoder",
}
__all__ = [*_HOME, "kernels", "ops", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in ("kernels", "ops"):
        return import_module(f"dsengine.{name}")
    raise AttributeError(f"module 'dsengine' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
