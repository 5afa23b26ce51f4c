"""`train.cuda_graphs`: encoders as CUDA graphs, forward and backward, captured once: a step whose kernels are short waits no longer for the host.

What a graph reads and writes has fixed addresses and every number given by the host is frozen in it. So an encoder is called once a step, with
one shape, and holds no dropout, whose masks are drawn by step. BatchNorm's running statistics are updated inside the graph. Never run on a GPU so far.
"""

import torch
from torch import Tensor, nn

from dsengine.data.sample import Batch
from dsengine.encoders import Features
from dsengine.engine.precision import computing, ready
from dsengine.engine.regions import Replaced, encoders_of
from dsengine.errors import UsageError
from dsengine.nn.dropout import KeyedDropout


def capture_encoders(method: nn.Module, batch: Batch, precision: str) -> None:
    """Replace the encoders' forward passes by graphs for batches like `batch`. To be called before DistributedDataParallel wraps the method.

    UsageError for an encoder that no graph can stand for.
    """
    kept = {name: buffer.clone() for name, buffer in method.named_buffers()}
    shown = inputs_of(method, batch, precision)
    for name, encoder in list(encoders_of(method)):
        check(name, encoder, shown[name])
        (x,) = shown[name]
        flat = _Flat(encoder)
        # Without the cache: a weight that was cast before the capture would not be cast again in it.
        with torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), enabled=precision in ("bf16", "fp16"), cache_enabled=False):
            graph = torch.cuda.make_graphed_callables(flat, (torch.zeros_like(x),))
        encoder.forward = Replaced(encoder, lambda x, flat=flat, graph=graph: flat.features(graph(x)))
    for name, buffer in method.named_buffers():  # warming up has updated running statistics
        buffer.copy_(kept[name])


@torch.no_grad()
def inputs_of(method: nn.Module, batch: Batch, precision: str) -> dict[str, list[Tensor]]:
    """{encoder's name: what a step calls it with, call by call}, of a forward pass that leaves running statistics changed."""
    shown: dict[str, list[Tensor]] = {name: [] for name, _ in encoders_of(method)}
    hooks = [encoder.register_forward_pre_hook(lambda _, args, calls=shown[name]: calls.append(args[0])) for name, encoder in encoders_of(method)]
    with computing(batch, precision):
        method(ready(method, batch, precision))
    for hook in hooks:
        hook.remove()
    return shown


def check(name: str, encoder: nn.Module, calls: list[Tensor]) -> None:
    """UsageError unless a graph can stand for `encoder`."""
    if len(calls) != 1:
        raise UsageError(f"train.cuda_graphs: {name} is called {len(calls)} times a step; legal: a method that calls each encoder once, or no graphs")
    if any(isinstance(layer, KeyedDropout) and layer.p > 0 for layer in encoder.modules()):
        raise UsageError(f"train.cuda_graphs: {name} has dropout, drawn anew for each step; legal: encoder.dropout=0, or no graphs")


class _Flat(nn.Module):
    """An encoder that returns tensors alone, as a capture wants."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for value in self.encoder(x) if value is not None)

    def features(self, values: tuple[Tensor, ...]) -> Features:
        """What was flattened."""
        return Features(*values, *[None] * (len(Features._fields) - len(values)))
