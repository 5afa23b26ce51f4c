"""What `train.precision` means: of parameters, of views, of the batch that a method is given, and of what it computes."""

from contextlib import nullcontext

import torch
from torch import nn

from dsengine.data.sample import Batch
from dsengine.nn.dropout import set_keys

_PARAMETERS = {"bf16": torch.float32, "fp32": torch.float32, "fp64": torch.float64}


def view_dtype(precision: str) -> torch.dtype:
    """What the loader should write: bf16 views feed the first convolution as they are."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def place(method: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """`method` on `device` in the precision of its parameters (fp32 under bf16 autocast), channels-last."""
    return method.to(device=device, dtype=_PARAMETERS[precision], memory_format=torch.channels_last)


def ready(module: nn.Module, batch: Batch, precision: str) -> Batch:
    """`batch` as `module` is to be given it, after the module's dropout is told of its samples."""
    set_keys(module, batch.sample_id, seed=batch.seed, step=batch.step)
    return batch._replace(views=tuple(v.double() for v in batch.views)) if precision == "fp64" else batch


def computing(batch: Batch, precision: str) -> torch.autocast | nullcontext:
    """The context of a forward pass."""
    return torch.autocast(batch.views[0].device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
