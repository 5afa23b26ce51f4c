"""What methods put on an encoder: one builder of fully connected heads, and the deconvolution head of the first paper."""

from torch import Tensor, nn

from dsengine.nn.norm import GroupedBatchNorm2d


class GroupedBatchNorm1d(GroupedBatchNorm2d):
    """GroupedBatchNorm2d of vectors (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C) normalised by the statistics of its groups."""
        return super().forward(x[:, :, None, None]).flatten(1)


def mlp(in_features: int, hidden: int, out: int, *, layers: int = 2, last_norm: bool = False) -> nn.Sequential:
    """(B, in_features) -> (B, out): Linear, BatchNorm, ReLU, `layers` - 1 times, then Linear; `last_norm`: one more BatchNorm, without weights.

    A Linear before a BatchNorm has no bias: the BatchNorm would take it off again.
    """
    widths = [in_features, *[hidden] * (layers - 1), out]
    parts: list[nn.Module] = []
    for k, (wide, next_wide) in enumerate(zip(widths, widths[1:])):
        is_last = k == layers - 1
        parts.append(nn.Linear(wide, next_wide, bias=is_last and not last_norm))
        parts += [] if is_last else [GroupedBatchNorm1d(next_wide), nn.ReLU(inplace=True)]
    if last_norm:
        parts.append(GroupedBatchNorm1d(out).requires_grad_(False))  # scale and shift stay 1 and 0
    return nn.Sequential(*parts)


class Up(nn.Module):
    """(B, in_channels, h, w) -> (B, channels, 2h, 2w): a stride-2 deconvolution, then twice 3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, 2)
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, 1, 1), GroupedBatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1), GroupedBatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.up(x)), relu=True)
        return self.bn2(self.conv2(x), relu=True)


class Decoder(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, 16h, 16w), without skip connections: the deconvolution head, Table 8 of the first paper.

    2,266,631 parameters from 512 to 7 channels. Up blocks of 256, 128, 64 and 32 channels, then a 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = (in_channels, 256, 128, 64, 32)
        self.blocks = nn.Sequential(*(Up(wide, narrow) for wide, narrow in zip(widths, widths[1:])))
        self.out = nn.Conv2d(32, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x))
