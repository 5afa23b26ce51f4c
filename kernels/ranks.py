"""Rows of a global batch over ranks, equally many or not: what the losses share."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from dsengine.dist import gather_rows, rank_in


def gather(x: Tensor, sizes: tuple[int, ...], group: ProcessGroup | None) -> Tensor:
    """(B, ...) of every rank as (sum of sizes, ...), one collective; unequal sizes travel padded to the largest.

    Maps (B, C, h, w) travel and arrive channels-last, as encoders make them, whatever each rank's own layout is.
    """
    if x.ndim == 4:
        return _gather(x.permute(0, 2, 3, 1), sizes, group).permute(0, 3, 1, 2)
    return _gather(x, sizes, group)


def _gather(x: Tensor, sizes: tuple[int, ...], group: ProcessGroup | None) -> Tensor:
    if len(set(sizes)) == 1:
        return gather_rows(x, group)
    largest = max(sizes)
    padded = x.new_zeros(largest, *x.shape[1:])
    padded[:len(x)] = x
    shards = gather_rows(padded, group).split(largest)
    return torch.cat([shard[:size] for shard, size in zip(shards, sizes)])


def checked_sizes(op: str, own: int, sizes: tuple[int, ...] | None, group: ProcessGroup | None) -> tuple[int, ...]:
    """The rows of every rank, `own` here; all like ours when not given. Raises ValueError naming the argument."""
    ranks = 1 if group is None else group.size()
    if sizes is None:
        return (own,) * ranks
    if len(sizes) != ranks or sizes[rank_in(group)] != own or min(sizes) < 1:
        raise ValueError(f"{op}: sizes must be {ranks} numbers of 1 or more, that of rank {rank_in(group)} being {own}, got {tuple(sizes)}")
    return tuple(sizes)
