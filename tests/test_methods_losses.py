"""Each method's loss against its formula, written out pair by pair in float64, or against torch.distributions."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import Tiny, make, make_batch  # noqa: E402

import dsengine
from dsengine.data.labels import Labels
from dsengine.errors import UsageError
from dsengine.methods import complete, vae
from dsengine.methods.supervised import Config


def _cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist()))
    return dot / math.sqrt(sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist()))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _double(name: str, **settings) -> tuple:
    method = make(name, **settings).double()
    batch = make_batch(method, rows=6)
    return method, batch._replace(views=tuple(view.double() for view in batch.views))


@pytest.mark.parametrize("one_way", [False, True])
def test_byol_is_two_minus_two_cosines_summed_over_the_directions(one_way: bool) -> None:
    method, batch = _double("byol", one_way=one_way)
    encoder = method.encoders["all"]
    for p in (*method.target_encoder.parameters(), *method.target_projector.parameters()):
        p.add_(0.1)  # a target that differs from the online network
    x = torch.cat(batch.views)
    q = method.predictor(method.projector(encoder(x).pooled)).chunk(2)
    z = method.target_projector(method.target_encoder(x).pooled).chunk(2)
    ways = [(q[0], z[1])] if one_way else [(q[0], z[1]), (q[1], z[0])]
    expected = sum(_mean([2 - 2 * _cosine(a, b) for a, b in zip(*way)]) for way in ways)
    loss = method(batch)["loss"]
    assert math.isclose(loss.item(), expected, rel_tol=1e-12) and loss > 0.5


def test_simsiam_is_minus_half_the_cosines_and_its_targets_carry_no_gradient() -> None:
    method, batch = _double("simsiam")
    z = method.projector(method.encoders["all"](torch.cat(batch.views)).pooled)
    p = method.predictor(z).chunk(2)
    z = z.chunk(2)
    expected = -_mean([_cosine(a, b) for a, b in zip(p[0], z[1])]) / 2 - _mean([_cosine(a, b) for a, b in zip(p[1], z[0])]) / 2
    loss = method(batch)["loss"]
    assert math.isclose(loss.item(), expected, rel_tol=1e-12)
    loss.backward()
    weight = method.projector[0].weight
    stopped = -sum(F.cosine_similarity(a, b.detach()).mean() for a, b in zip(p, z[::-1])) / 2
    through = -sum(F.cosine_similarity(a, b).mean() for a, b in zip(p, z[::-1])) / 2
    gradients = [torch.autograd.grad(form, weight, retain_graph=True)[0] for form in (stopped, through)]
    assert torch.allclose(weight.grad, gradients[0], rtol=1e-9, atol=1e-14) and not torch.allclose(weight.grad, gradients[1], rtol=1e-3)


def _nt_xent(a: Tensor, b: Tensor, temperature: float) -> float:
    """Over all 2B rows: -log of the positive's share among the 2B - 1 others."""
    rows = [*a, *b]
    losses = []
    for i, row in enumerate(rows):
        positive = (i + len(a)) % len(rows)
        scores = {j: _cosine(row, other) / temperature for j, other in enumerate(rows) if j != i}
        losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[positive])
    return _mean(losses)


def test_simclr_of_one_modality_is_nt_xent_of_its_two_views() -> None:
    method, batch = _double("simclr", temperature=0.3)
    a, b = method.projectors["all"](method.encoders["all"](torch.cat(batch.views)).pooled).chunk(2)
    assert math.isclose(method(batch)["loss"].item(), _nt_xent(a, b, 0.3), rel_tol=1e-10)


def test_simclr_of_three_modalities_is_the_mean_over_their_pairs() -> None:
    sensors = {"s2": 12, "s1": 2, "planet": 4}
    method = dsengine.build_method("simclr", encoders={key: Tiny(channels) for key, channels in sensors.items()},
                                   modalities=list(sensors), hidden=16, out=8, temperature=0.3).double()
    views = tuple(torch.randn(5, channels, 16, 16, dtype=torch.float64) for channels in sensors.values())
    batch = make_batch(make("simclr"), rows=5)._replace(views=views)
    z = [method.projectors[key](method.encoders[key](x).pooled) for key, x in zip(sensors, views)]
    expected = _mean([_nt_xent(z[i], z[j], 0.3) for i, j in ((0, 1), (0, 2), (1, 2))])
    scores = method(batch)
    assert math.isclose(scores["loss"].item(), expected, rel_tol=1e-10)
    assert {"s2_feature_std", "s1_feature_std", "planet_feature_rank"} <= scores.keys()
    assert [view.sensor for view in method.views] == list(sensors)


def test_the_vaes_divergence_is_that_of_torch_distributions() -> None:
    mean, log_variance = torch.randn(5, 4, 2, 2, dtype=torch.float64), torch.randn(5, 4, 2, 2, dtype=torch.float64)
    ours = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    assert torch.allclose(vae.divergence(mean, log_variance), expected, rtol=1e-12)


def test_the_vae_adds_beta_times_the_divergence_a_value_of_the_image() -> None:
    method, batch = _double("vae", beta=0.5)
    scores, (x,) = method(batch), batch.views
    features = method.encoders["all"](x)
    kl = vae.divergence(method.mean(features.dense), method.log_variance(features.dense)) / (14 * 16 * 16)
    assert torch.allclose(scores["loss"], scores["error"] + 0.5 * kl, rtol=1e-12)
    assert torch.allclose(scores["error"], F.mse_loss(_drawn(method, batch), x), rtol=1e-12)
    without = make("vae", beta=0.0)(make_batch(method))
    assert torch.equal(without["loss"], without["error"]) and without["kl"] > 0


def _drawn(method: torch.nn.Module, batch: "dsengine.data.sample.Batch") -> Tensor:
    """The whole reconstruction, its noise by the same key."""
    features = method.encoders["all"](batch.views[0])
    noise = method._noise(batch, method.log_variance(features.dense))
    return F.interpolate(method.decoder(method.widen(method.mean(features.dense) + noise)), (16, 16), mode="bilinear")


def test_the_vaes_noise_belongs_to_the_sample_and_is_absent_in_evaluation() -> None:
    method = make("vae")
    batch = make_batch(method)
    swapped = batch._replace(sample_id=batch.sample_id.flip(0))
    shape = torch.zeros(8, 4, 2, 2)
    first, other = method._noise(batch, shape), method._noise(swapped, shape)
    assert torch.equal(first, other.flip(0)) and not torch.equal(first, other)
    assert not torch.equal(first, method._noise(batch._replace(step=4), shape))
    assert torch.equal(method.eval()._noise(batch, shape), shape)


@pytest.mark.parametrize("kind", ["class", "classmap"])
def test_supervised_is_cross_entropy_over_what_has_a_label(kind: str) -> None:
    method = make("supervised", kind=kind).double()
    batch = make_batch(method)
    batch = batch._replace(views=(batch.views[0].double(),))
    if kind == "class":
        batch.label[2] = -1
        logits = method.head(method.encoders["all"](batch.views[0]).pooled)
        cells = [(logits[i], int(batch.label[i])) for i in range(8)]
    else:
        logits = F.interpolate(method.head(method.encoders["all"](batch.views[0]).dense), (16, 16), mode="bilinear")
        cells = [(logits[i, :, y, x], int(batch.label[i, y, x])) for i in range(8) for y in range(16) for x in range(16)]
    known = [(row.tolist(), at) for row, at in cells if at >= 0]
    expected = _mean([math.log(sum(math.exp(v) for v in row)) - row[at] for row, at in known])
    scores = method(batch)
    assert math.isclose(scores["loss"].item(), expected, rel_tol=1e-10)
    assert math.isclose(scores["accuracy"].item(), _mean([float(row.index(max(row)) == at) for row, at in known]), rel_tol=1e-12)


def test_supervised_multilabel_is_binary_cross_entropy() -> None:
    method = make("supervised", kind="multilabel")
    batch = make_batch(method)
    logits = method.head(method.encoders["all"](batch.views[0]).pooled)
    expected = _mean([math.log1p(math.exp(-v if y else v)) for v, y in zip(logits.flatten().tolist(), batch.label.flatten().tolist())])
    assert math.isclose(method(batch)["loss"].item(), expected, rel_tol=1e-5)


def test_supervised_takes_what_is_open_from_the_corpus_and_refuses_what_does_not_fit() -> None:
    labels = {"landcover": Labels("classmap", (1, 2, 3, 5)), "scene": Labels("class", (0, 1))}
    assert complete("supervised", Config(label="scene"), labels) == Config(label="scene", kind="class", channels=2)
    assert complete("supervised", Config(), {"landcover": labels["landcover"]}) == Config(label="landcover", kind="classmap", channels=4)
    assert complete("supervised", Config(label="landcover", channels=7), labels).channels == 7
    for config, table, message in [(Config(), {}, "no labels"), (Config(), labels, "name one: landcover, scene"),
                                   (Config(label="scnee"), labels, "did you mean scene"), (Config(label="scene", kind="classmap"), labels, "is a class"),
                                   (replace(Config(label="landcover"), channels=3), labels, "4 classes")]:
        with pytest.raises(UsageError, match=message):
            complete("supervised", config, table)
