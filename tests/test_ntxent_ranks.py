"""NT-Xent and InfoNCE on several gloo ranks: losses and gradients of one process, and no more sent than z and L."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsengine.kernels.ntxent import reference

sys.path.append(str(Path(__file__).parent))
from gloo_ranks import load_worker, run_ranks  # noqa: E402

worker = load_worker("ntxent_ranks")


def _close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() <= 1e-9 * want.abs().max())


def _whole(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.fixture(scope="module", params=[[5, 5], [3, 3, 3, 3], [1, 4, 2, 4]], ids=str)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], list[dict]]:
    """Rows of each rank, and what each rank found."""
    return request.param, run_ranks("ntxent_ranks", tmp_path_factory.mktemp("ranks"), request.param)


@pytest.mark.parametrize("form", ["", " ring"], ids=["gathered", "ring"])
def test_the_mean_over_ranks_is_the_loss_and_gradient_of_one_process(ran: tuple[list[int], list[dict]], form: str) -> None:
    sizes, ranks = ran
    parts = [worker.rows(sizes, rank) for rank in range(len(sizes))]
    z, tau = torch.cat([p[0] for p in parts], 1).requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    for denominator in reference.DENOMINATORS:
        loss, grad, grad_tau = _whole(reference.nt_xent(z, tau, denominator), [z, tau])
        assert _close(torch.stack([r[denominator + form][0] for r in ranks]).mean(), loss)
        assert _close(torch.cat([r[denominator + form][1] for r in ranks], 1) / len(sizes), grad)
        assert _close(torch.stack([r[denominator + form][2] for r in ranks]).mean(), grad_tau)


def test_nothing_but_unit_rows_and_their_weights_travels(ran: tuple[list[int], list[dict]]) -> None:
    sizes, ranks = ran
    V, B, D = worker.VIEWS, max(sizes), worker.FEATURES
    assert all(r["sent"] == [8 * V * B * D, 8 * V * B * V] for r in ranks), "not z, then L per row and view"
    for rank, found in enumerate(ranks):
        # A rank passes on its own rows, then those of the ranks before it, but for the last, which are the next rank's own.
        passed = [sizes[(rank - hop) % len(sizes)] for hop in range(len(sizes) - 1)]
        rows, weights = [8 * V * n * D for n in passed], [8 * V * n * V for n in passed]
        hops = len(rows)
        assert found["ring sent"][:hops] == rows and sorted(found["ring sent"][hops:]) == sorted(rows + weights)


def test_info_nce_over_ranks_is_that_of_one_process(ran: tuple[list[int], list[dict]]) -> None:
    sizes, ranks = ran
    if len(set(sizes)) > 1:
        pytest.skip("queries and keys are equally many on all ranks")
    parts = [worker.rows(sizes, rank) for rank in range(2)]
    q, tau = torch.cat([p[1] for p in parts]).requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    k = torch.cat([p[2] for p in parts]).requires_grad_()
    # The keys with a positive first, as the plain form wants them.
    if len(sizes) > 2:
        pytest.skip("two ranks are enough")
    order = [*range(5), *range(7, 12), 5, 6, 12, 13]
    loss, grad_q, grad_k, grad_tau = _whole(reference.info_nce(q, k[order], tau), [q, k, tau])
    assert _close(torch.stack([r["info_nce"][0] for r in ranks]).mean(), loss)
    for index, whole in ((1, grad_q), (2, grad_k)):
        assert _close(torch.cat([r["info_nce"][index] for r in ranks]) / 2, whole)
    assert _close(torch.stack([r["info_nce"][3] for r in ranks]).mean(), grad_tau)
    B, K, D = 5, 5 + worker.EXTRA_KEYS, worker.FEATURES
    assert all(r["info_nce sent"] == [8 * K * D, 8 * B * D, 8 * B] for r in ranks), "not keys, then queries and L"
