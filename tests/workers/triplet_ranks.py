"""One rank of test_triplet_ranks.py: losses and gradients of this rank's rows to a file, and what was communicated.

Arguments: output folder, rows of each rank (comma-separated). Rank and world size come from the environment.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dsengine import dist
from dsengine.kernels import triplet

# Name -> (shape of a row, keyword arguments). A shift of 3 crosses ranks, some of them whole.
CASES = {"pooled": ((5,), dict(shift=3)), "dense l1": ((4, 3, 2), dict(shift=3, distance="l1")), "soft": ((5,), dict(shift=-1, soft_margin=True)),
         "given": ((5,), dict())}


def rows(name: str, sizes: list[int], rank: int) -> list[Tensor]:
    """Anchors and positives of one rank, and negatives where they are given; maps are channels-last on odd ranks."""
    shape, options = CASES[name]
    g = torch.Generator().manual_seed(rank)
    made = [torch.randn(sizes[rank], *shape, dtype=torch.float64, generator=g) for _ in range(2 if "shift" in options else 3)]
    return [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and rank % 2 else x for x in made]


def _count(sent: list[int]) -> None:
    """Let every gather append the bytes that this rank gives."""
    gather = dist._all_gather

    def counted(out: Tensor, x: Tensor, group: object) -> None:
        sent.append(x.numel() * x.element_size())
        gather(out, x, group=group)

    dist._all_gather = counted


def _one(form: Callable, name: str, world: dist.World, sizes: list[int]) -> list[Tensor]:
    """Loss, active share, gradients."""
    inputs = [x.requires_grad_() for x in rows(name, sizes, world.rank)]
    loss, active = form(*inputs, margin=0.5, group=world.group, sizes=tuple(sizes), **CASES[name][1])
    return [loss.detach(), active, *torch.autograd.grad(loss, inputs)]


def main(out: str, sizes_text: str) -> None:
    torch.set_num_threads(1)
    sizes, sent, results = [int(n) for n in sizes_text.split(",")], [], {}
    world = dist.join(torch.device("cpu"))
    if len(sizes) == 2:
        compiled = torch.compile(triplet, fullgraph=True, backend="aot_eager")
        results["dense l1 compiled"] = _one(compiled, "dense l1", world, sizes)
    _count(sent)
    for name, (_, options) in CASES.items():
        results[name] = _one(triplet, name, world, sizes)
        results[f"{name} sent"], sent[:] = sent[:], []
        with torch.no_grad():
            results[f"{name} alone"] = triplet(*rows(name, sizes, world.rank), margin=0.5, group=world.group, sizes=tuple(sizes), **options)
        results[f"{name} alone sent"], sent[:] = sent[:], []
    torch.save(results, Path(out) / str(world.rank))
    torch.compiler.reset()  # its guards hold the group, whose threads would outlive the interpreter and abort the process
    dist.leave(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
