"""One training step: forward, backward, update. Nothing here makes the host wait for the device."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dsengine.data.sample import Batch
from dsengine.dist import World
from dsengine.engine.graphs import capture_encoders
from dsengine.engine.micro import InPasses
from dsengine.engine.optim import set_learning_rate
from dsengine.engine.precision import computing, ready
from dsengine.engine.scaler import LossScale

# Ranks keep their own running statistics, averaged when somebody needs them. torch 2.13 renamed the argument.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_LEAVE_BUFFERS = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


class Step:
    """Callable: a batch and a learning rate in, the method's named scalars out, still on the device."""

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer, *, precision: str, world: World,
                 micro_batch: int | None = None, cuda_graphs: bool = False) -> None:
        """micro_batch: samples of this rank a pass; None: all of them in one. cuda_graphs: see `engine.graphs`."""
        self.base_lr = optimizer.defaults["lr"]  # for groups that do not follow the schedule
        self.method = method
        self.passes = None if micro_batch is None else InPasses(method, size=micro_batch, precision=precision, world=world)
        # None: made at the first step, whose shapes graphs need.
        self.module: nn.Module | None = None if cuda_graphs else _wrap(method, world) if self.passes is None else method
        self.optimizer = optimizer
        self.precision, self.world = precision, world
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = self.parameters[0].device
        self.scaler = LossScale(optimizer, device) if precision == "fp16" else None
        self._one = torch.ones((), device=device)
        self._bad = torch.zeros((), device=device)  # 1.0 from the first step that failed until somebody looks
        self._flags: list[tuple[int, Tensor]] = []  # (step, what that was after it)
        self._norms: list[Tensor] = []  # of the last step's gradients, of the parameters that had one
        self._with_gradient: list[nn.Parameter] = []  # these

    def __call__(self, batch: Batch, *, lr: float) -> dict[str, Tensor]:
        scores = self.differentiate(batch)
        set_learning_rate(self.optimizer, lr, base=self.base_lr)
        self._with_gradient = [p for p in self.parameters if p.grad is not None]
        # The optimiser skips its update where this is 1: weights stay good without asking the device.
        self.optimizer.found_inf = self._judge([p.grad for p in self._with_gradient])
        self.optimizer.step()
        self._flags.append((batch.step, self._bad.clone()))
        for p in self._with_gradient:
            p.grad = None
        return {name: value.detach() if value.requires_grad else value for name, value in scores.items()}

    def differentiate(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradients of the global batch's loss, averaged over ranks, to the parameters; the method's scalars."""
        if self.passes is not None:
            return self.passes(batch, backward=self._backward)
        if self.module is None:
            capture_encoders(self.method, batch, self.precision)
            self.module = _wrap(self.method, self.world)
        scores = forward(self.module, batch, self.precision)
        self._backward(scores["loss"])
        return scores

    def gradient_norms(self) -> dict[str, float]:
        """Norm of the last step's gradient of each trainable parameter, 0 where there was none. Waits for the device."""
        values = dict(zip(map(id, self._with_gradient), torch.stack(self._norms).tolist()))
        return {name: values.get(id(p), 0.0) for name, p in self.method.named_parameters() if p.requires_grad}

    def withheld(self) -> list[int]:
        """Steps whose update was withheld since the last call, the first for its own sake. Waits for the device."""
        flags, self._flags = self._flags, []
        if not self._bad.item():
            return []
        self._bad = torch.zeros_like(self._bad)
        return [step for step, flag in flags if flag.item()]

    def _backward(self, loss: Tensor) -> None:
        start = self._one if self.scaler is None else self.scaler.scale
        # start + 0 loss: NaN where the loss is not finite; through the gradients' mean over ranks every rank learns of it.
        loss.backward(torch.add(start.to(loss.dtype), loss.detach(), alpha=0))

    def _judge(self, gradients: list[Tensor]) -> Tensor:
        """1.0 where the update must be withheld: of a step that failed, and of all after it, so that the weights stay those it failed with."""
        if self.scaler is None:
            self._norms = torch._foreach_norm(gradients)
            torch._amp_foreach_non_finite_check_and_unscale_([torch.stack(self._norms)], self._bad, self._one)
            return self._bad
        overflow, failed = self.scaler.unscale_(gradients)
        self._norms = torch._foreach_norm(gradients)
        self._bad = torch.maximum(self._bad, failed)
        return torch.maximum(self._bad, overflow)


def forward(module: nn.Module, batch: Batch, precision: str) -> dict[str, Tensor]:
    """The method's scalars for one batch, in the run's precision."""
    with computing(batch, precision):
        return module(ready(module, batch, precision))


def _wrap(method: nn.Module, world: World) -> nn.Module:
    if world.group is None:
        return method
    return DistributedDataParallel(method, process_group=world.group, gradient_as_bucket_view=True, static_graph=True,
                                   **_LEAVE_BUFFERS)
