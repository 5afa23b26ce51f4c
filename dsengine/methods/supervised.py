"""Supervised: learn a label of the corpus from scratch, what every pretrained encoder is compared with.

    class map      logits = decoder(encoder(x).dense)     the deconvolution head of Table 8, cross entropy a pixel
    class          logits = linear(encoder(x).pooled)     cross entropy
    multilabel     the same, binary cross entropy a class
    loss = mean over the pixels (samples) of the global batch that have a label

Source: the first paper (DeepSentinel), Table 8 and the row "None" of Table 9. Where we depart, and why:
- logits go into the cross entropy: the paper's code takes a softmax first, and its loss cannot fall below 1.165.
- what the corpus calls ignored (nodata, unclassified) is neither trained nor scored. `preset=parity` keeps the head of 7 channels.
- the crop is drawn anew in y and x; the paper's code moves along the diagonal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.augment.params import Augment
from dsengine.data.sample import Batch, View
from dsengine.dist import gather_rows
from dsengine.errors import UsageError, nearest
from dsengine.methods import Method, map_of
from dsengine.methods._legal import at_least_one
from dsengine.nn.collapse import spread
from dsengine.nn.heads import Decoder

if TYPE_CHECKING:
    from dsengine.data.labels import Labels

PRESETS = {"parity": {"channels": 7, "dihedral": "none"}}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of supervised training. What is None the run fills from the corpus."""

    label: str | None = None  # its name in the corpus; None: the only one there is
    kind: Literal["class", "multilabel", "classmap"] | None = None
    channels: int | None = None  # of the output, at least as many as there are classes
    dihedral: Literal["none", "independent"] = "none"  # flips and quarter turns

    def __post_init__(self) -> None:
        at_least_one(self, "channels")


class Supervised(Method):
    """One encoder, one view, one head."""

    attracts = False  # two classes lie along one line

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        (encoder,) = encoders.values()
        self.head = Decoder(encoder.dim, config.channels) if config.kind == "classmap" else nn.Linear(encoder.dim, config.channels)
        self.views = (View(augment=Augment(dihedral=config.dihedral)),)
        self.label = config.label

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        features = encoder(batch.views[0])
        is_map = self.config.kind == "classmap"
        logits = self.head(map_of(features, "supervised with a class map") if is_map else features.pooled)
        return {"logits": logits[None], "pooled": features.pooled.detach()[None]}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        (logits,), (pooled,) = embedded["logits"], embedded["pooled"]
        if self.config.kind == "classmap" and logits.shape[2:] != batch.label.shape[1:]:
            logits = F.interpolate(logits, batch.label.shape[1:], mode="bilinear")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        score = self._multilabel if self.config.kind == "multilabel" else self._classes
        return {**score(logits, batch), **spread(pooled)}

    def _classes(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        known = batch.label >= 0
        right = (logits.argmax(1) == batch.label) & known
        # Each rank's sum over the count of all, times the ranks: the mean over ranks is that over the global batch.
        count = gather_rows(known.sum().reshape(1), batch.world.group).sum().clamp(min=1)
        share = batch.world.size / count.to(logits.dtype)
        loss = F.cross_entropy(logits, batch.label, ignore_index=-1, reduction="sum") * share
        return {"loss": loss, "accuracy": right.sum() * share}

    def _multilabel(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        loss = F.binary_cross_entropy_with_logits(logits[:, :batch.label.shape[1]], batch.label.to(logits.dtype))
        return {"loss": loss, "accuracy": ((logits > 0)[:, :batch.label.shape[1]] == (batch.label > 0)).float().mean()}


def complete(config: Config, labels: "Mapping[str, Labels]") -> Config:
    """The label, its kind and the channels, as the corpus has them."""
    if not labels:
        raise UsageError("method.label: the corpus has no labels; supervised needs one")
    if config.label is None and len(labels) > 1:
        raise UsageError(f"method.label: the corpus has {len(labels)}; name one: {', '.join(sorted(labels))}")
    name = next(iter(labels)) if config.label is None else config.label
    if name not in labels:
        raise UsageError(f"method.label={name!r} is not in the corpus; {nearest(name, labels)}")
    table = labels[name]
    channels = len(table.values) if config.channels is None else config.channels
    if channels < len(table.values):
        raise UsageError(f"method.channels={channels}: label {name} has {len(table.values)} classes; legal: that many or more")
    if config.kind not in (None, table.kind):
        raise UsageError(f"method.kind={config.kind}: label {name} is a {table.kind}")
    return replace(config, label=name, kind=table.kind, channels=channels)


def build(config: Config, encoders: dict[str, nn.Module]) -> Supervised:
    """Supervised training of the single encoder of `encoders`; `config` must be complete."""
    if config.kind is None or config.channels is None:
        raise UsageError("supervised: name the label's kind (class, multilabel, classmap) and the number of channels")
    return Supervised(config, encoders)
