"""SimSiam: one network, two views, a predictor on one side and a stopped gradient on the other.

    z = projector(encoder(v)),  z' = projector(encoder(v'))
    p = predictor(z),           p' = predictor(z')
    loss = - cos(p, stop(z')) / 2 - cos(p', stop(z)) / 2

Sources: Chen, He, "Exploring simple Siamese representation learning", CVPR 2021, alg. 1; the third paper, which feeds it a random
Sentinel-2 band and a random Sentinel-1 band (`preset=parity`) and describes both heads as Linear, BN, ReLU, Linear. Where we depart, and why:
- the projector has the original's three layers by default (its last BatchNorm without weights keeps z from collapsing early).
- all bands in both views by default; no colour jitter (see `_two_views`).
- the residual branches of the encoder are initialised to zero only on demand (`encoder.zero_init_residual`): encoders keep the initialisation
  of their own papers.
- `predictor_lr_scale` (1, so off): a predictor that learns faster than the rest keeps short runs from collapsing (Tian et al.,
  "Understanding self-supervised learning dynamics without contrastive pairs", ICML 2021).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.data.sample import Batch, View
from dsengine.methods import Group, Method, by_view
from dsengine.methods._legal import above_zero, at_least_one
from dsengine.methods._two_views import TwoViews
from dsengine.nn.collapse import spread
from dsengine.nn.heads import mlp

TAKES = ("patches",)
PRESETS = {"parity": {"pair": "bands", "projector": "paper3", "fixed_predictor_lr": False}}


@dataclass(frozen=True, kw_only=True)
class Config(TwoViews):
    """Settings of SimSiam, after those of its views."""

    dim: int = 2048  # of the projection, and of its hidden layers
    hidden: int = 512  # of the predictor
    projector: Literal["simsiam", "paper3"] = "simsiam"  # three layers, each with BatchNorm; or two, BatchNorm between them
    fixed_predictor_lr: bool = True  # the predictor keeps train.lr while the rest follows the schedule
    predictor_lr_scale: float = 1.0  # the predictor's learning rate, in those of the rest

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "dim", "hidden")
        above_zero(self, "predictor_lr_scale")


class SimSiam(Method):
    """One encoder, two views."""

    mean_over_samples = True

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        (encoder,) = encoders.values()
        if config.projector == "simsiam":
            self.projector = mlp(encoder.dim, config.dim, config.dim, layers=3, last_norm=True)
        else:
            self.projector = mlp(encoder.dim, config.dim, config.dim)
        self.predictor = mlp(config.dim, config.hidden, config.dim)
        self.views = config.views()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        pooled = encoder(torch.cat(batch.views)).pooled
        z = self.projector(pooled)
        return {"p": by_view(self.predictor(z), 2), "z": by_view(z.detach(), 2), "pooled": by_view(pooled.detach(), 2)}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        p, z = embedded["p"], embedded["z"]
        loss = -(_cosine(p[0], z[1]) + _cosine(p[1], z[0])) / 2
        return {"loss": loss, **spread(embedded["pooled"].flatten(0, 1)), **spread(z.flatten(0, 1), "projection")}

    def param_groups(self) -> list[Group]:
        """The predictor apart: with a falling learning rate it would lag behind what it has to predict (the paper's section 4.2)."""
        rest = [*self.encoders.parameters(), *self.projector.parameters()]
        predictor = Group(list(self.predictor.parameters()), lr_scale=self.config.predictor_lr_scale, scheduled=not self.config.fixed_predictor_lr)
        return [Group(rest), predictor]


def _cosine(p: Tensor, z: Tensor) -> Tensor:
    """Mean over rows of cos(p, z), in at least fp32."""
    exact = torch.promote_types(p.dtype, torch.float32)
    return F.cosine_similarity(p.to(exact), z.to(exact), dim=1).mean()


def inputs(config: Config) -> dict[str, View]:
    """One encoder, which reads either view."""
    return {"all": config.shown()}


def build(config: Config, encoders: dict[str, nn.Module]) -> SimSiam:
    """SimSiam around the single encoder of `encoders`."""
    return SimSiam(config, encoders)
