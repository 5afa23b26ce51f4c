"""Methods: one file each; the file name is the name. `build_method(name, encoder=...)` makes one.

A file defines a frozen `Config`, one `Method` and `build(config, encoders) -> Method`; and where it needs them
- `inputs(config) -> {encoder's name: View}`: the encoders it wants, each with a view that it must be able to read (default: one,
  "all", of every band);
- `complete(config, labels) -> Config`: fills what a run leaves open (None) from the label tables of the corpus;
- `TAKES = ("patches",)`, of patches, pixels, series: the corpora that it can learn from (default: it refuses none); the first is that of a run
  that names none;
- `PRESETS = {name: {setting: value}}`: chosen by the setting `preset`, under any setting that is given itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dsengine import plugin
from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.data.labels import Labels
    from dsengine.encoders import Features


@dataclass(frozen=True)
class Group:
    """Parameters that the optimiser treats alike; what the optional `Method.param_groups()` returns a list of."""

    params: list[nn.Parameter]
    lr_scale: float = 1.0  # times the learning rate of the step
    scheduled: bool = True  # False: keeps train.lr, whatever the schedule
    decay: bool = True  # False: no weight decay, and LARS does not adapt it


class Method(nn.Module):
    """The contract between a method and the loop; the loop knows nothing else of it.

    A method defines `embed` and `score`, or `forward` alone: it then cannot be trained in several passes (`train.micro_batch`), unless
    it is `mean_over_samples`. It may also define `param_groups() -> list[Group]`, which must hold every trainable parameter once.
    """

    views: tuple[View, ...]  # what one sample is; executed by the loader
    encoders: nn.ModuleDict  # name -> encoder: what evaluation and export take away
    label: str | None = None  # the label that `Batch.label` is to hold
    mean_over_samples: bool = False  # whether the loss is a mean over samples, of what each of them has by itself
    attracts: bool = True  # whether the loss draws features together: only then are features along one line a collapse (`engine.alarms`)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss": () at least float32, ...}.

        Of the other entries, detached, a scalar is logged as it is, and (n, C, h, w) is drawn as a picture beside the first view.
        """
        return self.score(self.embed(batch), batch)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """What the scores are made of, each (V, B, ...): of V views of the B samples, of each sample by itself but for groups of BatchNorm."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch), or embed(batch) and score(embedded, batch)")

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """What `forward` returns, from what `embed` gave for this batch; the only place where samples meet."""
        raise NotImplementedError(f"{type(self).__name__} must define score(embedded, batch), as it defines embed")

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the share of the run that is done, in (0, 1]."""


def build_method(name: str, encoders: dict[str, nn.Module] | None = None, encoder: nn.Module | None = None,
                 **config) -> Method:
    """A method around one `encoder` for all bands, or `encoders` by name. config: the method's own settings.

    Raises UsageError for an unknown name or setting (with the nearest legal ones), for no or two kinds of encoder, and for
    encoders of other names than the method's.
    """
    if (encoders is None) == (encoder is None):
        raise UsageError("build_method: give either encoder (one module) or encoders (name -> module)")
    settings = plugin.configure(__name__, name, config)
    wanted = tuple(inputs(name, settings))
    encoders = dict.fromkeys(wanted[:1], encoder) if encoders is None else encoders
    if set(encoders) != set(wanted):
        raise UsageError(f"{name} takes {_named(wanted)}, got {_named(tuple(encoders))}")
    return plugin.find(__name__, name).build(settings, {key: encoders[key] for key in wanted})


def inputs(name: str, config: Any) -> dict[str, View]:
    """Encoders that the method `name` wants under `config`, in order: name -> a view that it must be able to read."""
    module = plugin.find(__name__, name)
    return module.inputs(config) if hasattr(module, "inputs") else {"all": View()}


def complete(name: str, config: Any, labels: "Mapping[str, Labels]") -> Any:
    """`config` of the method `name` with what it leaves open filled from a corpus's `labels`; UsageError where that cannot be."""
    module = plugin.find(__name__, name)
    return module.complete(config, labels) if hasattr(module, "complete") else config


def corpus_kind(name: str) -> str:
    """What the corpus of a run of the method `name` holds, where it names none: patches, pixels or series."""
    return takes(name)[0]


def takes(name: str) -> tuple[str, ...]:
    """What corpora may hold for the method `name` to learn from them."""
    return getattr(plugin.find(__name__, name), "TAKES", ("patches", "pixels", "series"))


def map_of(features: "Features", name: str) -> Tensor:
    """The encoder's map (B, D, h, w); UsageError, naming the method, for an encoder that makes none."""
    if features.dense is None:
        raise UsageError(f"{name} needs an encoder that makes maps, as those of images do")
    return features.dense


def by_view(x: Tensor, num_views: int) -> Tensor:
    """(V * B, ...), one view after the other, as (V, B, ...)."""
    return x.unflatten(0, (num_views, -1))


def _named(names: tuple[str, ...]) -> str:
    return "one encoder for all bands" if names == ("all",) else f"{len(names)} encoder{'s' * (len(names) != 1)}: {', '.join(sorted(names))}"
