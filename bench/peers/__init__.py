"""Other people's libraries beside ours. None is a dependency: requirements.txt is their environment, README.md says how to run the comparison.

The two functions here are for single benches (`from peers import ...`); `python bench/peers` runs whole jobs.
"""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor


def lightly_nt_xent(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """lightly's NTXentLoss, or a skip that says what is missing."""
    declare_torchvision_operators()
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed", exc_type=ImportError)
    return loss.NTXentLoss(temperature)


def kornia_enhance() -> ModuleType:
    """kornia's colour operations, or a skip that says what is missing."""
    return pytest.importorskip("kornia.enhance", reason="kornia is not installed", exc_type=ImportError)


def declare_torchvision_operators() -> None:
    """PyPI's torchvision is a CUDA build: beside CPU torch it asks for operators that are not there. Nobody here calls them."""
    for name in ("nms", "qnms", "roi_align"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
