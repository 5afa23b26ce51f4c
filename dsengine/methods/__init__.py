"""Methods: one file each; the file name is the name. `build_method(name, encoder=...)` makes one.

A file defines a frozen `Config`, one `Method` and `build(config, encoders) -> Method`.
"""

from torch import Tensor, nn

from dsengine import plugin
from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError


class Method(nn.Module):
    """The contract between a method and the loop; the loop knows nothing else of it."""

    views: tuple[View, ...]  # what one sample is; executed by the loader
    encoders: nn.ModuleDict  # name -> encoder: what evaluation and export take away

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss": () at least float32, ...}; the other entries are detached scalars, logged as they are."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch)")

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the share of the run that is done, in (0, 1]."""


def build_method(name: str, encoders: dict[str, nn.Module] | None = None, encoder: nn.Module | None = None,
                 **config) -> Method:
    """A method around one `encoder` for all bands, or `encoders` by sensor. config: the method's own settings.

    Raises UsageError for an unknown name or setting (with the nearest legal ones), or for no or two kinds of encoder.
    """
    if (encoders is None) == (encoder is None):
        raise UsageError("build_method: give either encoder (one module) or encoders (sensor -> module)")
    settings = plugin.configure(__name__, name, config)
    return plugin.find(__name__, name).build(settings, encoders or {"all": encoder})
