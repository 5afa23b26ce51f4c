"""BatchNorm whose statistics belong to fixed groups of samples, so results do not depend on ranks or micro-batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from dsengine.dist import SOLO, World
from dsengine.errors import UsageError
from dsengine.kernels.batchnorm.op import batch_norm
from dsengine.nn.global_norm import whiten


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over groups of `group` samples of one view, in batch order; plain BatchNorm2d until `group` is set.

    Input (V * batch, C, h, w): V views, one after the other. Each group is normalised by its own statistics. Running
    statistics take one update per view, groups averaged, views in order; ranks holding other groups of the same
    view each keep their own; averaging these over ranks is exact because the update is linear.
    """

    group: int | None = None  # samples per group
    batch: int | None = None  # this rank's samples per view and pass
    across: ProcessGroup | None = None  # the ranks that share one group, of the whole global batch

    def forward(self, x: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """x normalised, plus `residual`, through a ReLU, the last two where asked; in training with groups set, in one fused op."""
        if not self.training or self.group is None:
            y = super().forward(x)
            y = y if residual is None else y + residual
            return F.relu(y, inplace=True) if relu else y
        if self.group * x.shape[2] * x.shape[3] == 1:
            raise UsageError("BatchNorm: one sample of one cell has no variance; take a larger train.bn_group or data.size")
        if self.across is None:
            y, mean, var = batch_norm(x, self.weight, self.bias, group=self.group, eps=self.eps, residual=residual, relu=relu)
            self._update_running(mean, var, x)
            return y
        u, mean, var = whiten(x, views=len(x) // self.batch, eps=self.eps, group=self.across)
        self._update_running(mean, var, x)
        y = (u * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        y = y if residual is None else y + residual
        return F.relu(y, inplace=True) if relu else y

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, x: Tensor) -> None:
        count = self.group * x.shape[2] * x.shape[3]
        # Unbiased, as torch does for running_var.
        groups = torch.stack([mean, var * (count / (count - 1))]).unflatten(1, (-1, max(1, self.batch // self.group)))
        views = groups.mean(2)  # (mean and var, V, C)
        for view in views.unbind(1):
            for running, new in zip((self.running_mean, self.running_var), view):
                # A step that is not finite is withheld from the weights, and must not get in here either.
                running.copy_(torch.where(torch.isfinite(new), running.lerp(new.to(running.dtype), self.momentum), running))
        self.num_batches_tracked += views.shape[1]


def set_groups(module: nn.Module, group: int | str, batch: int, *, world: World = SOLO) -> None:
    """Give every GroupedBatchNorm2d in `module` its group size and this rank's samples a pass, both of one view.

    group: "global" is one group of all samples of all ranks in `world`; one collective forward, and one backward, a layer.
    """
    if group != "global" and batch % group:
        raise UsageError(f"set_groups: batch {batch} must hold whole groups of {group}")
    for layer in module.modules():
        if isinstance(layer, GroupedBatchNorm2d):
            layer.group, layer.batch = batch * world.size if group == "global" else group, batch
            layer.across = world.group if group == "global" else None


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The floating-point running buffers of `module`, the tensors that ranks must average before use."""
    return [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
