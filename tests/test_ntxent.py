"""NT-Xent and InfoNCE on CPU: the two passes and their closed-form gradient against autograd of the plain definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dsengine.kernels import info_nce, nt_xent
from dsengine.kernels.ntxent import reference

SHAPES = [(2, 1, 1), (2, 1, 7), (2, 2, 3), (2, 63, 7), (2, 127, 64), (3, 1, 5), (3, 31, 13), (4, 17, 128), (2, 100, 512)]


def _rows(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype).mul_(3).requires_grad_()


def _by_the_letter(z: Tensor, tau: float, denominator: str) -> Tensor:
    """Row by row, straight from the words of the definition."""
    V, B, _ = z.shape
    cos = torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in z.flatten(0, 1)]) for a in z.flatten(0, 1)])
    losses = []
    for i in range(V * B):
        for w in set(range(V)) - {i // B}:
            views = range(V) if denominator == "all" else (i // B, w)
            others = [v * B + b for v in views for b in range(B) if v * B + b != i]
            losses.append(torch.logsumexp(cos[i, others] / tau, 0) - cos[i, w * B + i % B] / tau)
    return torch.stack(losses).mean()


def _assert_equal(got: Tensor, want: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-9) -> None:
    """Losses, and all gradients relative to their largest entry."""
    assert abs(got - want) <= tolerance * max(abs(want.item()), 1e-3)
    gradients = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (got, want))
    for g, w in zip(*gradients):
        assert g.shape == w.shape and g.dtype == w.dtype
        assert (g - w).abs().max() <= tolerance * max(w.abs().max().item(), 1e-3)


@pytest.mark.parametrize("denominator", reference.DENOMINATORS)
@pytest.mark.parametrize("views", [2, 3, 4])
def test_the_plain_form_is_the_definition(views: int, denominator: str) -> None:
    z = _rows(views, 4, 3)
    expected = _by_the_letter(z, 0.3, denominator)
    _assert_equal(reference.nt_xent(z, 0.3, denominator), expected, (z,))
    if views == 2:
        _assert_equal(reference.nt_xent(z, 0.3, "all"), expected, (z,))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("denominator", reference.DENOMINATORS)
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_loss_and_gradient_match_autograd_of_the_plain_form(shape: tuple[int, ...], denominator: str, tau: float) -> None:
    z = _rows(*shape)
    _assert_equal(nt_xent(z, tau, denominator=denominator), reference.nt_xent(z, tau, denominator), (z,))


@pytest.mark.parametrize("denominator", reference.DENOMINATORS)
@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 4, 6)])
def test_a_learnable_temperature_gets_its_gradient(shape: tuple[int, ...], denominator: str) -> None:
    z, tau = _rows(*shape), torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    _assert_equal(nt_xent(z, tau, denominator=denominator), reference.nt_xent(z, tau, denominator), (z, tau))
    frozen = z.detach()
    assert torch.autograd.grad(nt_xent(frozen, tau), tau)[0].abs() > 0


@pytest.mark.parametrize("num_keys", [5, 6, 12])
@pytest.mark.parametrize("tau", [0.01, 0.1, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)])
def test_info_nce_matches_cross_entropy_of_the_similarities(num_keys: int, tau: float | Tensor) -> None:
    q, k = _rows(5, 7), _rows(num_keys, 7)
    inputs = (q, k, tau) if isinstance(tau, Tensor) else (q, k)
    _assert_equal(info_nce(q, k, tau), reference.info_nce(q, k, tau), inputs)
    _assert_equal(info_nce(q, k.detach(), tau), reference.info_nce(q, k.detach(), tau), (q,))


def test_gradients_pass_gradcheck() -> None:
    z, tau = _rows(3, 3, 4), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for denominator in reference.DENOMINATORS:
        assert torch.autograd.gradcheck(lambda z, tau: nt_xent(z, tau, denominator=denominator), (z, tau))
    assert torch.autograd.gradcheck(info_nce, (_rows(3, 4), _rows(5, 4), tau))


def test_small_tiles_give_the_result_of_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    z = _rows(3, 37, 5)
    whole = nt_xent(z, 0.1)
    for side in (1, 5, 36, 37):
        monkeypatch.setattr(reference, "SIDE", side)
        _assert_equal(nt_xent(z, 0.1), whole, (z,), 1e-12)


@pytest.mark.parametrize("denominator", reference.DENOMINATORS)
def test_the_order_of_views_does_not_matter(denominator: str) -> None:
    z, order = _rows(4, 9, 5), [2, 0, 3, 1]
    loss, permuted = nt_xent(z, 0.1, denominator=denominator), nt_xent(z[order], 0.1, denominator=denominator)
    _assert_equal(permuted, loss, (z,), 1e-12)


def test_strides_and_length_of_rows_do_not_matter() -> None:
    z = _rows(2, 8, 6)
    spread = torch.stack([z.permute(2, 1, 0)] * 2, dim=1)[:, 1].permute(2, 1, 0)
    assert not spread.is_contiguous()
    _assert_equal(nt_xent(spread, 0.1), nt_xent(z, 0.1), (z,), 1e-12)
    assert torch.allclose(nt_xent(z * 1e6, 0.1), nt_xent(z, 0.1), rtol=1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0, torch.tensor(0.01)])
@pytest.mark.parametrize("kind", ["random", "identical rows", "opposite views", "a row of zeros"])
def test_extreme_rows_and_temperatures_stay_finite(tau: float | Tensor, kind: str) -> None:
    z = torch.randn(2, 33, 16)
    if kind == "identical rows":
        z = z[:1, :1].expand(2, 33, 16).clone()
    elif kind == "opposite views":
        z[1] = -z[0]
    elif kind == "a row of zeros":
        z[0, 3] = 0
    z.requires_grad_()
    loss = nt_xent(z, tau)
    (grad,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(loss) and torch.isfinite(grad).all()
    if kind == "identical rows":
        assert abs(loss.item() - math.log(65)) < 1e-4 and grad.abs().max() < 1e-5
    if kind == "a row of zeros":
        assert grad[0, 3].abs().max() == 0


def test_a_nan_row_reaches_loss_and_gradient() -> None:
    z = torch.randn(2, 5, 3)
    z[1, 2, 0] = math.nan
    for tau in (0.01, 0.1):
        loss = nt_xent(z.requires_grad_(), tau)
        assert torch.isnan(loss) and torch.isnan(torch.autograd.grad(loss, z)[0]).all(dim=2).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_low_precision_is_at_most_twice_as_wrong_as_stock_torch_also_under_autocast(dtype: torch.dtype, tau: float) -> None:
    z = torch.randn(2, 127, 64).to(dtype).requires_grad_()
    exact_z = z.detach().double().requires_grad_()
    exact = reference.nt_xent(exact_z, tau)
    (exact_grad,) = torch.autograd.grad(exact, exact_z)
    stock = reference.nt_xent(z, tau)
    (stock_grad,) = torch.autograd.grad(stock, z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z, tau)
    (grad,) = torch.autograd.grad(loss, z)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert abs(loss - exact) <= 2 * abs(stock - exact) + 1e-6 * exact
    assert (grad - exact_grad).abs().max() <= 2 * (stock_grad - exact_grad).abs().max() + 1e-7 * exact_grad.abs().max()


class _Largest(TorchDispatchMode):
    """Number of elements of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 (torch's own signature)
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple) else (out,):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return out


def test_no_tensor_is_larger_than_a_tile() -> None:
    V, B, D = 2, 2048, 16
    z_BVD, inv_norm = reference.normalise(torch.randn(V, B, D))
    z, inv_tau = z_BVD.transpose(0, 1), torch.tensor(10.0)
    with _Largest() as largest:
        lse = reference.forward(z, z, inv_tau, 0, True, True)
        _, weight = reference.finish(lse, reference.positives(z, z, inv_tau), "pairs")
        reference.backward(z, z, weight, weight, inv_norm, inv_tau, 0, B, True, True)
    assert V * B * D <= largest.elements <= max(reference.SIDE**2, V * B * D) < V * B * B


def test_the_op_compiles_whole_and_passes_opcheck() -> None:
    z = _rows(2, 6, 5)
    compiled = torch.compile(lambda z: nt_xent(z, 0.1), fullgraph=True, backend="aot_eager")
    _assert_equal(compiled(z), nt_xent(z, 0.1), (z,), 1e-12)
    q, k = _rows(4, 5), _rows(6, 5)
    _assert_equal(torch.compile(info_nce, fullgraph=True, backend="aot_eager")(q, k), info_nce(q, k), (q, k), 1e-12)
    z_BVD, inv_norm = torch.ops.dsengine.ntxent_normalise(z.detach())
    rows, inv_tau = z_BVD.transpose(0, 1), torch.tensor(10.0, dtype=torch.float64)
    weight = torch.zeros(2, 6, 2, dtype=torch.float64)
    for op, arguments in ((torch.ops.dsengine.ntxent_normalise, (z.detach(),)),
                          (torch.ops.dsengine.ntxent_forward, (rows, rows, inv_tau, 0, True, True)),
                          (torch.ops.dsengine.ntxent_backward,
                           (rows, rows, weight, weight, inv_norm, inv_tau, 0, 6, True, True))):
        torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("change, message", [
    (dict(z=torch.ones(1, 4, 3)), r"z must be \(V, B, D\) with V >= 2 and not empty, got \(1, 4, 3\)"),
    (dict(z=torch.ones(4, 3)), r"got \(4, 3\)"),
    (dict(z=torch.ones(2, 0, 3)), "not empty"),
    (dict(z=torch.ones(2, 4, 3, dtype=torch.int32)), "z must be floating point, got torch.int32"),
    (dict(temperature=0.0), "temperature must be positive and finite, got 0.0"),
    (dict(temperature=torch.ones(2)), r"temperature must be one floating-point element, got \(2,\)"),
    (dict(denominator="some"), "'some' is unknown; legal: pairs, all"),
    (dict(sizes=(4, 4)), "sizes must be 1 numbers of 1 or more, that of rank 0 being 4"),
])
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nt_xent(**{"z": torch.ones(2, 4, 3), **change})


def test_bad_queries_and_keys_are_named() -> None:
    for queries, keys, message in ((torch.ones(3), torch.ones(3), r"queries must be \(B, D\)"),
                                   (torch.ones(4, 3), torch.ones(3, 3), r"keys must be \(K, 3\) with K >= 4"),
                                   (torch.ones(4, 3), torch.ones(4, 3).double(), "keys must be torch.float32 like queries")):
        with pytest.raises(ValueError, match=message):
            info_nce(queries, keys)
