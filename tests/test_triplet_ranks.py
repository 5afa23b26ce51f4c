"""Triplet loss on several gloo ranks, even and uneven: loss, active share and gradients of one process; what is sent."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsengine.kernels import triplet
from dsengine.kernels.triplet import reference

sys.path.append(str(Path(__file__).parent))
from gloo_ranks import load_worker, run_ranks  # noqa: E402

worker = load_worker("triplet_ranks")


def _close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() <= 1e-9 * want.abs().max())


@pytest.fixture(scope="module", params=[[5, 5], [6, 2], [1, 4, 2, 4], [3, 3, 3, 3]], ids=str)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], list[dict]]:
    """Rows of each rank, and what each rank found."""
    return request.param, run_ranks("triplet_ranks", tmp_path_factory.mktemp("ranks"), request.param)


@pytest.mark.parametrize("form", [*worker.CASES, "dense l1 compiled"])
def test_the_mean_over_ranks_is_the_loss_and_gradient_of_one_process(ran: tuple[list[int], list[dict]], form: str) -> None:
    sizes, ranks = ran
    if form not in ranks[0]:
        pytest.skip("compiled with two ranks only: it takes long")
    name = form.removesuffix(" compiled")
    options = dict(worker.CASES[name][1])
    inputs = [torch.cat(parts).requires_grad_() for parts in zip(*(worker.rows(name, sizes, rank) for rank in range(len(sizes))))]
    negative = inputs[2] if name == "given" else torch.roll(inputs[1], options["shift"], 0)
    loss = reference.triplet(*inputs[:2], negative, 0.5, options.get("distance", "euclidean"), options.get("soft_margin", False))
    active = triplet(*(x.detach() for x in inputs), margin=0.5, **options)[1]
    found = [r[form] for r in ranks]
    assert _close(torch.stack([f[0] for f in found]).mean(), loss.detach()) and _close(torch.stack([f[1] for f in found]).mean(), active)
    for k, whole in enumerate(torch.autograd.grad(loss, inputs)):
        assert _close(torch.cat([f[2 + k] for f in found]) / len(sizes), whole)


@pytest.mark.parametrize("name", worker.CASES)
def test_evaluation_gives_the_same_and_only_the_rows_travel(ran: tuple[list[int], list[dict]], name: str) -> None:
    sizes, ranks = ran
    shape, options = worker.CASES[name]
    row_bytes = 8 * max(sizes) * torch.Size(shape).numel()
    gathered = 1 if "shift" in options else 0
    for r in ranks:
        assert all(_close(a, b) for a, b in zip(r[f"{name} alone"], r[name]))
        assert r[f"{name} sent"] == [row_bytes] * 2 * gathered, "not the anchors and the positives, once each"
        assert r[f"{name} alone sent"] == [row_bytes] * gathered, "not the positives, once"


def test_sizes_that_do_not_fit_are_named() -> None:
    rows = torch.ones(4, 3)
    for sizes in ((4, 4), (3,)):
        with pytest.raises(ValueError, match="triplet: sizes must be 1 numbers of 1 or more, that of rank 0 being 4"):
            triplet(rows, rows, shift=1, sizes=sizes)
