"""BYOL, bootstrap your own latent: predict what a slow copy of yourself sees in the other view.

    q  = predictor(projector(encoder(v)))          the online network, trained
    z' = projector_t(encoder_t(v'))                the target network, no gradient
    loss = 2 - 2 cos(q, z'),  and the same with the views swapped
    theta_t <- tau theta_t + (1 - tau) theta       after every step, weights and buffers

Sources: Grill et al., NeurIPS 2020, eq. 2; the third paper, which takes a random Sentinel-2 band and a random Sentinel-1 band of one
place as the two views (`pair=bands`), and shows one direction of the loss in its eq. 1. Where we depart, and why:
- two augmented views of all bands by default: the encoder can then be evaluated with all bands. `preset=parity` is the third paper's.
- tau 0.99 and constant, heads 4096/256: the paper gives no tau and its settings are those of a public implementation that has these
  defaults; `tau_schedule=cosine` with tau 0.996 is the original's, `preset=parity_baseline` has its small heads (256/128).
- BatchNorm statistics belong to groups of samples, and the target's running statistics follow the online network's: a public
  implementation leaves the target's buffers where they were, so that its evaluation mode means nothing.
- `predictor_lr_scale` (1, so off): a predictor that learns faster than the rest keeps short runs from collapsing (the original's appendix on
  near-optimal predictors; Tian et al., "Understanding self-supervised learning dynamics without contrastive pairs", ICML 2021).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.data.sample import Batch, View
from dsengine.methods import Group, Method, by_view
from dsengine.methods._legal import above_zero, at_least_one, within
from dsengine.methods._two_views import TwoViews
from dsengine.nn.collapse import spread
from dsengine.nn.ema import follow_, follower, tau_at
from dsengine.nn.heads import mlp

TAKES = ("patches",)
PRESETS = {
    "parity": {"pair": "bands", "hidden": 4096, "out": 256, "tau": 0.99, "tau_schedule": "constant"},
    "parity_baseline": {"pair": "bands", "hidden": 256, "out": 128, "tau": 0.99, "tau_schedule": "constant"},
}


@dataclass(frozen=True, kw_only=True)
class Config(TwoViews):
    """Settings of BYOL, after those of its views."""

    hidden: int = 4096  # width of both heads' hidden layer
    out: int = 256  # of the projection, and of the prediction
    tau: float = 0.99  # share of the target that stays at each step
    tau_schedule: Literal["constant", "cosine"] = "constant"  # cosine: rises to 1 at the end of the run
    one_way: bool = False  # only the first view predicts the second
    predictor_lr_scale: float = 1.0  # the predictor's learning rate, in those of the rest

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "tau", 0, 1)
        at_least_one(self, "hidden", "out")
        above_zero(self, "predictor_lr_scale")


class BYOL(Method):
    """One encoder, two views, and a target network that is no encoder of the run."""

    mean_over_samples = True

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        (encoder,) = encoders.values()
        self.projector = mlp(encoder.dim, config.hidden, config.out)
        self.predictor = mlp(config.out, config.hidden, config.out)
        self.target_encoder = follower(encoder)
        self.target_projector = follower(self.projector)
        self.views = config.views()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        x = torch.cat(batch.views)
        pooled = encoder(x).pooled
        q = self.predictor(self.projector(pooled))
        with torch.no_grad():
            z = self.target_projector(self.target_encoder(x).pooled)
        return {"q": by_view(q, 2), "z": by_view(z, 2), "pooled": by_view(pooled.detach(), 2)}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        q, z = embedded["q"], embedded["z"]
        loss = _distance(q[0], z[1]) if self.config.one_way else _distance(q[0], z[1]) + _distance(q[1], z[0])
        return {"loss": loss, **spread(embedded["pooled"].flatten(0, 1)), **spread(z.flatten(0, 1), "target")}

    def param_groups(self) -> list[Group]:
        """The predictor apart, so that it can keep up with what it has to predict."""
        rest = [*self.encoders.parameters(), *self.projector.parameters()]
        return [Group(rest), Group(list(self.predictor.parameters()), lr_scale=self.config.predictor_lr_scale)]

    def after_step(self, progress: float) -> None:
        tau = tau_at(self.config.tau, progress, schedule=self.config.tau_schedule)
        (encoder,) = self.encoders.values()
        follow_(self.target_encoder, encoder, tau)
        follow_(self.target_projector, self.projector, tau)


def _distance(q: Tensor, z: Tensor) -> Tensor:
    """Mean over rows of |q/|q| - z/|z||^2 = 2 - 2 cos(q, z), in at least fp32."""
    exact = torch.promote_types(q.dtype, torch.float32)
    return 2 - 2 * F.cosine_similarity(q.to(exact), z.to(exact), dim=1).mean()


def inputs(config: Config) -> dict[str, View]:
    """One encoder, which reads either view."""
    return {"all": config.shown()}


def build(config: Config, encoders: dict[str, nn.Module]) -> BYOL:
    """BYOL around the single encoder of `encoders`."""
    return BYOL(config, encoders)
