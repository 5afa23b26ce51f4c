"""Which form of a kernel a tensor takes."""

from importlib.util import find_spec

import torch
from torch import Tensor

_HAS_TRITON = find_spec("triton") is not None
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def uses_triton(*tensors: Tensor | None) -> bool:
    """Whether these go to the Triton kernel: all on a GPU, at most fp32, Triton there. Else they take the reference."""
    return _HAS_TRITON and all(x is None or (x.is_cuda and x.dtype in _DTYPES) for x in tensors)
