"""Attention as modules: the SAGAN block over the cells of a map (`kernels.attention`), and the many-headed one over tokens (torch's own)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.kernels import attention


class SelfAttention(nn.Module):
    """(B, C, h, w) -> (B, C, h, w): `gamma * softmax(q k^T) v + x` over the h*w cells; q, k have C / 8 channels.

    gamma starts at 0, so a fresh block is the identity. Source: SAGAN (ICML 2019); sizes as in the first paper.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x_BChw: Tensor) -> Tensor:
        # In channels-last memory this flattening is free, and q, k, v are one matrix product.
        x_BNC = x_BChw.permute(0, 2, 3, 1).flatten(1, 2)
        heads = (self.query, self.key, self.value)
        weight = torch.cat([conv.weight.flatten(1) for conv in heads])
        bias = torch.cat([conv.bias for conv in heads])
        q, k, v = F.linear(x_BNC, weight, bias).split([conv.out_channels for conv in heads], dim=-1)
        y_BNC = attention(q, k, v, x_BNC, self.gamma)
        return y_BNC.unflatten(1, x_BChw.shape[2:]).permute(0, 3, 1, 2)


class MultiHeadAttention(nn.Module):
    """(B, N, D) -> (B, N, D): softmax(q k^T / sqrt(D / heads)) v in each of `heads` parts of D, then a Linear. Vaswani et al., NeurIPS 2017."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, valid_BN: Tensor) -> Tensor:
        """valid: bool, which tokens are attended to; at least one in each row."""
        q, k, v = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y_BHNd = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_BN[:, None, None, :])
        return self.out(y_BHNd.transpose(1, 2).flatten(2))
