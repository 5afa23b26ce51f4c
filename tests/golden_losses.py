"""The first losses of every method, for test_golden.py: small encoders, float64, Adam, data and weights from integer arithmetic.

`python tests/golden_losses.py` writes tests/expected/golden_losses.json anew. Do that only with a change that is meant to change what is learned, and
say in its commit which methods moved and why.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import CASES, encoder_for, make, make_batch  # noqa: E402

from dsengine.data.sample import Batch  # noqa: E402
from dsengine.dist import SOLO  # noqa: E402
from dsengine.engine.optim import make_optimizer  # noqa: E402
from dsengine.engine.precision import place  # noqa: E402
from dsengine.engine.settings import TrainConfig  # noqa: E402
from dsengine.engine.step import Step  # noqa: E402
from dsengine.methods import Method  # noqa: E402
from dsengine.nn.norm import set_groups  # noqa: E402

EXPECTED = Path(__file__).parent / "expected" / "golden_losses.json"
ROWS, GROUP, STEPS = 8, 4, 10
# Other forms of a loss than the method's default.
FORMS = {"csf nce": ("csf", {"loss": "nce"}), "csf per_cell": ("csf", {"per_cell": True, "distance": "l1", "margin": 0.1, "normalize": False}),
         "t2v per_cell": ("t2v", {"per_cell": True, "normalize": False, "margin": 0.1}), "vae beta": ("vae", {"beta": 1.0}),
         "byol one_way": ("byol", {"one_way": True, "tau_schedule": "cosine"}), "simsiam paper3": ("simsiam", {"projector": "paper3"})}
NAMES = [*CASES, *FORMS]


def spread(shape: tuple[int, ...], salt: int) -> Tensor:
    """Numbers in [-1, 1) that look drawn: the same on every machine, whatever its libraries."""
    at = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64) + np.uint64(salt * 1_000_003)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64's finaliser
        at = (at ^ (at >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy((at >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(shape)


def losses(name: str) -> list[float]:
    """Of the first steps of the method `name`."""
    case, settings = FORMS.get(name, (name, {}))
    method = make(case, encoder_for(case, normed=True), **settings)
    _fill(method)
    method = place(method, "fp64", torch.device("cpu"))
    set_groups(method, GROUP, ROWS)
    step = Step(method, make_optimizer(method, TrainConfig()), precision="fp64", world=SOLO)
    found = []
    for k in range(STEPS):
        found.append(step(_batch(method, k), lr=1e-3)["loss"].item())
        method.after_step((k + 1) / STEPS)
    return found


def _fill(method: nn.Module) -> None:
    """Weights that no generator drew; norms and what follows another network keep what they begin with."""
    with torch.no_grad():
        for k, (name, p) in enumerate(method.named_parameters()):
            if p.ndim > 1:
                p.copy_(spread(tuple(p.shape), k) * (3 / p[0].numel()) ** 0.5)
            elif name.endswith("bias"):
                p.copy_(spread(tuple(p.shape), k) * 0.1)


def _batch(method: Method, step: int) -> Batch:
    """Views of one row share a colour; dates that are missing stay so."""
    batch, views = make_batch(method, ROWS, step=step, seed=step), []
    for k, view in enumerate(batch.views):
        colour = spread((ROWS, *[1] * (view.ndim - 1)), 100 + step) * torch.linspace(-1, 2, view.shape[1]).double().view(-1, *[1] * (view.ndim - 2))
        values = 2 * colour + spread(tuple(view.shape), 1000 + 10 * step + k)
        views.append(torch.where(view.isnan(), view.double(), values).float())
    return batch._replace(views=tuple(views))


if __name__ == "__main__":
    torch.set_num_threads(1)
    EXPECTED.write_text(json.dumps({name: losses(name) for name in NAMES}, indent=1) + "\n")
