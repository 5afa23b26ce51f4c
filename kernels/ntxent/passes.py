"""The passes of `reference.py` as torch operators, which run its Triton form where a tensor is on a GPU."""

from types import ModuleType

import torch
from torch import Tensor

from dsengine.kernels.backend import uses_triton
from dsengine.kernels.ntxent import reference


def _passes(x: Tensor) -> ModuleType:
    """The module whose normalise, forward and backward run on x."""
    if uses_triton(x):
        from dsengine.kernels.ntxent import kernel
        return kernel
    return reference


@torch.library.custom_op("dsengine::ntxent_normalise", mutates_args=())
def normalise(u: Tensor) -> tuple[Tensor, Tensor]:
    return _passes(u).normalise(u)


@normalise.register_fake
def _(u: Tensor) -> tuple[Tensor, Tensor]:
    exact = u.dtype if u.dtype == torch.float64 else torch.float32
    low = u.dtype if _passes(u) is not reference else exact
    return u.new_empty(u.shape[1], u.shape[0], u.shape[2], dtype=low), u.new_empty(u.shape[:2], dtype=exact)


@torch.library.custom_op("dsengine::ntxent_forward", mutates_args=())
def forward(rows: Tensor, cols: Tensor, inv_tau: Tensor, start: int, symmetric: bool, bounded: bool) -> Tensor:
    return _passes(rows).forward(rows, cols, inv_tau, start, symmetric, bounded)


@forward.register_fake
def _(rows: Tensor, cols: Tensor, inv_tau: Tensor, start: int, symmetric: bool, bounded: bool) -> Tensor:
    return inv_tau.new_empty((*rows.shape[:2], cols.shape[0]))


@torch.library.custom_op("dsengine::ntxent_backward", mutates_args=())
def backward(rows: Tensor, cols: Tensor, row_weight: Tensor, col_weight: Tensor, row_scale: Tensor, inv_tau: Tensor,
              start: int, num_positive: int, symmetric: bool, bounded: bool) -> tuple[Tensor, Tensor]:
    return _passes(rows).backward(rows, cols, row_weight, col_weight, row_scale, inv_tau, start, num_positive, symmetric, bounded)


@backward.register_fake
def _(rows: Tensor, cols: Tensor, row_weight: Tensor, col_weight: Tensor, row_scale: Tensor, inv_tau: Tensor,
      start: int, num_positive: int, symmetric: bool, bounded: bool) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), inv_tau.new_empty(rows.shape[:2])
