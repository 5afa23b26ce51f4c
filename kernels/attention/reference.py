"""Definition of the SAGAN attention block.

    P = softmax(q k^T)   over keys, no 1/sqrt(Dk) scale
    y = gamma * P v + x

Source: Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019, eqs. 1-3; the first paper's
ResNet18-Attn places one after layer3 (N = 256, Dv = 256) and one after layer4 (N = 64, Dv = 512).
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """q, k (B, N, Dk); v, x (B, N, Dv); gamma () -> (B, N, Dv). Materialises the (B, N, N) probabilities."""
    p_BNN = torch.softmax(q @ k.mT, dim=-1)
    return gamma * (p_BNN @ v) + x
