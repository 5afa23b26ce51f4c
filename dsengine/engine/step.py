"""One training step: forward, backward, update. Nothing here makes the host wait for the device."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dsengine.data.sample import Batch
from dsengine.dist import World
from dsengine.engine.micro import InPasses
from dsengine.engine.optim import set_learning_rate
from dsengine.engine.precision import computing, place, ready, view_dtype  # noqa: F401

# Ranks keep their own running statistics, averaged when somebody needs them. torch 2.13 renamed the argument.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_LEAVE_BUFFERS = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


class Step:
    """Callable: a batch and a learning rate in, the method's named scalars out, still on the device."""

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer, *, precision: str, world: World,
                 micro_batch: int | None = None) -> None:
        """micro_batch: samples of this rank a pass; None: all of them in one."""
        self.base_lr = optimizer.defaults["lr"]  # for groups that do not follow the schedule
        self.method = method
        self.passes = None if micro_batch is None else InPasses(method, size=micro_batch, precision=precision, world=world)
        self.module = _wrap(method, world) if self.passes is None else method
        self.optimizer = optimizer
        self.precision = precision
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._flags: list[tuple[int, Tensor]] = []  # (step, 1.0 on the device where its update was withheld)
        self._norms: list[Tensor] = []  # of the last step's gradients, of the parameters that had one
        self._with_gradient: list[nn.Parameter] = []  # these

    def __call__(self, batch: Batch, *, lr: float) -> dict[str, Tensor]:
        scores = self.differentiate(batch)
        set_learning_rate(self.optimizer, lr, base=self.base_lr)
        # The optimiser skips its update where this is 1: weights stay good without asking the device.
        self._norms = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None])
        self._with_gradient = [p for p in self.parameters if p.grad is not None]
        # Once a step is withheld so are all that follow, until somebody looks: the weights stay those of the step that failed.
        bad = _not_finite(self._norms, self._flags[-1][1] if self._flags else None)
        self.optimizer.found_inf = bad
        self.optimizer.step()
        self._flags.append((batch.step, bad))
        self.optimizer.zero_grad(set_to_none=True)
        return {name: value.detach() for name, value in scores.items()}

    def differentiate(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradients of the global batch's loss, averaged over ranks, to the parameters; the method's scalars."""
        if self.passes is not None:
            return self.passes(batch, backward=_backward)
        scores = forward(self.module, batch, self.precision)
        _backward(scores["loss"])
        return scores

    def gradient_norms(self) -> dict[str, float]:
        """Norm of the last step's gradient of each trainable parameter, 0 where there was none. Waits for the device."""
        values = dict(zip(map(id, self._with_gradient), torch.stack(self._norms).tolist()))
        return {name: values.get(id(p), 0.0) for name, p in self.method.named_parameters() if p.requires_grad}

    def withheld(self) -> list[int]:
        """Steps whose update was withheld since the last call, the first for its own sake. Waits for the device."""
        flags, self._flags = self._flags, []
        bad = torch.stack([flag for _, flag in flags]).tolist() if flags else []
        return [step for (step, _), flag in zip(flags, bad) if flag]


def forward(module: nn.Module, batch: Batch, precision: str) -> dict[str, Tensor]:
    """The method's scalars for one batch, in the run's precision."""
    with computing(batch, precision):
        return module(ready(module, batch, precision))


def _backward(loss: Tensor) -> None:
    # NaN where the loss is not finite, else 1: through the gradients' mean over ranks every rank learns of it.
    loss.backward(loss.detach().mul(0).add_(1))


def _wrap(method: nn.Module, world: World) -> nn.Module:
    if world.group is None:
        return method
    return DistributedDataParallel(method, process_group=world.group, gradient_as_bucket_view=True, static_graph=True,
                                   **_LEAVE_BUFFERS)


def _not_finite(norms: list[Tensor], before: Tensor | None) -> Tensor:
    """1.0 when any of the gradients' `norms` is not finite, or `before` is 1.0; else 0.0, as a tensor on the device."""
    bad = (~torch.isfinite(torch.stack(norms).sum())).float()
    return bad if before is None else torch.maximum(bad, before)
