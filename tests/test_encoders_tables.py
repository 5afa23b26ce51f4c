"""Encoders of pixels and of series: totals, forward passes written out from the state dict, dates that are missing, dropout."""

import math

import pytest
import torch
from torch import Tensor, nn

import dsengine
from dsengine.errors import UsageError
from dsengine.nn.dropout import set_keys
from dsengine.nn.norm import set_groups

RESMLP = {12: 598_016, 36: 604_160}
TEMPORAL = {("paper", 12, 144): 3_233_152, ("paper", 36, 365): 3_295_872, ("code", 12, 144): 218_560, ("code", 36, 365): 234_240}
SMALL = {"width": 8, "heads": 2, "blocks": 2, "out": 5, "dates": 9}


@pytest.mark.parametrize("channels, total", RESMLP.items())
def test_resmlp_has_the_papers_parameters_in_ten_linear_layers(channels: int, total: int) -> None:
    encoder = dsengine.build_encoder("resmlp", channels)
    linear = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert sum(p.numel() for p in encoder.parameters()) == total
    assert total == channels * 256 + 256 + 4 * (2 * 256 + 2 * (256 * 256 + 256)) + 2 * 256 + 256 * 256 + 256
    assert len(linear) == 1 + 8 + 1  # in, the paper's eight, out
    assert encoder(torch.randn(4, channels)).pooled.shape == (4, 256) == (4, encoder.dim)


@pytest.mark.parametrize("case, total", TEMPORAL.items(), ids=str)
def test_temporal_has_the_papers_parameters(case: tuple[str, int, int], total: int) -> None:
    preset, channels, dates = case
    encoder = dsengine.build_encoder("temporal", channels, preset=preset, dates=dates)
    assert sum(p.numel() for p in encoder.parameters()) == total
    d = {"paper": 256, "code": 64}[preset]
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    assert total == channels * d + d + d + (1 + dates) * d + 4 * block + 2 * d + d * 128 + 128
    assert encoder(torch.randn(2, dates, channels)).pooled.shape == (2, 128) == (2, encoder.dim)
    assert encoder.embed_dates(torch.randn(2, 7, channels)).shape == (2, 7, d)


def _shaken(encoder: nn.Module) -> nn.Module:
    """In float64 and evaluation, with weights and statistics that are not where they started."""
    g = torch.Generator().manual_seed(3)
    for key, value in encoder.double().state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=g, dtype=torch.float64) + 0.2 if key.endswith("running_var")
                        else 0.4 * torch.randn(value.shape, generator=g, dtype=torch.float64))
    return encoder.eval()


def test_resmlp_is_its_formula_written_out() -> None:
    encoder = _shaken(dsengine.build_encoder("resmlp", 12, width=16))
    w = encoder.state_dict()

    def linear(x: Tensor, key: str) -> Tensor:
        return x @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    def norm(x: Tensor, key: str) -> Tensor:
        return (x - w[f"{key}.running_mean"]) / (w[f"{key}.running_var"] + 1e-5).sqrt() * w[f"{key}.weight"] + w[f"{key}.bias"]

    x = torch.randn(5, 12, dtype=torch.float64)
    h = linear(x, "inlet")
    for k in range(4):
        h = h + linear(linear(norm(h, f"blocks.{k}.bn"), f"blocks.{k}.linear1").relu(), f"blocks.{k}.linear2")
    torch.testing.assert_close(encoder(x).pooled, linear(norm(h, "bn").relu(), "outlet"), rtol=1e-10, atol=1e-10)


def _series_by_hand(w: dict[str, Tensor], x: Tensor, *, heads: int, pool: str) -> tuple[Tensor, Tensor]:
    """One series (T, C), date by date and head by head: features and the tokens of the dates that are there."""
    there = [t for t in range(len(x)) if not x[t].isnan().all()]

    def linear(v: Tensor, key: str) -> Tensor:
        return w[f"{key}.weight"] @ v + w[f"{key}.bias"]

    def norm(v: Tensor, key: str) -> Tensor:
        return (v - v.mean()) / (v.var(correction=0) + 1e-6).sqrt() * w[f"{key}.weight"] + w[f"{key}.bias"]

    tokens = [w["cls"][0, 0] + w["positions"][0, 0]]
    tokens += [w["embed.weight"][:, :, 0] @ x[t] + w["embed.bias"] + w["positions"][0, 1 + t] for t in there]
    for k in range(2):
        block = f"blocks.{k}"
        parts = [linear(norm(token, f"{block}.norm1"), f"{block}.attention.qkv").view(3, heads, -1) for token in tokens]
        mixed = []
        for query in parts:
            of_heads = []
            for head in range(heads):
                scores = [query[0, head] @ key[1, head] / math.sqrt(query.shape[-1]) for key in parts]
                total = sum(math.exp(score) for score in scores)
                of_heads.append(sum(math.exp(score) / total * value[2, head] for score, value in zip(scores, parts)))
            mixed.append(torch.cat(of_heads))
        tokens = [token + linear(y, f"{block}.attention.out") for token, y in zip(tokens, mixed)]
        inner = [linear(norm(token, f"{block}.norm2"), f"{block}.linear1") for token in tokens]
        inner = [0.5 * y * (1 + torch.erf(y / math.sqrt(2))) for y in inner]
        tokens = [token + linear(y, f"{block}.linear2") for token, y in zip(tokens, inner)]
    pooled = tokens[0] if pool == "cls" else torch.stack(tokens[1:]).mean(0)
    return linear(norm(pooled, "norm"), "head"), torch.stack(tokens[1:])


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_temporal_is_its_formula_written_out_and_leaves_missing_dates_away(pool: str) -> None:
    encoder = _shaken(dsengine.build_encoder("temporal", 3, pool=pool, **SMALL))
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    x[1, 2], x[1, 6], x[2, :5] = math.nan, math.nan, math.nan
    found, dates = encoder(x).pooled, encoder.embed_dates(x)
    for row, series in enumerate(x):
        features, tokens = _series_by_hand(encoder.state_dict(), series, heads=2, pool=pool)
        torch.testing.assert_close(found[row], features, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dates[row, ~series.isnan().all(-1)], tokens, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_series_without_any_date_has_finite_features_and_gradients(pool: str) -> None:
    encoder = dsengine.build_encoder("temporal", 3, pool=pool, **SMALL)
    x = torch.randn(3, 7, 3)
    x[1] = math.nan
    pooled = encoder(x).pooled
    pooled.square().sum().backward()
    assert pooled.isfinite().all() and all(p.grad.isfinite().all() for p in encoder.parameters())
    torch.testing.assert_close(encoder(torch.full((1, 4, 3), math.nan)).pooled[0], pooled[1])  # whatever its length


def test_one_band_that_is_missing_counts_as_its_mean_and_the_date_stays() -> None:
    encoder = dsengine.build_encoder("temporal", 3, **SMALL).eval()
    x = torch.randn(2, 7, 3)
    filled = x.clone()
    x[0, 2, 1], filled[0, 2, 1] = math.nan, 0.0
    assert torch.equal(encoder(x).pooled, encoder(filled).pooled)


def test_the_order_of_dates_matters_and_the_positions_are_learned() -> None:
    encoder = dsengine.build_encoder("temporal", 3, **SMALL)
    x = torch.randn(2, 7, 3)
    assert not torch.allclose(encoder(x).pooled, encoder(x.flip(1)).pooled, atol=1e-5)
    encoder(x).pooled.square().sum().backward()
    used = encoder.positions.grad[0].abs().sum(-1) > 0
    assert used.tolist() == [True] * 8 + [False] * 2  # cls and seven dates of nine


def test_weights_start_as_in_the_papers_code() -> None:
    temporal = dsengine.build_encoder("temporal", 12)
    assert abs(temporal.positions.std().item() / 0.02 - 1) < 0.01 and temporal.cls.abs().max() < 1e-5
    for layer in (temporal.blocks[0].attention.qkv, temporal.blocks[3].linear2, temporal.head):
        assert abs(layer.weight.std().item() / 0.02 - 1) < 0.02 and layer.bias.abs().max() == 0
    assert abs(temporal.embed.weight.std().item() * 6 - 1) < 0.05  # torch's own: uniform within 1 / sqrt(12)
    resmlp = dsengine.build_encoder("resmlp", 12)
    weight = resmlp.blocks[1].linear2.weight
    assert abs(weight.std().item() * 16 * math.sqrt(3) - 1) < 0.01 and weight.abs().max() <= 1 / 16


@pytest.mark.parametrize("name, shape", [("resmlp", (8, 5)), ("temporal", (8, 6, 5))])
def test_dropout_belongs_to_samples_and_ends_with_training(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = dsengine.build_encoder(name, 5, dropout=0.5)
    set_groups(encoder, 4, 8)
    x, ids = torch.randn(shape), torch.arange(8) + 40
    with pytest.raises(UsageError, match="dropout: 8 rows"):
        encoder(x)
    set_keys(encoder, ids, seed=1, step=2)
    first, again = encoder(x).pooled, encoder(x).pooled
    assert torch.equal(first, again)
    set_keys(encoder, ids, seed=1, step=3)
    assert not torch.allclose(encoder(x).pooled, first, atol=1e-3)
    assert torch.equal(encoder.eval()(x).pooled, encoder(x).pooled)


@pytest.mark.parametrize("name, wrong, message", [
    ("resmlp", {"width": 0}, "encoder.width=0: must be 1 or more"), ("resmlp", {"dropout": 1.0}, r"encoder.dropout=1.0: must be in \[0, 1\)"),
    ("temporal", {"heads": 3}, "encoder.heads=3: must divide width=256"), ("temporal", {"dates": 0}, "encoder.dates=0: must be 1 or more"),
    ("temporal", {"preset": "papers"}, "encoder.preset='papers' is unknown; did you mean paper"),
])
def test_settings_without_meaning_are_refused(name: str, wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dsengine.build_encoder(name, 12, **wrong)


def test_what_an_encoder_cannot_read_is_refused_with_what_it_reads() -> None:
    with pytest.raises(UsageError, match=r"resmlp takes pixels \(B, 12\), got \(2, 7, 12\)"):
        dsengine.build_encoder("resmlp", 12)(torch.zeros(2, 7, 12))
    temporal = dsengine.build_encoder("temporal", 3, **SMALL)
    with pytest.raises(UsageError, match=r"temporal takes series \(B, T, 3\), got \(2, 3, 8, 8\)"):
        temporal(torch.zeros(2, 3, 8, 8))
    with pytest.raises(UsageError, match="encoder.dates=9: the series has 10 dates; legal: that many or more"):
        temporal(torch.zeros(2, 10, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name, shape", [("resmlp", (64, 12)), ("temporal", (8, 144, 12))])
def test_on_cuda_features_and_gradients_are_those_of_the_cpu(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, found = torch.randn(shape), []
    if name == "temporal":
        x[0], x[1, 5:] = math.nan, math.nan
    encoder = dsengine.build_encoder(name, 12)
    set_groups(encoder, shape[0], shape[0])
    for device in ("cpu", "cuda"):
        encoder.to(device).zero_grad()
        pooled = encoder(x.to(device)).pooled
        pooled.square().mean().backward()
        found.append([pooled.detach().cpu(), *(p.grad.cpu() for p in encoder.parameters())])
    for cpu, cuda in zip(*found):
        assert (cpu - cuda).abs().max() <= 1e-3 * cpu.abs().max() + 1e-7
    with torch.autocast("cuda", torch.bfloat16):
        assert (encoder(x.cuda().bfloat16()).pooled.cpu() - found[0][0]).abs().max() < 0.05 * found[0][0].abs().max()
