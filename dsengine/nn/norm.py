"""BatchNorm whose statistics belong to fixed groups of samples, so results do not depend on ranks or micro-batches."""

import torch
from torch import Tensor, nn


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over groups of `group` samples of one view, in batch order; plain BatchNorm2d until `group` is set.

    Input (V * batch, C, h, w): V views, one after the other. Each group is normalised by its own statistics. Running
    statistics take one update per view, groups averaged, views in order; ranks holding other groups of the same
    view each keep their own; averaging these over ranks is exact because the update is linear.
    """

    group: int | None = None  # samples per group
    batch: int | None = None  # this rank's samples per view

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.group is None:
            return super().forward(x)
        parts = [torch.native_batch_norm(g, self.weight, self.bias, None, None, True, 0.0, self.eps)
                 for g in x.split(self.group)]
        out, mean, invstd = zip(*parts)
        self._update_running(mean, invstd, x)
        return out[0] if len(out) == 1 else torch.cat(out)

    @torch.no_grad()
    def _update_running(self, mean: tuple[Tensor, ...], invstd: tuple[Tensor, ...], x: Tensor) -> None:
        per_view = self.batch // self.group
        count = self.group * x.shape[2] * x.shape[3]
        mean_G = torch.stack(mean).unflatten(0, (-1, per_view)).mean(1)
        # Unbiased, as torch does for running_var.
        var = (torch.stack(invstd).pow(-2) - self.eps) * (count / max(count - 1, 1))
        for view_mean, view_var in zip(mean_G, var.unflatten(0, (-1, per_view)).mean(1)):
            self.running_mean.lerp_(view_mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(view_var.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += mean_G.shape[0]


def set_groups(module: nn.Module, group: int, batch: int) -> None:
    """Give every GroupedBatchNorm2d in `module` its group size and this rank's batch, in samples of one view."""
    if batch % group:
        raise ValueError(f"set_groups: batch {batch} must hold whole groups of {group}")
    for layer in module.modules():
        if isinstance(layer, GroupedBatchNorm2d):
            layer.group, layer.batch = group, batch


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The floating-point running buffers of `module`, the tensors that ranks must average before use."""
    return [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
