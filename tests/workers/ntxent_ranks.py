"""One rank of test_ntxent_ranks.py: losses and gradients of this rank's rows to a file, and what was communicated.

Arguments: output folder, rows of each rank (comma-separated). Rank and world size come from the environment.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from dsengine import dist
from dsengine.kernels import info_nce, nt_xent
from dsengine.kernels.ntxent import op

VIEWS, FEATURES, EXTRA_KEYS = 3, 5, 2


def rows(sizes: list[int], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """z (V, B, D), queries (B, D) and keys (B + EXTRA_KEYS, D) of one rank."""
    g = torch.Generator().manual_seed(rank)
    make = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=g)
    return make(VIEWS, sizes[rank], FEATURES), make(sizes[rank], FEATURES), make(sizes[rank] + EXTRA_KEYS, FEATURES)


def _count(sent: list[int]) -> None:
    """Let every gather and every exchange append the bytes that this rank gives."""
    gather, exchange = dist._all_gather, dist._exchange

    def exchanged(ops: list) -> list:
        sent.append(ops[0].tensor.numel() * ops[0].tensor.element_size())
        return exchange(ops)

    def counted(out: Tensor, x: Tensor, group: object) -> None:
        sent.append(x.numel() * x.element_size())
        gather(out, x, group=group)

    dist._all_gather, dist._exchange = counted, exchanged


def main(out: str, sizes_text: str) -> None:
    torch.set_num_threads(1)
    sizes, sent = [int(n) for n in sizes_text.split(",")], []
    world = dist.join(torch.device("cpu"))
    _count(sent)
    z, queries, keys = (x.requires_grad_() for x in rows(sizes, world.rank))
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    results = {}
    for denominator in ("pairs", "all"):
        loss = nt_xent(z, tau, world.group, denominator=denominator, sizes=tuple(sizes))
        results[denominator] = [loss.detach(), *torch.autograd.grad(loss, (z, tau))]
    results["sent"], sent[:] = sent[:2], []
    op.RING_BYTES = 0
    for denominator in ("pairs", "all"):
        loss = nt_xent(z, tau, world.group, denominator=denominator, sizes=tuple(sizes))
        results[f"{denominator} ring"] = [loss.detach(), *torch.autograd.grad(loss, (z, tau))]
    results["ring sent"], sent[:] = sent[:len(sent) // 2], []
    sent.clear()
    if len(set(sizes)) == 1:
        loss = info_nce(queries, keys, tau, world.group)
        results["info_nce"] = [loss.detach(), *torch.autograd.grad(loss, (queries, keys, tau))]
        results["info_nce sent"] = sent[:]
    torch.save(results, Path(out) / str(world.rank))
    dist.leave(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
