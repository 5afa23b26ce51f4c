"""Ranks as values: a `World` is passed to whoever needs it, so nothing reads a global process group."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as torch_dist

# torch 2.13 renamed it, and warns under the old name.
_all_gather = getattr(torch_dist, "all_gather_single", None) or torch_dist.all_gather_into_tensor
_exchange = torch_dist.batch_isend_irecv


class World(NamedTuple):
    """This process among its peers. `group` is None when it stands alone."""

    rank: int = 0
    size: int = 1
    group: torch_dist.ProcessGroup | None = None


SOLO = World()
LOST_PEER = "lost another rank"  # how the message of an error begins of which another rank is the cause


def lost_a_peer(error: BaseException) -> bool:
    """Whether a collective failed, as it does when another rank ended."""
    return isinstance(error, torch_dist.DistError) or "gloo" in str(error)


def under_launcher() -> bool:
    """Whether torchrun, SLURM's srun (see `dsengine.engine.elastic_slurm`) or our own launcher started this process as a rank."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def join(device: torch.device, *, timeout_s: float = 1800.0) -> World:
    """Join the process group of the environment (gloo on CPU, NCCL on CUDA); SOLO when there is none. A collective fails after timeout_s."""
    if not under_launcher():
        return SOLO
    torch_dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    return World(torch_dist.get_rank(), torch_dist.get_world_size(), torch_dist.group.WORLD)


def leave(world: World) -> None:
    """Leave the process group joined by `join`."""
    if world.group is not None:
        torch_dist.destroy_process_group()


class Exchange(NamedTuple):
    """An all-reduce on its way."""

    work: torch_dist.Work
    value: torch.Tensor  # (1,) int32 on the host

    def result(self) -> int:
        """Waits for the slowest rank to have begun it."""
        self.work.wait()
        return int(self.value)


def side_group(world: World, *, timeout_s: float) -> torch_dist.ProcessGroup | None:
    """A gloo group of all ranks beside the one that gradients take, for words between hosts; None for a rank alone."""
    return None if world.size == 1 else torch_dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


def begin_max(number: int, group: torch_dist.ProcessGroup) -> Exchange:
    """Begin to find the greatest `number` of all ranks, on the host."""
    value = torch.tensor([number], dtype=torch.int32)
    return Exchange(torch_dist.all_reduce(value, op=torch_dist.ReduceOp.MAX, group=group, async_op=True), value)


def rank_in(group: torch_dist.ProcessGroup | None) -> int:
    """This process's rank in `group`; 0 without one."""
    return 0 if group is None else torch_dist.get_rank(group)


def gather_rows(x: torch.Tensor, group: torch_dist.ProcessGroup | None) -> torch.Tensor:
    """(B, ...) of every rank, equal B, as (size * B, ...) in rank order, without gradient."""
    if group is None:
        return x
    out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    _all_gather(out, x.contiguous(), group=group)
    return out


def exchange(x: torch.Tensor, num_rows: int, group: torch_dist.ProcessGroup) -> Callable[[], torch.Tensor]:
    """Send x (B, ...), contiguous, to the next rank of the ring; calling what is returned waits for the (num_rows, ...) of the one before."""
    rank, world = rank_in(group), group.size()
    out = x.new_empty(num_rows, *x.shape[1:])
    works = _exchange([torch_dist.P2POp(torch_dist.isend, x, group=group, group_peer=(rank + 1) % world),
                       torch_dist.P2POp(torch_dist.irecv, out, group=group, group_peer=(rank - 1) % world)])

    def arrived() -> torch.Tensor:
        for work in works:
            work.wait()
        return out

    return arrived


def mean_over_ranks_(tensors: list[torch.Tensor], world: World) -> None:
    """Replace each tensor by its mean over ranks, in place, with one all-reduce per dtype."""
    if world.group is None:
        return
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        same = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in same])
        torch_dist.all_reduce(flat, group=world.group)
        flat /= world.size
        for t, part in zip(same, flat.split([t.numel() for t in same])):
            t.copy_(part.view_as(t))
