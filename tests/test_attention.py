"""SAGAN attention: against a loop in float64, and the block's place in the encoder."""

import pytest
import torch

from dsengine.kernels import attention
from dsengine.nn.attention import SelfAttention


def _loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """One query at a time, from the formula."""
    y = torch.empty_like(x)
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            weight = torch.exp(torch.stack([q[b, i] @ k[b, j] for j in range(k.shape[1])]))
            y[b, i] = gamma * sum(w * v[b, j] for j, w in enumerate(weight)) / weight.sum() + x[b, i]
    return y


@pytest.mark.parametrize("B, N, Dk, Dv", [(1, 1, 1, 1), (2, 7, 3, 5), (1, 16, 4, 32)])
def test_attention_equals_the_formula_query_by_query(B: int, N: int, Dk: int, Dv: int) -> None:
    q, k = torch.randn(2, B, N, Dk, dtype=torch.float64)
    v, x = torch.randn(2, B, N, Dv, dtype=torch.float64)
    gamma = torch.tensor(0.7, dtype=torch.float64)
    assert torch.allclose(attention(q, k, v, x, gamma), _loop(q, k, v, x, gamma), rtol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    q, k = torch.randn(2, 2, 5, 3, dtype=torch.float64).requires_grad_().unbind(0)
    v, x = torch.randn(2, 2, 5, 4, dtype=torch.float64).requires_grad_().unbind(0)
    gamma = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (q, k, v, x, gamma))


def test_a_fresh_block_is_the_identity_and_gamma_learns() -> None:
    block = SelfAttention(16)
    x = torch.randn(2, 16, 3, 4)
    y = block(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.gamma.grad.abs() > 0


def test_the_block_equals_its_convolutions() -> None:
    block = SelfAttention(16).double()
    block.gamma.data.fill_(0.5)
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    q, k, v = (conv(x).flatten(2).mT for conv in (block.query, block.key, block.value))
    expected = attention(q, k, v, x.flatten(2).mT, block.gamma).mT.reshape(x.shape)
    assert torch.allclose(block(x), expected, rtol=1e-12)
    assert torch.allclose(block(x.to(memory_format=torch.channels_last)), expected, rtol=1e-12)


@pytest.mark.parametrize("channels, count", [(256, 82_241), (512, 328_321)])
def test_parameter_count_is_the_papers(channels: int, count: int) -> None:
    assert sum(p.numel() for p in SelfAttention(channels).parameters()) == count


@pytest.mark.parametrize("name, shape", [("k", (2, 4, 3)), ("v", (2, 4, 6)), ("x", (2, 5, 7)), ("gamma", (2,))])
def test_a_shape_that_does_not_fit_is_named(name: str, shape: tuple[int, ...]) -> None:
    arguments = dict(q=torch.ones(2, 5, 3), k=torch.ones(2, 5, 3), v=torch.ones(2, 5, 6), x=torch.ones(2, 5, 6), gamma=torch.ones(()))
    with pytest.raises(ValueError, match=rf"attention: (q and )?{name} must"):
        attention(**{**arguments, name: torch.ones(shape)})
