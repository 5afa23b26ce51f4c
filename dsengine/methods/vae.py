"""VAE: squeeze the image through a small random map and draw it again.

    h = encoder(x)                                     (512, h, w)
    mu, log s^2 = two 1x1 convolutions of h            (64, h, w) each: 64 x 8 x 8 at 128 px
    x^ = decoder(mu + s eps),  eps ~ N(0, 1)           1x1 convolution back to 512, four up blocks (Table 8), 1x1 to the bands
    loss = mean (x^ - x)^2 + beta KL(N(mu, s^2) | N(0, 1))

Source: the first paper (DeepSentinel), section 4.1 and Table 8; Kingma, Welling, ICLR 2014, appendix B, for the KL. What to know:
- beta is 0 by default, which is what the paper's code trains (and then the noise can shrink to nothing: an autoencoder). Its KL, summed beside
  a mean of squares, exploded and was commented out. Here the KL of a sample is summed over the latent and divided by the number of
  values of the image, so that with beta 1 the loss is, up to constants, the negative evidence bound a value, for noise of variance 1/2.
- the log-variance is clamped to [-10, 10].
- eps is keyed by seed, step and sample id; in evaluation it is 0, so that held-out losses repeat.
- the reconstruction is of the view after augmentation (a crop, by default nothing else), nodata (0) included.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.augment.params import Augment
from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError
from dsengine.methods import Method, map_of
from dsengine.methods._legal import at_least_one
from dsengine.nn import noise
from dsengine.nn.collapse import spread
from dsengine.nn.heads import Decoder

TAKES = ("patches",)
PRESETS = {"parity": {"beta": 0.0, "latent": 64, "dihedral": "none"}}
_SITE = noise.key("vae.z")
_PICTURES = 6  # samples of a batch that are drawn


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the VAE."""

    latent: int = 64  # channels of the random map
    beta: float = 0.0  # weight of the KL, a value of the image; 0 is the paper's
    dihedral: Literal["none", "independent"] = "none"  # flips and quarter turns

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise UsageError(f"beta={self.beta}: must be 0 or more and finite")
        at_least_one(self, "latent")


class VAE(Method):
    """One encoder with a map, one view."""

    mean_over_samples = True
    attracts = False  # first it learns how bright an image is, which is one line

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        (encoder,) = encoders.values()
        self.mean = nn.Conv2d(encoder.dim, config.latent, 1)
        self.log_variance = nn.Conv2d(encoder.dim, config.latent, 1)
        self.widen = nn.Conv2d(config.latent, encoder.dim, 1)
        self.decoder = Decoder(encoder.dim, encoder.in_channels)
        self.views = (View(augment=Augment(dihedral=config.dihedral)),)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        features = encoder(batch.views[0])
        dense = map_of(features, "vae")
        mean, log_variance = self.mean(dense), self.log_variance(dense).clamp(-10, 10)
        drawn = self.decoder(self.widen(mean + self._noise(batch, log_variance)))
        return {"drawn": drawn[None], "mean": mean[None], "log_variance": log_variance[None], "pooled": features.pooled.detach()[None]}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        drawn, mean, log_variance, pooled = (embedded[key][0] for key in ("drawn", "mean", "log_variance", "pooled"))
        (x,) = batch.views
        drawn = drawn if drawn.shape == x.shape else F.interpolate(drawn, x.shape[2:], mode="bilinear")
        exact = torch.promote_types(drawn.dtype, torch.float32)
        error = F.mse_loss(drawn.to(exact), x.to(exact))
        kl = divergence(mean.to(exact), log_variance.to(exact)) / x[0].numel()
        return {"loss": error + self.config.beta * kl, "error": error.detach(), "kl": kl.detach(),
                **spread(pooled), "reconstruction": drawn.detach()[:_PICTURES]}

    def _noise(self, batch: Batch, log_variance: Tensor) -> Tensor:
        if not self.training:
            return torch.zeros_like(log_variance)
        drawn = noise.normal(batch.sample_id, log_variance[0].numel(), seed=batch.seed, site=_SITE, step=batch.step)
        return (drawn.view(log_variance.shape) * torch.exp(log_variance / 2)).to(log_variance.dtype)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) | N(0, 1)), summed over all but the samples, averaged over these."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()


def build(config: Config, encoders: dict[str, nn.Module]) -> VAE:
    """A VAE around the single encoder of `encoders`, which must make maps and carry `in_channels`."""
    return VAE(config, encoders)
