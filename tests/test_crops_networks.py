"""The crop study's networks: counts by hand, each against its equations written out, and that every layer is trained."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.errors import UsageError
from dsengine.evaluate.crops.networks import Bilstm, Inception, Transformer, build, inception_kernels, sines

CHANNELS, CLASSES, DATES = 5, 4, 9
SHAPES = {"bilstm": Bilstm(hidden=6, layers=3, dropout=0.3), "inception": Inception(width=16, layers=7, kernel=12),
          "transformer": Transformer(width=8, layers=2, heads=4, dropout=0.3)}


def made(name: str, **changes: object) -> nn.Module:
    torch.manual_seed(1)
    return build(SHAPES[name], CHANNELS, CLASSES, DATES).double().eval()


def series(count: int = 3) -> Tensor:
    return torch.randn(count, DATES, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_parameters_of_the_bilstm_are_as_counted_by_hand() -> None:
    hidden, layers = 6, 3
    widths = [CHANNELS, 2 * hidden, 2 * hidden]
    lstm = sum(2 * (4 * hidden * width + 4 * hidden * hidden + 8 * hidden) for width in widths)
    last = 2 * layers * hidden
    assert count(made("bilstm")) == 2 * CHANNELS + lstm + 2 * last + last * CLASSES + CLASSES


def test_parameters_of_inception_are_as_counted_by_hand() -> None:
    filters, kernels = 4, 11 + 5 + 3
    modules = sum(c * filters + filters * filters * kernels + c * filters + 2 * 16 for c in [CHANNELS, *[16] * 6])
    shortcuts = (CHANNELS * 16 + 2 * 16) + (16 * 16 + 2 * 16)
    assert count(made("inception")) == modules + shortcuts + 16 * CLASSES + CLASSES


def test_parameters_of_the_transformer_are_as_counted_by_hand() -> None:
    width = 8
    block = 4 * (width * width + width) + (width * 2 * width + 2 * width) + (2 * width * width + width) + 4 * width
    assert count(made("transformer")) == 2 * CHANNELS + CHANNELS * width + width + 2 * block + width * CLASSES + CLASSES


def test_the_papers_inception_of_128_is_that_of_inceptiontime() -> None:
    """32 filters a branch, a bottleneck of 32, kernels of 40 (made odd here), 6 modules, 2 shortcuts."""
    torch.manual_seed(0)
    network = build(Inception(width=128, layers=6, kernel=40), 1, 2, 1000)
    branch = 32 * 32 * (39 + 19 + 9)
    later = 128 * 32 + branch + 128 * 32 + 256
    assert [c.kernel_size[0] for c in network.blocks[0].convs] == [39, 19, 9]
    assert count(network) == (32 + branch + 32 + 256) + 5 * later + (128 + 256) + (128 * 128 + 256) + 258


def test_bilstm_equals_its_equations_step_by_step() -> None:
    network, x = made("bilstm"), series()
    w = {k: v.detach().numpy() for k, v in network.state_dict().items()}
    found = []
    for sample in x.numpy():
        inputs = [normalised(date) * w["inlet.weight"] + w["inlet.bias"] for date in sample]
        cells = []
        for layer in range(3):
            ways = []
            for suffix, order in (("", range(DATES)), ("_reverse", range(DATES - 1, -1, -1))):
                h, c, out = np.zeros(6), np.zeros(6), [None] * DATES
                for t in order:
                    gates = sum(w[f"lstm.{kind}_l{layer}{suffix}"] for kind in ("bias_ih", "bias_hh"))
                    gates = gates + w[f"lstm.weight_ih_l{layer}{suffix}"] @ inputs[t] + w[f"lstm.weight_hh_l{layer}{suffix}"] @ h
                    i, f, g, o = np.split(gates, 4)
                    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                    h = sigmoid(o) * np.tanh(c)
                    out[t] = h
                cells.append(c)
                ways.append(out)
            inputs = [np.concatenate(pair) for pair in zip(*ways)]
        last = normalised(np.concatenate(cells)) * w["norm.weight"] + w["norm.bias"]
        found.append(w["outlet.weight"] @ last + w["outlet.bias"])
    np.testing.assert_allclose(network(x).detach().numpy(), found, rtol=0, atol=1e-12)


def test_inception_equals_its_equations_with_sums_over_taps() -> None:
    network, x = made("inception"), series()
    randomise_statistics(network)
    w = {k: v.detach().numpy() for k, v in network.state_dict().items()}

    def norm(y: np.ndarray, name: str) -> np.ndarray:
        scaled = (y - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv(y: np.ndarray, weight: np.ndarray) -> np.ndarray:  # y (T, C), weight (out, C, K)
        half, out = weight.shape[2] // 2, np.zeros((len(y), len(weight)))
        for t in range(len(y)):
            for tap in range(weight.shape[2]):
                if 0 <= t + tap - half < len(y):
                    out[t] += weight[:, :, tap] @ y[t + tap - half]
        return out

    found = []
    for sample in x.numpy():
        y = before = sample
        for k in range(7):
            narrow = conv(y, w[f"blocks.{k}.bottleneck.weight"])
            pooled = np.stack([y[max(t - 1, 0):t + 2].max(0) for t in range(DATES)])
            parts = [conv(narrow, w[f"blocks.{k}.convs.{b}.weight"]) for b in range(3)] + [conv(pooled, w[f"blocks.{k}.pooled.weight"])]
            y = np.maximum(norm(np.concatenate(parts, axis=1), f"blocks.{k}.norm"), 0)
            if k in (2, 5):
                y = before = np.maximum(y + norm(conv(before, w[f"shortcuts.{k // 3}.0.weight"]), f"shortcuts.{k // 3}.1"), 0)
        found.append(w["outlet.weight"] @ y.mean(0) + w["outlet.bias"])
    np.testing.assert_allclose(network(x).detach().numpy(), found, rtol=0, atol=1e-12)


def test_the_transformer_equals_its_equations_head_by_head() -> None:
    network, x = made("transformer"), series()
    w = {k: v.detach().numpy() for k, v in network.state_dict().items()}
    angles = np.array([[t / 10000 ** (2 * (i // 2) / 8) for i in range(8)] for t in range(DATES)])
    positions = np.where(np.arange(8) % 2 == 0, np.sin(angles), np.cos(angles))
    found = []
    for sample in x.numpy():
        y = np.stack([normalised(date) for date in sample]) * w["inlet.0.weight"] + w["inlet.0.bias"]
        y = y @ w["inlet.1.weight"].T + w["inlet.1.bias"] + positions
        for k in range(2):
            b = {key.removeprefix(f"blocks.{k}."): value for key, value in w.items() if key.startswith(f"blocks.{k}.")}
            q, key, v = np.split(y @ b["self_attn.in_proj_weight"].T + b["self_attn.in_proj_bias"], 3, axis=1)
            heads = []
            for h in range(4):
                part = slice(2 * h, 2 * h + 2)
                scores = np.exp(q[:, part] @ key[:, part].T / np.sqrt(2))
                heads.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
            y = y + np.concatenate(heads, axis=1) @ b["self_attn.out_proj.weight"].T + b["self_attn.out_proj.bias"]
            y = np.stack([normalised(date) for date in y]) * b["norm1.weight"] + b["norm1.bias"]
            inner = np.maximum(y @ b["linear1.weight"].T + b["linear1.bias"], 0)
            y = y + inner @ b["linear2.weight"].T + b["linear2.bias"]
            y = np.stack([normalised(date) for date in y]) * b["norm2.weight"] + b["norm2.bias"]
        found.append(w["outlet.weight"] @ y.max(0) + w["outlet.bias"])
    np.testing.assert_allclose(network(x).detach().numpy(), found, rtol=0, atol=2e-7)  # positions are float32
    with torch.inference_mode():  # where torch takes another path
        np.testing.assert_allclose(network(x).numpy(), found, rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_of_a_network_moves_in_a_step(name: str) -> None:
    network = made(name).train()
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    F.cross_entropy(network(series(8)), torch.arange(8) % CLASSES).backward()
    optimizer.step()
    still = [key for key, value in network.named_parameters() if torch.equal(value, before[key])]
    assert not still


def test_inception_in_evaluation_uses_running_statistics_in_all_its_layers() -> None:
    network, x = made("inception"), series(6)
    alone = torch.cat([network(row[None]) for row in x])
    assert torch.allclose(network(x), alone, atol=1e-12) and not torch.allclose(network.train()(x), alone)


@pytest.mark.parametrize("longest, dates, expected", [(40, 1000, (39, 19, 9)), (160, 144, (159, 79, 39)), (160, 12, (23, 23, 23)),
                                                      (40, 12, (23, 19, 9)), (40, 1, (1, 1, 1)), (5, 100, (5, 1, 1))])
def test_kernels_are_odd_and_no_longer_than_the_series_can_fill(longest: int, dates: int, expected: tuple[int, ...]) -> None:
    assert inception_kernels(longest, dates) == expected


def test_taps_beyond_twice_the_series_see_padding_only() -> None:
    x, weight = torch.randn(2, 3, DATES), torch.randn(4, 3, 39)
    reach = slice(19 - (DATES - 1), 19 + DATES)
    assert torch.allclose(F.conv1d(x, weight, padding=19), F.conv1d(x, weight[:, :, reach], padding=DATES - 1), atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_series_of_a_single_date_are_legal(name: str) -> None:
    torch.manual_seed(0)
    assert build(SHAPES[name], CHANNELS, CLASSES, 1).eval()(torch.randn(2, 1, CHANNELS)).shape == (2, CLASSES)


def test_position_zero_is_sin_0_and_cos_0_in_turn_and_odd_widths_are_cut() -> None:
    assert sines(3, 4)[0].tolist() == [0, 1, 0, 1] and sines(3, 5).shape == (3, 5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UsageError, match="heads=3: must divide width=8"):
        build(Transformer(width=8, layers=1, heads=3, dropout=0.0), CHANNELS, CLASSES, DATES)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def randomise_statistics(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
