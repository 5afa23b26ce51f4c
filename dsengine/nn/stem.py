"""The 7 x 7 convolution of stride 2 that ResNets begin with, and two other ways to compute the same numbers.

    padded           14 channels become 16 by zeros: tensor cores want multiples of 8
    space_to_depth   each 2 x 2 pixels become one of 4 C channels, and the kernel 4 x 4 of stride 1: deeper products over fewer places

Source of the second: Ying et al., "Image classification at supercomputer scale", 2018, section 3. Weights stay as they are, and are rearranged in each step.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.errors import UsageError

Form = Literal["as_is", "padded", "space_to_depth"]
_MULTIPLE = 8  # of channels


class FirstConv(nn.Conv2d):
    """(B, in_channels, H, W) -> (B, 64, ceil(H / 2), ceil(W / 2)); key names of nn.Conv2d."""

    form: Form = "as_is"

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 64, 7, 2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "padded":
            channels = (0, 0, 0, 0, 0, -self.in_channels % _MULTIPLE)
            return F.conv2d(F.pad(x, channels), F.pad(self.weight, channels), stride=2, padding=3)
        if self.form == "space_to_depth":
            return _space_to_depth(x, self.weight)
        return super().forward(x)


def set_form(module: nn.Module, form: Form) -> None:
    """Have every first convolution in `module` computed so. UsageError where there is none."""
    found = [layer for layer in module.modules() if isinstance(layer, FirstConv)]
    if form != "as_is" and not found:
        raise UsageError(f"train.first_conv={form}: no encoder of this run begins with a 7 x 7 convolution; legal: as_is")
    for layer in found:
        layer.form = form


def _space_to_depth(x: Tensor, weight: Tensor) -> Tensor:
    """Output i sums x[2 i + k - 3] over k = 0 .. 6. With a zero before the kernel that is x[2 (i + a) + r - 4] over a = 0 .. 3, r = 0, 1."""
    height, width = x.shape[2:]
    pixels = F.pixel_unshuffle(F.pad(x, (4, 2 + width % 2, 4, 2 + height % 2)), 2)
    return F.conv2d(pixels.contiguous(memory_format=torch.channels_last), F.pixel_unshuffle(F.pad(weight, (1, 0, 1, 0)), 2))
