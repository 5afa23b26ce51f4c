"""One rank of test_methods_ranks.py: some steps of every method in every form, then losses, gradients and state to a file.

Argument: output file. Rank and world size come from the environment, as a launcher sets them.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from method_cases import CASES, encoder_for, make, make_batch  # noqa: E402

from dsengine import dist  # noqa: E402
from dsengine.data.order import local_slice  # noqa: E402
from dsengine.data.sample import Batch  # noqa: E402
from dsengine.engine.optim import make_optimizer  # noqa: E402
from dsengine.engine.precision import place  # noqa: E402
from dsengine.engine.settings import TrainConfig  # noqa: E402
from dsengine.engine.step import Step  # noqa: E402
from dsengine.nn.norm import running_statistics, set_groups  # noqa: E402

ROWS, GROUP, STEPS = 24, 3, 2
# form -> (samples a pass, samples a BatchNorm group)
FORMS = {"whole": (None, GROUP), "passes": (GROUP, GROUP), "global": (None, "global")}


def share(batch: Batch, world: dist.World) -> Batch:
    """This rank's rows of a global batch."""
    mine = local_slice(ROWS, world.rank, world.size)
    label = None if batch.label is None else batch.label[mine]
    return batch._replace(views=tuple(view[mine] for view in batch.views), sample_id=batch.sample_id[mine], label=label, world=world)


def results(name: str, form: str, world: dist.World) -> dict:
    """Losses of some steps, and after them gradients, scalars and everything that a checkpoint would hold."""
    micro_batch, group = FORMS[form]
    torch.manual_seed(0)
    method = place(make(name, encoder_for(name, normed=True)), "fp64", torch.device("cpu"))
    set_groups(method, group, micro_batch or ROWS // world.size, world=world)
    step = Step(method, make_optimizer(method, TrainConfig()), precision="fp64", world=world, micro_batch=micro_batch)
    losses = []
    for k in range(STEPS):
        losses.append(step(share(make_batch(method, ROWS, step=k, seed=k), world), lr=1e-3)["loss"])
        method.after_step((k + 1) / STEPS)
    scores = step.differentiate(share(make_batch(method, ROWS, step=STEPS, seed=STEPS), world))
    losses = torch.stack([*losses, scores["loss"].detach()])
    dist.mean_over_ranks_([losses, *running_statistics(method)], world)
    return {"losses": losses, "scores": {key: value.detach() for key, value in scores.items()}, "state": method.state_dict(),
            "gradients": {key: p.grad for key, p in method.named_parameters() if p.requires_grad}}


def main(out: str) -> None:
    torch.set_num_threads(1)
    world = dist.join(torch.device("cpu"))
    forms = FORMS if world.size < 4 else ("whole", "global")
    found = {form: {name: results(name, form, world) for name in CASES} for form in forms}
    if world.rank == 0:
        torch.save(found, out)
    dist.leave(world)


if __name__ == "__main__":
    main(sys.argv[1])
