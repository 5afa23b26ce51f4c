"""Grouped BatchNorm on CPU: the definition's gradient, torch's kernel against the definition, dtypes, compiled, refusals."""

import pytest
import torch
from torch import Tensor

from dsengine.kernels.batchnorm import op, reference

FORMS = [(False, False), (False, True), (True, False), (True, True)]


def _inputs(*, residual: bool) -> list[Tensor]:
    """x (4, 3, 5, 2), weight, bias and, where asked, the residual, in float64."""
    made = [torch.randn(4, 3, 5, 2), torch.rand(3) + 0.5, torch.randn(3), *([torch.randn(4, 3, 5, 2)] if residual else [])]
    return [t.double().requires_grad_() for t in made]


def _plain(relu: bool, x: Tensor, weight: Tensor, bias: Tensor, other: Tensor | None = None) -> reference.Normed:
    return reference.batch_norm(x, weight, bias, group=2, eps=1e-5, residual=other, relu=relu)


def _ours(relu: bool, x: Tensor, weight: Tensor, bias: Tensor, other: Tensor | None = None) -> reference.Normed:
    return op.batch_norm(x, weight, bias, group=2, residual=other, relu=relu)


@pytest.mark.parametrize("form", [_plain, _ours])
@pytest.mark.parametrize("residual, relu", FORMS)
def test_the_definition_and_the_op_pass_gradcheck(form: object, residual: bool, relu: bool) -> None:
    assert torch.autograd.gradcheck(lambda *inputs: form(relu, *inputs).y, _inputs(residual=residual))


@pytest.mark.parametrize("residual, relu", FORMS)
def test_the_closed_form_gradient_is_that_of_the_definition(residual: bool, relu: bool) -> None:
    inputs = _inputs(residual=residual)
    x, weight, bias, *other = (t.detach() for t in inputs)
    y = _plain(relu, *inputs).y
    seed = torch.randn_like(y)
    closed = reference.gradients(seed, x, weight, bias, group=2, eps=1e-5, residual=other[0] if other else None, relu=relu)
    for got, truth in zip(closed, torch.autograd.grad(y, inputs, seed)):
        assert torch.allclose(got, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("residual, relu", FORMS)
def test_cpu_tensors_take_torchs_kernel_with_the_same_result(residual: bool, relu: bool) -> None:
    inputs = _inputs(residual=residual)
    got, truth = _ours(relu, *inputs), _plain(relu, *inputs)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(got, truth))
    assert not got.mean.requires_grad and not got.var.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_statistics_are_fp32_and_y_has_the_dtype_of_x_whatever_else_has(dtype: torch.dtype, weights: torch.dtype) -> None:
    x, weight, bias, other = (t.detach() for t in _inputs(residual=True))
    made = x.to(dtype).requires_grad_(), weight.to(weights).requires_grad_(), bias.to(weights), other.float().requires_grad_()
    got = _ours(True, *made)
    truth = _plain(True, *(t.detach().double() for t in made))
    assert got.y.dtype == dtype and got.mean.dtype == got.var.dtype == torch.float32
    assert (got.mean - truth.mean).abs().max() < 1e-5 and (got.y - truth.y).abs().max() < 0.06
    grads = torch.autograd.grad(got.y.float().sum(), (made[0], made[1], made[3]))
    assert [g.dtype for g in grads] == [dtype, weights, torch.float32]


def test_the_variance_of_equal_numbers_is_not_negative() -> None:
    values = torch.tensor([0.1, 0.3, 1e3, -7.7])[None, :, None, None].expand(2, 4, 5, 5).contiguous()
    assert (op.batch_norm(values, torch.ones(4), torch.ones(4), group=2).var >= 0).all()


@pytest.mark.parametrize("residual, relu", FORMS)
def test_it_compiles_without_a_graph_break(residual: bool, relu: bool) -> None:
    inputs = _inputs(residual=residual)
    compiled = torch.compile(lambda *leaves: _ours(relu, *leaves).y, fullgraph=True, backend="aot_eager")(*inputs)
    plain = _ours(relu, *inputs).y
    assert torch.allclose(compiled, plain, rtol=1e-12)
    for got, want in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (compiled, plain))):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("change, words", [
    (dict(x=torch.zeros(4, 3)), "x must be"), (dict(group=3), "group must divide the 4 samples"), (dict(weight=torch.ones(2)), "weight must be"),
    (dict(residual=torch.zeros(4, 3, 1, 2)), "residual must be"), (dict(x=torch.zeros(4, 3, 2, 2, dtype=torch.int32)), "of floats"),
    (dict(bias=torch.ones(3, device="meta")), "bias must be (3,) on cpu"),
    (dict(x=torch.zeros(4, 3, 1, 1), group=1), "has no variance")])
def test_illegal_arguments_are_named(change: dict, words: str) -> None:
    arguments = dict(x=torch.zeros(4, 3, 2, 2), weight=torch.ones(3), bias=torch.ones(3), group=2) | change
    with pytest.raises(ValueError, match="batch_norm") as error:
        op.batch_norm(**arguments)
    assert words in str(error.value)
