"""What a step costs, counted on tensors without memory: floating-point operations, bytes moved and held, collectives. Nothing is computed.

The method's parameters and one rank's batch are replaced by torch's fake tensors and taken forward and backward once. Every operator that would
run is seen by `_Ledger`; a tensor counts as held from the operator that makes it until nothing refers to it, autograd's graph included.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dsengine.data.sample import Batch
from dsengine.dist import World
from dsengine.engine.precision import computing, ready
from dsengine.engine.step import forward
from dsengine.methods import Method


class Cost(NamedTuple):
    """Of one pass of one rank, forward and backward."""

    flops: int
    moved_bytes: int  # read and written by operators, each as if nothing stayed in a cache
    saved_bytes: int  # kept for the backward pass
    peak_bytes: int  # the most that was held at once of all that the pass makes: activations, gradients, temporaries
    operators: int  # that compute; on a GPU the host launches each of them
    backward: bool  # whether the backward pass is in these figures


@dataclass
class _Ledger(TorchDispatchMode):
    """Sees every operator; holds what it made by weak references to storages."""

    known: set[int]  # storages that were there before: parameters and batch
    moved: int = 0
    operators: int = 0
    held: int = 0
    peak: int = 0
    collectives: list[tuple[str, int]] = field(default_factory=list)
    alive: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operator, and write down what it moves and makes."""
        result = func(*args, **(kwargs or {}))
        given, made = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in ((args, kwargs), result))
        if func.namespace in ("c10d", "_c10d_functional"):
            self.collectives.append((func._schema.name.partition("::")[2].strip("_"), sum(map(_bytes, given[-1:]))))
        elif not func.is_view:
            self.moved += sum(map(_bytes, given)) + sum(map(_bytes, made))
            self.operators += 1
        for tensor in made:
            self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known or key in self.alive:
            return
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)

        def gone(_: Any) -> None:
            self.held -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, gone)


def cost_of(method: nn.Module, batch: Batch, *, precision: str) -> Cost:
    """Of a pass of `batch`, whose tensors say nothing but shape, dtype and strides; `method` is used up: its parameters become fake.

    The backward pass begins at the embeddings: that of the loss, which is next to nothing, is left out, for some look at a number.
    """
    mode, saved = FakeTensorMode(), {}
    _without_memory(method, mode)
    batch = _fake(batch, mode)
    known = {t.untyped_storage()._cdata for t in (*method.parameters(), *method.buffers(), *batch.views)}

    def keep(x: Tensor) -> Tensor:
        saved[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x.detach()  # an operator's own output, kept by its own node, would never be let go

    ledger = _Ledger(known)
    with mode, FlopCounterMode(display=False) as flops, ledger, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        made = _forward(method, batch, precision)
        kept = sum(size for key, size in saved.items() if key not in known)
        counted = _backward(made)
    return Cost(flops.get_total_flops(), ledger.moved, kept, ledger.peak, ledger.operators, counted)


def collectives_of(method: nn.Module, batch: Batch, *, precision: str, ranks: int) -> tuple[tuple[str, int], ...]:
    """(operator, bytes that rank 0 gives it) of the method's forward pass among `ranks`; `method` is used up. The process must be in no group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    mode = FakeTensorMode()
    _without_memory(method, mode)
    torch_dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        batch = _fake(batch, mode)._replace(world=World(0, ranks, torch_dist.group.WORLD))
        ledger = _Ledger(set())
        with mode, ledger:
            forward(method, batch, precision)
        return tuple(ledger.collectives)
    finally:
        torch_dist.destroy_process_group()


def buckets(parameters: Sequence[Tensor]) -> list[int]:
    """Bytes of each all-reduce of gradients, as DistributedDataParallel divides them."""
    parts, _ = torch_dist._compute_bucket_assignment_by_size(list(parameters), [torch_dist._DEFAULT_FIRST_BUCKET_BYTES, 25 * 2**20])
    return [sum(_bytes(parameters[k]) for k in part) for part in parts]


def _forward(method: nn.Module, batch: Batch, precision: str) -> list[Tensor]:
    """What the backward pass is to begin with: the embeddings, after they were scored; of a method that has none, its loss."""
    if type(method).forward is not Method.forward:
        return [forward(method, batch, precision)["loss"]]
    with computing(batch, precision):
        embedded = method.embed(ready(method, batch, precision))
        method.score({name: x.detach() for name, x in embedded.items()}, batch)
    return [x for x in embedded.values() if x.requires_grad]


def _backward(made: list[Tensor]) -> bool:
    """Whether it could be taken: not from a loss that looks at a number, for there are none."""
    try:
        torch.autograd.backward(made, [torch.ones_like(x) for x in made])
    except DataDependentOutputException:
        return False
    return True


def _without_memory(method: nn.Module, mode: FakeTensorMode) -> None:
    for part in method.modules():
        for tensors in (part._parameters, part._buffers):
            for name, x in tensors.items():
                tensors[name] = None if x is None else mode.from_tensor(x)


def _fake(batch: Batch, mode: FakeTensorMode) -> Batch:
    def like(x: Tensor) -> Tensor:
        with mode:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")

    label = None if batch.label is None else like(batch.label)
    return batch._replace(views=tuple(map(like, batch.views)), sample_id=like(batch.sample_id), label=label)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
