"""`train.compile`: encoders by torch.compile while they train, each of them one region; heads and losses, which have kernels of their own, run as they are.

Held-out losses, probes and copies use the encoder as it is: their batches have other shapes, each of which would be compiled anew.
"""

import torch
from torch import nn

from dsengine.engine.regions import Replaced, encoders_of, own_forward


def compile_encoders(method: nn.Module, *, backend: str = "inductor") -> None:
    """Let the encoders of `method` be compiled at their first step, for its shape. Parameters, buffers and their names stay what they are."""
    for _, encoder in list(encoders_of(method)):
        encoder.forward = Replaced(encoder, torch.compile(own_forward(encoder), backend=backend, dynamic=False))
