"""Tile2Vec: a place is closer to its neighbour than to a place far away.

    a = encoder(crop of x),  n = encoder(crop of a patch near x),  d = encoder(crop of a patch far from x)
    loss = mean max(0, |a - n| - |a - d| + margin)

Sources: the first paper (DeepSentinel), section 4.2, after Jean et al., "Tile2Vec: unsupervised representation learning for spatially
distributed data", AAAI 2019. Where we depart, and why:
- the neighbour is drawn by exp(-distance / 18.2 km): the paper's softmax of the distance itself, with a plus, is almost always the farthest
  neighbour (`neighbour=literal`).
- neighbours are by great circle, across the date line, within the split (`dsengine corpus neighbours`); the paper's are within one degree of
  latitude and longitude alike.
- pooled features, L2-normalised, with margin 1, as `csf` has them and for its reason; `preset=parity` compares map cells, not normalised,
  margin 0.1. The root has an epsilon inside: equal cells had a gradient of NaN.
- crops lie anywhere in the patch: the original's were its upper left corner.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.augment.params import Augment
from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError
from dsengine.kernels import triplet
from dsengine.methods import Method, by_view, map_of
from dsengine.methods._legal import above_zero, untouched
from dsengine.nn.collapse import spread

TAKES = ("patches",)
PRESETS = {"parity": {"margin": 0.1, "per_cell": True, "normalize": False, "neighbour": "literal", "dihedral": "none"}}
_LITERAL_KM = -1.0  # softmax(+ km)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of Tile2Vec."""

    margin: float = 1.0  # in units of the distance
    distance: Literal["euclidean", "l1", "squared"] = "euclidean"
    per_cell: bool = False  # compare the maps cell by cell instead of their averages
    normalize: bool = True  # L2-normalise what is compared: distances then lie in [0, 2], and scale cannot buy loss
    neighbour: Literal["near", "literal"] = "near"  # p ~ exp(-km / scale_km), or the paper's exp(+km)
    scale_km: float = 18.2
    dihedral: Literal["none", "independent"] = "independent"  # flips and quarter turns of each member

    def __post_init__(self) -> None:
        above_zero(self, "margin", "scale_km")
        if self.neighbour == "literal":
            untouched(self, "scale_km", where="neighbour=literal")


class T2V(Method):
    """One encoder for all bands; three patches a sample."""

    mean_over_samples = True

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        scale_km = config.scale_km if config.neighbour == "near" else _LITERAL_KM
        augment = Augment(dihedral=config.dihedral)
        self.views = (View(augment=augment), View(of="neighbour", scale_km=scale_km, augment=augment), View(of="distant", augment=augment))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        features = encoder(torch.cat(batch.views))
        z = map_of(features, "t2v with per_cell") if self.config.per_cell else features.pooled
        if self.config.normalize:
            z = F.normalize(z, dim=1)
        return {"z": by_view(z, 3), "pooled": by_view(features.pooled.detach(), 3)}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        anchor, neighbour, distant = embedded["z"]
        loss, active = triplet(anchor, neighbour, distant, margin=self.config.margin, distance=self.config.distance, group=batch.world.group)
        return {"loss": loss, "active": active, **spread(embedded["pooled"].flatten(0, 1))}


def build(config: Config, encoders: dict[str, nn.Module]) -> T2V:
    """Tile2Vec around the single encoder of `encoders`, which sees all bands."""
    if len(encoders) != 1:
        raise UsageError(f"t2v takes one encoder for all bands, got {len(encoders)}: {', '.join(encoders)}")
    return T2V(config, encoders)
