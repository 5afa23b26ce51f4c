"""CSF, contrastive sensor fusion: two views of a place that see other bands must agree, other places must not.

    crop x at a random offset; crop x' at most d pixels away
    v  = drop_bands(jitter(x)),  v' = drop_bands(jitter(x'))          strengths grow with the curriculum
    z  = encoder(v),             z' = encoder(v')
    loss = mean max(0, d(z, z') - d(z, roll(z')) + margin)            the roll's shift is drawn for each step
    or     InfoNCE of z against z' and of z' against z, over 2        `loss=nce`, the form of Swope et al.

Source: the first paper, section 4.3 (DeepSentinel), after Swope et al., "Representation learning for remote sensing:
an unsupervised sensor fusion approach", 2021. Defaults are the DeepSentinel configuration. Where we depart, and why:
- pooled, L2-normalised embeddings, margin 1, by default. Without normalising, the encoder meets the margin by growing:
  after a few steps hardly a triplet has a gradient, and the held-out loss rises (docs/performance.md). `per_cell` with `l1`,
  margin 0.1 and `normalize=false` is the original's form.
- bands are dropped after z-scoring (a dropped band is its mean): dropping raw values made an outlier of every drop.
- jitter acts on z-scored floats: the original's went through 8-bit images, in which raw reflectance wraps around.
- the curriculum stays at its maximum: the original's falls back to the minimum after the ramp.
- `preset=parity` is DeepSentinel's form, `preset=swope` that of Swope et al.: NCE at temperature 0.1, band dropout rising to 0.66, flips
  and turns; of pooled, L2-normalised features of the last layer, where theirs are not normalised and of two layers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.augment.params import Augment, Curriculum
from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError
from dsengine.kernels import info_nce, triplet
from dsengine.methods import Method, by_view, map_of
from dsengine.methods._legal import TEMPERATURES, above_zero, untouched, within
from dsengine.nn import noise
from dsengine.nn.collapse import spread

TAKES = ("patches",)
PRESETS = {
    "parity": {"per_cell": True, "distance": "l1", "margin": 0.1, "normalize": False},
    "swope": {"loss": "nce", "band_dropout": (0.0, 0.66), "jitters": (1, 1), "jitter_strength": (0.25, 0.25), "shift_px": (32, 32),
              "dihedral": "shared", "warmup": 0, "ramp": 8},
}
_SHIFT_SITE = noise.key("csf.shift")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of CSF. Each pair is (value before the ramp, value after it)."""

    loss: Literal["triplet", "nce"] = "triplet"
    temperature: float = 0.1  # of nce
    margin: float = 1.0  # in units of the distance; this and the next three are of the triplet
    distance: Literal["euclidean", "l1", "squared"] = "euclidean"
    per_cell: bool = False  # compare the maps cell by cell instead of their averages
    normalize: bool = True  # L2-normalise what is compared: distances then lie in [0, 2], and scale cannot buy loss
    shift_px: tuple[int, int] = (1, 16)  # of the second view against the first, pixels
    jitters: tuple[int, int] = (1, 10)  # colour jitters per view, each on a random triple of bands
    jitter_strength: tuple[float, float] = (0.01, 0.1)
    jitter_space: Literal["zscore", "physical"] = "zscore"
    band_dropout: tuple[float, float] = (0.01, 0.3)  # probability, for each band on its own
    dihedral: Literal["none", "shared", "independent"] = "none"  # flips and quarter turns; the original has none
    warmup: int = 5  # epochs at the first value
    ramp: int = 10  # epochs from the first to the second

    def __post_init__(self) -> None:
        above_zero(self, "margin")
        within(self, "temperature", *TEMPERATURES)
        for name in ("warmup", "ramp"):
            if (epochs := getattr(self, name)) < 0:
                raise UsageError(f"{name}={epochs}: must be 0 or more epochs")
        if self.loss == "nce" and (self.per_cell or not self.normalize):
            raise UsageError("loss=nce: compares pooled, normalised features; legal with per_cell=false and normalize=true alone")
        untouched(self, *(("margin", "distance") if self.loss == "nce" else ("temperature",)), where=f"loss={self.loss}")
        _views(self)  # checks the rest


class CSF(Method):
    """One encoder for all bands, two views."""

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        self.views = _views(config)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        features = encoder(torch.cat(batch.views))
        # The original puts a ReLU on the map that it compares; pooled features keep the encoder's own range.
        z = F.relu(map_of(features, "csf with per_cell")) if self.config.per_cell else features.pooled
        if self.config.normalize:
            z = F.normalize(z, dim=1)
        return {"z": by_view(z, 2), "pooled": by_view(features.pooled.detach(), 2)}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        anchor, positive = embedded["z"]
        spreads = spread(embedded["pooled"].flatten(0, 1))
        if self.config.loss == "nce":
            tau, group = self.config.temperature, batch.world.group
            loss = (info_nce(anchor, positive, tau, group) + info_nce(positive, anchor, tau, group)) / 2
            return {"loss": loss, **spreads}
        shift = _shift(batch)
        loss, active = triplet(anchor, positive, margin=self.config.margin, distance=self.config.distance,
                               shift=shift, group=batch.world.group)
        return {"loss": loss, "active": active, **spreads}


def _views(config: Config) -> tuple[View, View]:
    common = dict(jitters=config.jitters, jitter_strength=config.jitter_strength, jitter_space=config.jitter_space,
                  band_dropout=config.band_dropout, dihedral=config.dihedral,
                  curriculum=Curriculum(warmup=config.warmup, ramp=config.ramp))
    return View(augment=Augment(**common)), View(augment=Augment(shift_px=config.shift_px, **common))


def _shift(batch: Batch) -> int:
    """Rows by which the positives are rolled to become negatives: uniform in 1 .. global batch - 1."""
    rows = batch.sample_id.shape[0] * batch.world.size
    return 1 + noise.integer(rows - 1, seed=batch.seed, step=batch.step, site=_SHIFT_SITE)


def build(config: Config, encoders: dict[str, nn.Module]) -> CSF:
    """CSF around the single encoder of `encoders`, which sees all bands."""
    return CSF(config, encoders)
