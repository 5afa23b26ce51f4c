"""The ResNet trunk of the first paper: torchvision's basic blocks and key names, no max-pool, no classifier.

14 x 128 x 128 -> 512 x 8 x 8: a stride-2 stem, then strides 1, 2, 2, 2. Optional SAGAN blocks after layer3 and layer4.
"""

import torch
from torch import Tensor, nn

from dsengine.encoders import Features
from dsengine.nn.attention import SelfAttention
from dsengine.nn.norm import GroupedBatchNorm2d as Norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual; a 1x1 projection where the shape changes. He et al., CVPR 2016, fig. 5."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = Norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = Norm(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), Norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(y), x if self.downsample is None else self.downsample(x), relu=True)


class ResNet(nn.Module):
    """(B, in_channels, H, W) -> Features((B, 512), (B, 512, H/16, W/16))."""

    dim = 512

    def __init__(self, blocks: tuple[int, int, int, int], in_channels: int, attention: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = Norm(64)
        self.layer1 = _layer(64, 64, blocks[0], stride=1)
        self.layer2 = _layer(64, 128, blocks[1], stride=2)
        self.layer3 = _layer(128, 256, blocks[2], stride=2)
        self.layer4 = _layer(256, 512, blocks[3], stride=2)
        self.attention3 = SelfAttention(256) if attention else nn.Identity()
        self.attention4 = SelfAttention(512) if attention else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Features:
        x = self.bn1(self.conv1(x), relu=True)
        x = self.layer2(self.layer1(x))
        x = self.attention3(self.layer3(x))
        dense = self.attention4(self.layer4(x))
        # At least fp32: the mean of many bf16 cells would lose what the cells still had.
        return Features(dense.mean((2, 3), dtype=torch.promote_types(dense.dtype, torch.float32)), dense)


def _layer(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
