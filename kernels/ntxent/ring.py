"""The passes over a global batch that no rank holds: the rows of the others visit in turn, around the ring of ranks.

    hop 0: own rows against themselves      hop k: own rows against those of rank (own - k), while those of the next hop travel

Every sum over columns is a sum over ranks of such parts (the logsumexp by logaddexp, the projected gradient because the
projection is linear), so results differ from those of gathered rows by rounding alone. In memory are three shards: own rows,
the visiting ones and the next. A rank sends its size in rows (world - 1) times in each pass, where a gather sends it once in
forward, keeps all, and sends only weights in backward.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from dsengine.dist import exchange, rank_in
from dsengine.kernels.ntxent import passes


def forward(own_BVD: Tensor, inv_tau: Tensor, bounded: bool, sizes: tuple[int, ...], group: ProcessGroup) -> Tensor:
    """M (V, B, V) of own unit rows over those of all ranks; as `reference.forward`."""
    rows = own_BVD.transpose(0, 1)
    lse = passes.forward(rows, rows, inv_tau, 0, True, bounded)
    for shard in _visitors(own_BVD, sizes, group):
        lse = torch.logaddexp(lse, passes.forward(rows, shard.transpose(0, 1), inv_tau, 0, False, bounded))
    return lse


def backward(own_BVD: Tensor, weight_VBV: Tensor, row_scale_VB: Tensor, inv_tau: Tensor, bounded: bool, sizes: tuple[int, ...],
             group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Gradient (V, B, D) in at least fp32 and the sum over rows of its component along them (); as `reference.backward`."""
    rows = own_BVD.transpose(0, 1)
    own = passes.backward(rows, rows, weight_VBV, weight_VBV, row_scale_VB, inv_tau, 0, rows.shape[1], True, bounded)
    grad, along = own[0].to(inv_tau.dtype), own[1]
    weights = _visitors(weight_VBV.transpose(0, 1), sizes, group)
    for shard, weight in zip(_visitors(own_BVD, sizes, group), weights, strict=True):
        # No row has its positive there, and none is its own column.
        part, part_along = passes.backward(rows, shard.transpose(0, 1), weight_VBV, weight.transpose(0, 1).contiguous(), row_scale_VB,
                                           inv_tau, 0, 0, False, bounded)
        grad, along = grad.add_(part), along + part_along
    return grad, along.sum()


def _visitors(x: Tensor, sizes: tuple[int, ...], group: ProcessGroup) -> Iterator[Tensor]:
    """(B of that rank, ...) of every other rank, the one before this first; while one is at work, the next is on its way."""
    rank, world = rank_in(group), len(sizes)
    here, arrived = x.contiguous(), None
    for hop in range(1, world + 1):
        if arrived is not None:
            here = arrived()
        arrived = None if hop == world else exchange(here, sizes[(rank - hop) % world], group)
        if hop > 1:
            yield here
