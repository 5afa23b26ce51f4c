"""The moving average of a network, and what its target does with its BatchNorms."""

import math

import pytest
import torch
from torch import nn

from dsengine.nn.ema import follow_, follower, tau_at
from dsengine.nn.norm import GroupedBatchNorm2d


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), GroupedBatchNorm2d(4)).double()


def _randomised(network: nn.Module) -> nn.Module:
    for t in (*network.parameters(), *network.buffers()):
        if t.is_floating_point():
            t.data.normal_().abs_()
    return network


def test_after_k_steps_the_target_is_the_closed_form_for_weights_and_buffers() -> None:
    online = _randomised(_network())
    target = follower(online)
    _randomised(target)
    start = {key: t.clone() for key, t in target.state_dict().items()}
    online[1].num_batches_tracked.fill_(7)
    for _ in range(11):
        follow_(target, online, 0.9)
    for key, t in target.state_dict().items():
        goal = online.state_dict()[key]
        expected = goal + 0.9**11 * (start[key] - goal) if t.is_floating_point() else goal
        assert torch.allclose(t, expected, rtol=1e-12), key
    assert target[1].num_batches_tracked == 7


def test_a_moving_online_network_is_followed_by_the_geometric_sum() -> None:
    online = _network()
    target = follower(online)
    first, weights = target[0].weight.clone(), []
    for _ in range(5):
        online[0].weight.data.normal_()
        weights.append(online[0].weight.clone())
        follow_(target, online, 0.7)
    expected = 0.7**5 * first + sum(0.3 * 0.7 ** (4 - k) * w for k, w in enumerate(weights))
    assert torch.allclose(target[0].weight, expected, rtol=1e-12)


def test_the_copy_shares_no_memory_takes_no_gradient_and_counts_no_batch_of_its_own() -> None:
    online = _network()
    target = follower(online)
    kept = {key: t.clone() for key, t in target.state_dict().items() if key != "1.num_batches_tracked"}
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64) * 3 + 2
    assert torch.equal(target(x), online(x))  # both by the statistics of the batch
    assert not target(x).requires_grad
    assert all(torch.equal(target.state_dict()[key], t) for key, t in kept.items())
    assert not torch.equal(online[1].running_mean, target[1].running_mean)
    online[0].weight.data.zero_()
    assert torch.equal(target[0].weight, kept["0.weight"])


def test_tau_is_constant_or_rises_to_one_on_half_a_cosine() -> None:
    assert tau_at(0.99, 0.3, schedule="constant") == 0.99
    assert [tau_at(0.996, p, schedule="cosine") for p in (0.0, 1.0)] == pytest.approx([0.996, 1.0])
    assert tau_at(0.996, 0.25, schedule="cosine") == pytest.approx(1 - 0.004 * (math.cos(math.pi / 4) + 1) / 2)
