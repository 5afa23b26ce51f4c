"""Optional peers that benches compare with; none is a dependency. `pip install --no-deps PEER` into any folder on PYTHONPATH."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor


def lightly_nt_xent(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """lightly's NTXentLoss, or a skip that says what is missing."""
    _declare_torchvision_operators()
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed", exc_type=ImportError)
    return loss.NTXentLoss(temperature)


def kornia_enhance() -> ModuleType:
    """kornia's colour operations, or a skip that says what is missing."""
    return pytest.importorskip("kornia.enhance", reason="kornia is not installed", exc_type=ImportError)


def _declare_torchvision_operators() -> None:
    """PyPI's torchvision is a CUDA build: beside CPU torch it asks for operators that are not there. Nobody here calls them."""
    for name in ("nms", "qnms", "roi_align"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
