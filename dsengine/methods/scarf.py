"""SCARF: a row of a table and the same row with many of its cells replaced must find each other.

    x~_ij = x_ij, or with probability 0.6 the cell j of another row drawn for this cell alone
    loss  = NT-Xent(projector(encoder(x)), projector(encoder(x~)))

Sources: Bahri et al., "SCARF: self-supervised contrastive learning using random feature corruption", ICLR 2022, alg. 1; the second paper
(Patnala et al.) for pixels and series of them, whose cells are a band, or a band at a date. Where we depart, and why:
- the other rows are all of the training split that have data in the cell (`View(of="marginals")`): the empirical marginals of algorithm 1. Those
  of the held-out loss are of the held-out rows.
- every sample has its own mask, keyed by seed, step and sample id, and the batch is never written to: the second paper's code corrupts
  in place, so that its two views are one tensor, takes the same columns for the whole batch and all values from one row, and corrupts
  every other batch. `preset=parity` has its rate (20 %), temperature and heads, not those faults.
- a cell is replaced with that probability whatever becomes of the others; algorithm 1 replaces floor(0.6 M) of a row's M cells. At low rates
  some rows stay as they are (rate 0.05 of 36 cells: one in six), and the loss has nothing to say of them but against the others.
- the loss is NT-Xent of both views, each against all other rows of both; algorithm 1 looks from the row to the corrupted ones only.
- what has no data stays so, and nothing loses its data by corruption: rates are of the cells that are there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError
from dsengine.kernels import nt_xent
from dsengine.methods import Method, by_view
from dsengine.methods._legal import TEMPERATURES, at_least_one, within
from dsengine.nn import noise
from dsengine.nn.collapse import spread
from dsengine.nn.heads import mlp

PRESETS = {"parity": {"rate": 0.2, "temperature": 0.07, "hidden": 256, "out": 256}}
TAKES = ("pixels", "series")
_MASK_SITE = noise.key("scarf.mask")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of SCARF."""

    sensor: str | None = None  # the one it sees; None: all bands of the corpus
    rate: float = 0.6  # probability that a cell is replaced
    temperature: float = 1.0
    hidden: int = 256  # of the projector
    out: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError(f"rate={self.rate}: must be in (0, 1)")
        within(self, "temperature", *TEMPERATURES)
        at_least_one(self, "hidden", "out")


class Scarf(Method):
    """One encoder, one view, and its corruption by another."""

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        (encoder,) = encoders.values()
        self.projector = mlp(encoder.dim, config.hidden, config.out)
        self.views = (View(sensor=config.sensor), View(sensor=config.sensor, of="marginals"))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        x = batch.views[0]
        pooled = encoder(torch.cat((x, corrupt(batch, self.config.rate)))).pooled
        return {"z": by_view(self.projector(pooled), 2), "pooled": by_view(pooled.detach(), 2)}

    def score(self, embedded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        loss = nt_xent(embedded["z"], self.config.temperature, batch.world.group)
        return {"loss": loss, **spread(embedded["pooled"][0])}


def corrupt(batch: Batch, rate: float) -> Tensor:
    """The first view (B, C) or (B, T, C) with each cell replaced, with probability `rate`, by that of the second; not where either has no data (NaN)."""
    x, other = batch.views[0], batch.views[-1]
    if x.ndim > 3:
        raise UsageError(f"scarf takes pixels (B, C) or series (B, T, C), this corpus gives {tuple(x.shape)}; legal: a corpus of pixels or series")
    drawn = noise.uniform(batch.sample_id, x.shape[1:].numel(), site=_MASK_SITE, seed=batch.seed, step=batch.step).view(x.shape)
    return torch.where((drawn < rate) & ~x.isnan() & ~other.isnan(), other, x)


def inputs(config: Config) -> dict[str, View]:
    """One encoder of the sensor."""
    return {config.sensor or "all": View(sensor=config.sensor)}


def build(config: Config, encoders: dict[str, nn.Module]) -> Scarf:
    """SCARF around the single encoder of `encoders`."""
    return Scarf(config, encoders)
