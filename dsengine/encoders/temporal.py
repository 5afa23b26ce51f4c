"""Temporal transformer of the second paper, for the series of one pixel: one token a date, 4 blocks of 4 heads, 128 features.

    tokens = [cls, conv1d(x_1), ..., conv1d(x_T)] + positions             kernels of one date, positions learned
    tokens = tokens + attention(LN(tokens));  tokens + MLP(LN(tokens))     four times, MLP four times as wide, GELU
    y      = Linear(d, 128)(LN(mean of the dates' tokens, or cls))

Source: Patnala et al.; their code is a vision transformer (Dosovitskiy et al., ICLR 2021) over dates, with its initialisation. What to know:
- the paper has d = 256, its code d = 64: `preset=paper` (the defaults) and `preset=code`. At 12 bands and 144 dates that is 3,233,152 and
  218,560 parameters; at 36 and 365, 3,295,872 and 234,240.
- a date whose bands are all NaN is missing: no token attends to it and it is in no mean. The paper's series have no gaps.
- its downstream models read the dates' tokens instead of the mean: `embed_dates`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.encoders import Features, Start
from dsengine.errors import UsageError
from dsengine.nn.attention import MultiHeadAttention
from dsengine.nn.dropout import KeyedDropout

INPUT = "series"
PRESETS = {"paper": {"width": 256}, "code": {"width": 64}}
_EPS = 1e-6  # of every LayerNorm, as in the source


@dataclass(frozen=True, kw_only=True)
class Config(Start):
    """The defaults are the paper's."""

    width: int = 256  # of a token: the paper's 256 kernels
    blocks: int = 4
    heads: int = 4
    out: int = 128  # features
    dates: int = 366  # the longest series that there are positions for
    pool: Literal["mean", "cls"] = "mean"  # what the features are made of: the mean of the dates, or the token in front of them
    dropout: float = 0.0  # after attention and after each Linear of the MLP

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "heads", "out", "dates"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.width % self.heads:
            raise UsageError(f"heads={self.heads}: must divide width={self.width}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout={self.dropout}: must be in [0, 1)")


class Block(nn.Module):
    """(B, N, width) -> the same: x plus attention of its LayerNorm, plus an MLP of that one's."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention, self.dropout1 = nn.LayerNorm(width, _EPS), MultiHeadAttention(width, heads), KeyedDropout(dropout)
        self.norm2, self.linear1, self.dropout2 = nn.LayerNorm(width, _EPS), nn.Linear(width, 4 * width), KeyedDropout(dropout)
        self.linear2, self.dropout3 = nn.Linear(4 * width, width), KeyedDropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = x + self.dropout1(self.attention(self.norm1(x), valid))
        y = self.dropout2(F.gelu(self.linear1(self.norm2(x))))
        return x + self.dropout3(self.linear2(y))


class Temporal(nn.Module):
    """(B, T, in_channels), NaN in all channels where a date is missing -> Features((B, out), None)."""

    def __init__(self, config: Config, in_channels: int) -> None:
        super().__init__()
        self.in_channels, self.dim, self.pool = in_channels, config.out, config.pool
        self.embed = nn.Conv1d(in_channels, config.width, 1)
        self.cls = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = nn.Parameter(torch.empty(1, 1 + config.dates, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, _EPS)
        self.head = nn.Linear(config.width, config.out)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.cls, std=1e-6)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Features:
        tokens, valid = self._tokens(x)
        if self.pool == "cls":
            pooled = tokens[:, 0]
        else:
            weight = valid[:, 1:, None].to(torch.promote_types(tokens.dtype, torch.float32))
            # A series without any date has the features of a mean of 0, the same for all such.
            pooled = (tokens[:, 1:] * weight).sum(1) / weight.sum(1).clamp(min=1)
        y = self.head(self.norm(pooled))
        return Features(y.to(torch.promote_types(y.dtype, torch.float32)), None)

    def embed_dates(self, x: Tensor) -> Tensor:
        """(B, T, in_channels) -> (B, T, width): each date's token after the last block; that of a missing date is of the others alone."""
        return self._tokens(x)[0][:, 1:]

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1 + T, width) tokens after the last block, the first not a date's; (B, 1 + T) bool, which of them are there."""
        self._check(x)
        absent = x.isnan()
        valid = F.pad(~absent.all(-1), (1, 0), value=True)
        # A kernel of one date is a matrix product, and as such needs no transposed copy.
        tokens = F.linear(x.masked_fill(absent, 0), self.embed.weight[:, :, 0], self.embed.bias)
        tokens = torch.cat((self.cls.to(tokens.dtype).expand(len(x), -1, -1), tokens), dim=1) + self.positions[:, :1 + x.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, valid)
        return tokens, valid

    def _check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[2] != self.in_channels:
            raise UsageError(f"temporal takes series (B, T, {self.in_channels}), got {tuple(x.shape)}; legal: a corpus of series")
        if x.shape[1] >= self.positions.shape[1]:
            raise UsageError(f"encoder.dates={self.positions.shape[1] - 1}: the series has {x.shape[1]} dates; legal: that many or more")


def build(config: Config, in_channels: int) -> nn.Module:
    """A fresh encoder for (B, T, in_channels) with T up to `dates`; pooled features have `out` entries."""
    return Temporal(config, in_channels)
