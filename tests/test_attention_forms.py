"""Attention on CPU: the closed-form gradient, what is kept for it, dtypes, compiled."""

import pytest
import torch
from torch import Tensor

from dsengine.kernels import attention
from dsengine.kernels.attention import reference


def _inputs(N: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = [*torch.randn(2, 2, N, 3, dtype=dtype), *torch.randn(2, 2, N, 5, dtype=dtype), torch.tensor(0.7, dtype=dtype)]
    return [x.requires_grad_() for x in made]


def _plain(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    return gamma * (torch.softmax(q @ k.mT, -1) @ v) + x


@pytest.mark.parametrize("N", [1, 2, 7, 33])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_the_closed_form_gradient_matches_autograd_of_the_definition(N: int, gamma: float) -> None:
    inputs = _inputs(N)
    inputs[4].data.fill_(gamma)
    weight = torch.randn(2, N, 5, dtype=torch.float64)
    ours, plain = ((form(*inputs) * weight).sum() for form in (attention, _plain))
    for got, want in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs)):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-13)


def test_the_probabilities_are_not_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        attention(*_inputs(50))
    assert kept and sum(kept) == 2 * (2 * 50 * 3) + 2 * 50 * 5 + 1  # q, k, v, gamma; (2, 50, 50) would be 5000


def test_one_element_gamma_of_any_shape_gets_a_gradient_of_that_shape() -> None:
    *inputs, _ = _inputs()
    for shape in ((), (1,), (1, 1, 1)):
        gamma = torch.full(shape, 0.5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.grad(attention(*inputs, gamma).sum(), gamma)[0].shape == shape


def test_autocast_takes_the_products_in_bf16_and_keeps_the_wider_dtype_of_x() -> None:
    inputs = _inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = attention(*inputs)
    assert y.dtype == torch.float32 and not torch.equal(y, _plain(*inputs))
    assert torch.allclose(y, _plain(*inputs), atol=0.05)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), inputs))
    low = [x.detach().bfloat16() for x in inputs[:4]]
    assert attention(*low, inputs[4]).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(*(x.double() for x in inputs)).dtype == torch.float64


def test_it_compiles_without_a_graph_break() -> None:
    inputs = _inputs(dtype=torch.float32)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = [form(*inputs) for form in (compiled, attention)]
    assert torch.allclose(*results, rtol=1e-6)
    for got, want in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in results)):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)


def test_low_precision_probabilities_are_summed_in_fp32() -> None:
    q, k = torch.randn(2, 1, 3, 4).bfloat16()
    assert reference._probabilities(q, k).dtype == torch.float32


@pytest.mark.parametrize("name, value, message", [
    ("v", torch.ones(2, 5, 6).double(), "one dtype, got torch.float32, torch.float32, torch.float64"),
    ("v", torch.ones(2, 5, 0), r"v must not be empty, got \(2, 5, 0\)"),
    ("gamma", torch.ones((), device="meta"), "gamma must be on cpu like q, got meta"),
])
def test_dtypes_devices_and_emptiness_are_named(name: str, value: Tensor, message: str) -> None:
    arguments = dict(q=torch.ones(2, 5, 3), k=torch.ones(2, 5, 3), v=torch.ones(2, 5, 6), x=torch.ones(2, 5, 6), gamma=torch.ones(()))
    arguments[name] = value
    arguments["x"] = arguments["x"][..., :arguments["v"].shape[-1]]
    with pytest.raises(ValueError, match=f"attention: .*{message}"):
        attention(**arguments)
