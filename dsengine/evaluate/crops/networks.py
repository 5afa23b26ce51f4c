"""The three networks of Patnala et al. for series (B, T, C) -> logits (B, K): recurrent, convolutional, attention.

All are small modules of torch's layers, with torch's initialisation, and every layer is registered: in the InceptionTime of the library that
the paper used (breizhcrops 0.0.4.1) the layers sit in plain lists, so that all but the last stay as they were initialised.

    B batch, T dates, C channels of a date, K classes, W width
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.errors import UsageError

NETWORKS = ("bilstm", "inception", "transformer")


@dataclass(frozen=True, kw_only=True)
class Bilstm:
    """Shape of `BilstmNet`."""

    hidden: int  # of each direction
    layers: int
    dropout: float  # between layers


@dataclass(frozen=True, kw_only=True)
class Inception:
    """Shape of `InceptionNet`."""

    width: int  # channels that a module puts out; InceptionTime's own is 128
    layers: int  # modules
    kernel: int  # dates under the longest of its three kernels; the others have a half and a quarter


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Shape of `TransformerNet`."""

    width: int
    layers: int
    heads: int
    dropout: float


class BilstmNet(nn.Module):
    """LayerNorm of each date, a bidirectional LSTM, and a linear layer on the LayerNorm of the last cell states of all layers and directions."""

    def __init__(self, shape: Bilstm, channels: int, classes: int) -> None:
        super().__init__()
        self.inlet = nn.LayerNorm(channels)
        self.lstm = nn.LSTM(channels, shape.hidden, shape.layers, batch_first=True, bidirectional=True, dropout=shape.dropout)
        self.norm = nn.LayerNorm(2 * shape.layers * shape.hidden)
        self.outlet = nn.Linear(2 * shape.layers * shape.hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C)."""
        _, (_, cells) = self.lstm(self.inlet(x))
        return self.outlet(self.norm(cells.transpose(0, 1).flatten(1)))


class InceptionModule(nn.Module):
    """(B, C, T) -> (B, W, T): a bottleneck, three kernels of it and one of the pooled input, side by side; BatchNorm, ReLU."""

    def __init__(self, channels: int, width: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        filters = width // 4
        self.bottleneck = nn.Conv1d(channels, filters, 1, bias=False)
        self.convs = nn.ModuleList(nn.Conv1d(filters, filters, k, padding=k // 2, bias=False) for k in kernels)
        self.pooled = nn.Conv1d(channels, filters, 1, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.bottleneck(x)
        parts = [conv(narrow) for conv in self.convs] + [self.pooled(F.max_pool1d(x, 3, stride=1, padding=1))]
        return F.relu(self.norm(torch.cat(parts, dim=1)))


class InceptionNet(nn.Module):
    """InceptionTime (Fawaz et al., Data Mining and Knowledge Discovery 34, 2020): modules, a shortcut over each three, the mean over dates.

    One network where the original averages five. Kernels are odd, so that dates stay in place, and no longer than 2 T - 1: taps beyond
    that would see padding only.
    """

    def __init__(self, shape: Inception, channels: int, classes: int, dates: int) -> None:
        super().__init__()
        kernels = inception_kernels(shape.kernel, dates)
        inputs = [channels] + [shape.width] * (shape.layers - 1)
        self.blocks = nn.ModuleList(InceptionModule(c, shape.width, kernels) for c in inputs)
        starts = inputs[:shape.layers // 3 * 3:3]
        self.shortcuts = nn.ModuleList(nn.Sequential(nn.Conv1d(c, shape.width, 1, bias=False), nn.BatchNorm1d(shape.width)) for c in starts)
        self.outlet = nn.Linear(shape.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C)."""
        x = before = x.transpose(1, 2)
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k % 3 == 2:
                x = before = F.relu(x + self.shortcuts[k // 3](before))
        return self.outlet(x.mean(2))


class TransformerNet(nn.Module):
    """LayerNorm and a linear layer for each date, sines of its position added, post-norm encoder layers with ReLU and inner width 2 W,
    the maximum over dates, a linear layer."""

    def __init__(self, shape: Transformer, channels: int, classes: int, dates: int) -> None:
        super().__init__()
        if shape.width % shape.heads:
            raise UsageError(f"heads={shape.heads}: must divide width={shape.width}")
        self.inlet = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, shape.width))
        self.register_buffer("positions", sines(dates, shape.width), persistent=False)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(shape.width, shape.heads, 2 * shape.width, shape.dropout, batch_first=True)
                                    for _ in range(shape.layers))
        self.outlet = nn.Linear(shape.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C)."""
        x = self.dropout(self.inlet(x) + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.outlet(x.amax(1))


def build(shape: Bilstm | Inception | Transformer, channels: int, classes: int, dates: int) -> nn.Module:
    """A fresh network of `shape` for series (B, dates, channels)."""
    if isinstance(shape, Bilstm):
        return BilstmNet(shape, channels, classes)
    return (InceptionNet if isinstance(shape, Inception) else TransformerNet)(shape, channels, classes, dates)


def inception_kernels(longest: int, dates: int) -> tuple[int, ...]:
    """`longest`, its half and its quarter, each made odd by leaving one out, at most 2 * dates - 1."""
    return tuple(min((longest >> k) - 1 | 1, 2 * dates - 1) for k in range(3))


def sines(dates: int, width: int) -> Tensor:
    """(dates, width) float32: sin and cos of t / 10000^(2 i / width) in turn (Vaswani et al., 2017, section 3.5)."""
    angle = torch.arange(dates, dtype=torch.float64)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)[:, :width].float()
