"""SCARF: a row of a table and the same row with most of its cells replaced must find each other.

    x~_ij = x_ij, or with probability 0.6 the cell j of another row drawn for this cell alone
    loss  = NT-Xent(projector(encoder(x)), projector(encoder(x~)))

Sources: Bahri et al., "SCARF: self-supervised contrastive learning using random feature corruption", ICLR 2022, alg. 1; the second paper
(Patnala et al.) for pixels and series of them, whose cells are a band, or a band at a date. Where we depart, and why:
- the rows that cells are drawn from are those of the global batch, not of the whole set: no second read, and as many marginals as rows.
- every sample has its own mask, keyed by seed, step and sample id, and the batch is never written to: the second paper's code corrupts
  in place, so that its two views are one tensor, takes the same columns for the whole batch and all values from one row, and corrupts
  every other batch. `preset=parity` has its rate (20 %), temperature and heads, not those faults.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsengine.data.sample import Batch, View
from dsengine.dist import gather_rows
from dsengine.errors import UsageError
from dsengine.kernels import nt_xent
from dsengine.methods import Method
from dsengine.nn import noise
from dsengine.nn.collapse import spread
from dsengine.nn.heads import mlp

PRESETS = {"parity": {"rate": 0.2, "temperature": 0.07, "hidden": 256, "out": 256}}
_MASK_SITE, _ROW_SITE = noise.key("scarf.mask"), noise.key("scarf.row")


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
        if not self.temperature > 0:
            raise UsageError(f"temperature={self.temperature}: must be above 0")


class Scarf(Method):
    """One encoder, one view, and its corruption."""

    def __init__(self, config: Config, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        (encoder,) = encoders.values()
        self.projector = mlp(encoder.dim, config.hidden, config.out)
        self.views = (View(sensor=config.sensor),)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self.encoders.values()
        x = batch.views[0]
        pooled = encoder(torch.cat((x, corrupt(batch, self.config.rate)))).pooled
        z_VBD = torch.stack(self.projector(pooled).chunk(2))
        loss = nt_xent(z_VBD, self.config.temperature, batch.world.group)
        return {"loss": loss, **spread(pooled.detach().chunk(2)[0])}


def corrupt(batch: Batch, rate: float) -> Tensor:
    """The first view (B, ...) with each cell replaced, with probability `rate`, by the same cell of a row of the global batch."""
    x = batch.views[0]
    if x.ndim > 3:
        raise UsageError(f"scarf takes pixels (B, C) or series (B, T, C), this corpus gives {tuple(x.shape)}; legal: a corpus of pixels or series")
    cells, every = x.flatten(1), gather_rows(x.flatten(1), batch.world.group)
    key = dict(seed=batch.seed, step=batch.step)
    replaced = noise.uniform(batch.sample_id, cells.shape[1], site=_MASK_SITE, **key) < rate
    rows = noise.below(batch.sample_id, cells.shape[1], len(every), site=_ROW_SITE, **key)
    return torch.where(replaced, every.gather(0, rows), cells).view(x.shape)


def inputs(config: Config) -> dict[str, View]:
    """One encoder of the sensor."""
    return {config.sensor or "all": View(sensor=config.sensor)}


def build(config: Config, encoders: dict[str, nn.Module]) -> Scarf:
    """SCARF around the single encoder of `encoders`."""
    return Scarf(config, encoders)
