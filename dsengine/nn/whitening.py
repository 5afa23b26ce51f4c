"""A fixed linear map in front of a network that makes its bands equally wide and uncorrelated.

    y = W x,   W = (C + floor I)^(-1/2),   C the covariance of the z-scored bands, of all pixels that have data

Bands of one scene rise and fall together: z-scored one by one, nine tenths of what a network sees is brightness, and what tells one surface from another
is a few hundredths of the variance in differences of bands, which it takes many epochs to find. The symmetric root (ZCA) changes the bands as
little as any whitening can, so that each output still belongs to its band. The floor keeps noise from being blown up to the size of the rest.
Source: Kessy, Lewin, Strimmer, "Optimal whitening and decorrelation", The American Statistician 2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR = 0.01  # of the variance of a band


class Whitening(nn.Module):
    """(B, C, H, W) z-scores -> the same, whitened, in at least fp32; the identity until `matrix` is set. It has no gradient, and 0 (no data) stays 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Differences of large numbers: bf16 would leave little of them.
        with torch.autocast(x.device.type, enabled=False):
            y = F.linear(x.to(torch.promote_types(x.dtype, torch.float32)).permute(0, 2, 3, 1), self.matrix)
        return y.permute(0, 3, 1, 2)


def without_whitening(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ResNet, of the same function without a whitening of its own: its map goes into the first convolution."""
    if "whitening.matrix" not in state:
        return state
    rest = {key: value for key, value in state.items() if key != "whitening.matrix"}
    return {**rest, "conv1.weight": torch.einsum("oihw,ij->ojhw", state["conv1.weight"], state["whitening.matrix"])}


def whitener(covariance: Tensor, *, floor: float = FLOOR) -> Tensor:
    """(C, C) float64 W of a covariance (C, C) of z-scored bands."""
    widths, axes = torch.linalg.eigh(covariance.double())
    return axes / (widths.clamp(min=0) + floor).sqrt() @ axes.T
