"""What `train.precision` means: of parameters, of views, of the batch that a method is given, and of what it computes."""

from contextlib import nullcontext

import torch
from torch import nn

from dsengine.data.sample import Batch
from dsengine.nn.dropout import set_keys

_PARAMETERS = {"bf16": torch.float32, "fp16": torch.float32, "fp32": torch.float32, "fp64": torch.float64}
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def view_dtype(precision: str) -> torch.dtype:
    """What the loader should write: views of half precision feed the first convolution as they are."""
    return _HALVES.get(precision, torch.float32)


def place(method: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """`method` on `device` in the precision of its parameters (fp32 under autocast), channels-last."""
    return method.to(device=device, dtype=_PARAMETERS[precision], memory_format=torch.channels_last)


def ready(module: nn.Module, batch: Batch, precision: str) -> Batch:
    """`batch` as `module` is to be given it, after the module's dropout is told of its samples."""
    set_keys(module, batch.sample_id, seed=batch.seed, step=batch.step)
    return batch._replace(views=tuple(v.double() for v in batch.views)) if precision == "fp64" else batch


def computing(batch: Batch, precision: str) -> torch.autocast | nullcontext:
    """The context of a forward pass."""
    half = _HALVES.get(precision)
    return nullcontext() if half is None else torch.autocast(batch.views[0].device.type, dtype=half)
