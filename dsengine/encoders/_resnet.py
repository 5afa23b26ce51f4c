"""The ResNet trunks of the papers: torchvision's blocks and key names, no classifier.

Stem `paper`, 14 x 128 x 128 -> 512 x 8 x 8: a stride-2 convolution, then strides 1, 2, 2, 2. Stem `imagenet` has the max-pool of
stride 2 behind the convolution, so maps have half the side. Optional SAGAN blocks after layer3 and layer4.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.encoders import Features
from dsengine.nn.attention import SelfAttention
from dsengine.nn.norm import GroupedBatchNorm2d as Norm
from dsengine.nn.stem import FirstConv
from dsengine.nn.whitening import Whitening


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


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 to four times the channels, with a residual. He et al., fig. 5; the stride as in torchvision."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = Norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = Norm(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = Norm(wide)
        self.downsample = None
        if stride != 1 or in_channels != wide:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, wide, 1, stride, bias=False), Norm(wide))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x), relu=True)), relu=True)
        return self.bn3(self.conv3(y), x if self.downsample is None else self.downsample(x), relu=True)


class ResNet(nn.Module):
    """(B, in_channels, H, W) -> Features((B, D), (B, D, H/16, W/16)), H/32 with the stem `imagenet`; D is 512, 2048 with bottlenecks."""

    def __init__(self, blocks: tuple[int, int, int, int], in_channels: int, attention: bool = False, *,
                 bottleneck: bool = False, stem: Literal["paper", "imagenet"] = "paper", whiten: bool = False, zero_init_residual: bool = False) -> None:
        super().__init__()
        block, growth = (Bottleneck, 4) if bottleneck else (BasicBlock, 1)
        self.in_channels, self.dim, self.pools = in_channels, 512 * growth, stem == "imagenet"
        self.whitening = Whitening(in_channels) if whiten else nn.Identity()
        self.conv1 = FirstConv(in_channels)
        self.bn1 = Norm(64)
        self.layer1 = _layer(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _layer(block, 64 * growth, 128, blocks[1], stride=2)
        self.layer3 = _layer(block, 128 * growth, 256, blocks[2], stride=2)
        self.layer4 = _layer(block, 256 * growth, 512, blocks[3], stride=2)
        self.attention3 = SelfAttention(256 * growth) if attention else nn.Identity()
        self.attention4 = SelfAttention(512 * growth) if attention else nn.Identity()
        _initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Features:
        x = self.bn1(self.conv1(self.whitening(x)), relu=True)
        x = F.max_pool2d(x, 3, 2, 1) if self.pools else x
        x = self.layer2(self.layer1(x))
        x = self.attention3(self.layer3(x))
        dense = self.attention4(self.layer4(x))
        # At least fp32: the mean of many bf16 cells would lose what the cells still had.
        return Features(dense.mean((2, 3), dtype=torch.promote_types(dense.dtype, torch.float32)), dense)


def _layer(block: type[nn.Module], in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels * (4 if block is Bottleneck else 1), channels, 1) for _ in range(blocks - 1)))


def _initialise(network: ResNet, *, zero_init_residual: bool) -> None:
    """He's for the convolutions; on demand, blocks that begin as their shortcut (Goyal et al., "Accurate, large minibatch SGD", 2017, section 5.1)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
            nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)
