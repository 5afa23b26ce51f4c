"""Grouped BatchNorm against plain BatchNorm2d applied group by group."""

import pytest
import torch
from torch import nn

from dsengine.nn.norm import GroupedBatchNorm2d, running_statistics, set_groups


def _pair(channels: int = 3) -> tuple[GroupedBatchNorm2d, nn.BatchNorm2d]:
    ours, plain = GroupedBatchNorm2d(channels).double(), nn.BatchNorm2d(channels).double()
    ours.weight.data.uniform_(0.5, 2)
    ours.bias.data.normal_()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def test_without_groups_it_is_batchnorm2d() -> None:
    ours, plain = _pair()
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(ours(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), plain.buffers()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_group_is_normalised_by_its_own_statistics(layout: torch.memory_format) -> None:
    ours, plain = _pair()
    set_groups(ours, group=2, batch=4)
    x = torch.randn(8, 3, 5, 2, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = torch.cat([plain(part) for part in x.split(2)])
    got = ours(x)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(got)
    for g, w in zip(torch.autograd.grad((got * weight).sum(), (x, ours.weight, ours.bias)),
                    torch.autograd.grad((expected * weight).sum(), (x, plain.weight, plain.bias))):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-12)


def test_running_statistics_take_one_update_per_view_with_groups_averaged() -> None:
    ours, _ = _pair()
    set_groups(ours, group=2, batch=4)
    x = torch.randn(8, 3, 5, 2, dtype=torch.float64) * 3 + 1
    ours(x)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for view in x.split(4):
        groups = [part.transpose(0, 1).flatten(1) for part in view.split(2)]
        mean = 0.9 * mean + 0.1 * torch.stack([g.mean(1) for g in groups]).mean(0)
        var = 0.9 * var + 0.1 * torch.stack([g.var(1, correction=1) for g in groups]).mean(0)
    assert torch.allclose(ours.running_mean, mean, rtol=1e-10)
    assert torch.allclose(ours.running_var, var, rtol=1e-8)
    assert ours.num_batches_tracked == 2


def test_ranks_average_to_the_running_statistics_of_one_rank() -> None:
    whole, _ = _pair()
    set_groups(whole, group=2, batch=8)
    halves = [_pair()[0] for _ in range(2)]
    for half in halves:
        set_groups(half, group=2, batch=4)
    for _ in range(3):
        x = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)  # two views
        whole(x.flatten(0, 1))
        for rank, half in enumerate(halves):
            half(x[:, 4 * rank:4 * rank + 4].flatten(0, 1))
    for name in ("running_mean", "running_var"):
        average = (getattr(halves[0], name) + getattr(halves[1], name)) / 2
        assert torch.allclose(average, getattr(whole, name), rtol=1e-10)


def test_evaluation_uses_running_statistics_whatever_the_batch() -> None:
    ours, plain = _pair()
    set_groups(ours, group=2, batch=4)
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)  # not a whole number of groups
    assert torch.equal(ours.eval()(x), plain.eval()(x))


def test_only_floating_running_buffers_are_listed_and_bad_groups_are_refused() -> None:
    module = nn.Sequential(GroupedBatchNorm2d(3), nn.Sequential(GroupedBatchNorm2d(4)))
    assert [b.numel() for b in running_statistics(module)] == [3, 3, 4, 4]
    with pytest.raises(ValueError, match="batch 6 must hold whole groups of 4"):
        set_groups(module, group=4, batch=6)


def test_a_step_that_is_not_finite_leaves_the_running_statistics_as_they_were() -> None:
    ours, _ = _pair()
    set_groups(ours, group=2, batch=4)
    ours(torch.randn(4, 3, 4, 4, dtype=torch.float64))
    before = [b.clone() for b in running_statistics(ours)]
    poisoned = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    poisoned[1, :, 0, 0] = float("nan")
    ours(poisoned)
    assert all(torch.equal(a, b) for a, b in zip(before, running_statistics(ours)))


def test_a_group_of_one_value_is_refused() -> None:
    ours, _ = _pair()
    set_groups(ours, group=1, batch=2)
    with pytest.raises(ValueError, match="has no variance"):
        ours(torch.randn(2, 3, 1, 1, dtype=torch.float64))
