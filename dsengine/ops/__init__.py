"""Operators from csrc, each a torch custom op with a fake, a reference in torch, a CPU path and a CUDA path."""

from dsengine.ops.augment_op import augment, augment_into
from dsengine.ops.bitpack_op import bitpack_decode, bitpack_decode_into
from dsengine.ops.library import build_info
from dsengine.ops.streams_op import unfilter_streams
from dsengine.ops.unfilter_op import unfilter
from dsengine.ops.warp_op import blur, warp

__all__ = ["augment", "augment_into", "bitpack_decode", "bitpack_decode_into", "blur", "build_info", "unfilter", "unfilter_streams", "warp"]
