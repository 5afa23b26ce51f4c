"""BatchNorm folded into the convolution before it: what inference and export run.

    BN(W x) = s (W x - mean) + bias = (s W) x + (bias - s mean),   s = weight / sqrt(var + eps), running statistics

One multiply-add a weight, once, instead of reading and writing every activation in each pass.
"""

import copy

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dsengine.errors import UsageError
from dsengine.nn.norm import GroupedBatchNorm2d


class Folded(nn.Module):
    """What is left of a folded norm: the sum and the ReLU."""

    def forward(self, x: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """x, plus `residual`, through a ReLU, the last two where asked. x may be overwritten."""
        y = x if residual is None else x + residual
        return F.relu(y, inplace=True) if relu else y


def folded(module: nn.Module) -> nn.Module:
    """A copy of `module` in evaluation mode whose convolutions hold the norm that follows each of them; `module` is unchanged.

    Convolution and norm are found as `convN` and `bnN` of one block, or one after the other in a Sequential. UsageError naming a
    norm without such a convolution.
    """
    copied = copy.deepcopy(module).eval()
    norms = [name for name, layer in copied.named_modules() if isinstance(layer, GroupedBatchNorm2d)]
    for name in norms:
        parent, _, own = name.rpartition(".")
        block = copied.get_submodule(parent)
        before = _before(block, own)
        conv = getattr(block, before, None)
        if not isinstance(conv, nn.Conv2d):
            raise UsageError(f"folded: no convolution before norm {name}; legal: convN and bnN in one block, or neighbours in a Sequential")
        setattr(block, before, fuse_conv_bn_eval(conv, getattr(block, own)))
        setattr(block, own, Folded())
    return copied


def _before(block: nn.Module, norm: str) -> str:
    return str(int(norm) - 1) if isinstance(block, nn.Sequential) else norm.replace("bn", "conv")
