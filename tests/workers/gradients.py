"""One rank of test_distributed.py: a few training steps, then loss, gradients and running statistics to a file.

Arguments: corpus, output file, precision. Rank and world size come from the environment, as a launcher sets them.
"""

import sys

import torch
from torch import nn

import dsengine
from dsengine import dist
from dsengine.data.loader import Loader
from dsengine.data.sample import sized
from dsengine.engine.optim import make_optimizer
from dsengine.engine.precision import place
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step, forward
from dsengine.nn.norm import running_statistics, set_groups

BATCH, GROUP = 16, 4
# Adam's first steps turn a gradient of rounding noise into a full-size update, so only fp64 can be compared after some.
STEPS = {"fp64": 2, "fp32": 0}


def main(corpus: str, out: str, precision: str) -> None:
    torch.set_num_threads(1)
    world = dist.join(torch.device("cpu"))
    torch.manual_seed(0)
    method = dsengine.build_method("csf", encoder=dsengine.build_encoder("resnet18_attn"), margin=20.0)
    place(method, precision, torch.device("cpu"))
    for block in (method.encoders["all"].attention3, method.encoders["all"].attention4):
        nn.init.constant_(block.gamma, 0.3)  # else q and k have no gradient
    set_groups(method, GROUP, BATCH // world.size)
    step = Step(method, make_optimizer(method, TrainConfig()), precision=precision, world=world)
    views = sized(method.views, 32)  # maps of 4 x 4 and 2 x 2 cells for the attention blocks
    with Loader(dsengine.open_corpus(corpus), views, BATCH, seed=1, rank=world.rank, world=world.size, level=1.0) as loader:
        batches = [next(loader)._replace(world=world) for _ in range(STEPS[precision] + 1)]
    losses = [step(batch, lr=1e-3)["loss"] for batch in batches[:-1]]
    losses.append(forward(step.module, batches[-1], precision)["loss"])
    losses[-1].backward()
    losses = torch.stack([loss.detach() for loss in losses])
    dist.mean_over_ranks_([losses, *running_statistics(method)], world)
    if world.rank == 0:
        torch.save({"losses": losses, "gradients": {n: p.grad for n, p in method.named_parameters()},
                    "running": running_statistics(method)}, out)
    dist.leave(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
