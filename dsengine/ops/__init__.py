"""Operators from csrc, each a torch custom op with a fake, a reference in torch, a CPU path and a CUDA path."""

from dsengine.ops.augment_op import augment
from dsengine.ops.library import build_info

__all__ = ["augment", "build_info"]
