"""Methods: one contract for all."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import BANDS, CASES, METHODS, SMALL, Tiny, make, make_batch  # noqa: E402

import dsengine
from dsengine import plugin
from dsengine.engine.optim import make_optimizer, set_learning_rate
from dsengine.engine.settings import TrainConfig
from dsengine.errors import UsageError
from dsengine.methods import Method


@pytest.mark.parametrize("name", CASES)
def test_every_method_meets_the_contract(name: str) -> None:
    method = make(name)
    assert method.views and all(view.size is None or view.size > 0 for view in method.views)
    scores = method(make_batch(method))
    assert scores["loss"].shape == () and scores["loss"].dtype == torch.float32 and torch.isfinite(scores["loss"])
    others = {key: value for key, value in scores.items() if key != "loss"}
    assert not any(value.requires_grad for value in others.values())
    assert all(value.numel() == 1 or (value.ndim == 4 and value.shape[1] == BANDS) for value in others.values())
    scores["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", CASES)
def test_a_method_and_its_copy_by_state_dict_give_the_same_loss_twice(name: str) -> None:
    method, again = make(name), make(name)
    again.load_state_dict(method.state_dict(), strict=True)
    batch = make_batch(method)
    losses = [method(batch)["loss"], again(make_batch(again))["loss"], method(batch)["loss"]]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("name", CASES)
def test_after_step_leaves_no_gradient_and_changes_no_trained_weight(name: str) -> None:
    method = make(name)
    before = {key: p.clone() for key, p in method.named_parameters() if p.requires_grad}
    method.after_step(0.5)
    assert all(torch.equal(p, before[key]) and p.grad is None for key, p in method.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", CASES)
def test_every_method_overfits_one_batch(name: str) -> None:
    method = make(name)
    batch, optimizer = make_batch(method), torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 0.02)
    first = last = method(batch)["loss"].item()
    for step in range(40):
        optimizer.zero_grad()
        loss = method(batch)["loss"]
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 40)
        last = loss.item()
    # Losses that are cosines start at about 0 and end at -1.
    assert last < 0.6 * first if first > 0.1 else last < first - 0.5


@pytest.mark.parametrize("name", METHODS)
def test_every_method_logs_whether_its_features_collapse(name: str) -> None:
    healthy, collapsed = make(name), make(name)
    collapsed.encoders["all"].register_forward_hook(lambda module, args, features: features._replace(pooled=features.pooled * 0 + 1))
    assert collapsed(make_batch(collapsed))["feature_std"] < 1e-6
    scores = healthy(make_batch(healthy))
    assert scores["feature_std"] > 0.2 and scores["feature_rank"] > 1.5


@pytest.mark.parametrize("name", CASES)
def test_every_method_compiles_into_one_graph(name: str) -> None:
    torch._dynamo.reset()  # methods share one `forward`, and only so many forms of it are kept
    method = make(name)
    batch = make_batch(method)
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    assert math.isclose(compiled(batch)["loss"].item(), method(batch)["loss"].item(), rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_presets_name_settings_that_exist_and_may_be_overridden(name: str) -> None:
    from dsengine import plugin

    module = plugin.find("dsengine.methods", name)
    for preset, values in getattr(module, "PRESETS", {}).items():
        config = plugin.configure("dsengine.methods", name, {"preset": preset})
        assert all(getattr(config, key) == value for key, value in values.items())
    with pytest.raises(UsageError, match="method.preset='nothing' is unknown; .*"):
        plugin.configure("dsengine.methods", name, {"preset": "nothing"})


def test_wrong_encoders_are_refused() -> None:
    with pytest.raises(UsageError, match="either encoder .* or encoders"):
        dsengine.build_method("csf")
    with pytest.raises(UsageError, match="csf takes one encoder for all bands, got 2 encoders: s1, s2"):
        dsengine.build_method("csf", encoders={"s1": Tiny(2), "s2": Tiny(12)})
    with pytest.raises(UsageError, match="method 'cfs' is unknown; did you mean csf"):
        dsengine.build_method("cfs", encoder=Tiny())
    with pytest.raises(UsageError, match="method.marign is not a setting; did you mean margin"):
        dsengine.build_method("csf", encoder=Tiny(), marign=1)


@pytest.mark.parametrize("name, settings", [("vae", {}), ("supervised", {}), ("csf", {"per_cell": True})])
def test_a_method_of_maps_refuses_an_encoder_without_one(name: str, settings: dict) -> None:
    method = make(name, **settings)
    method.encoders["all"].register_forward_hook(lambda module, args, features: features._replace(dense=None))
    with pytest.raises(UsageError, match=f"{name}.* needs an encoder that makes maps"):
        method(make_batch(method))


@pytest.mark.parametrize("name", ["byol", "simsiam", "simclr"])
def test_a_pair_of_bands_is_drawn_from_both_sensors_and_drops_none(name: str) -> None:
    method = make(name, Tiny(1), pair="bands")
    assert [(view.draw_bands, len(view.bands)) for view in method.views] == [(1, 10), (1, 2)]
    assert torch.isfinite(method(make_batch(method))["loss"])
    with pytest.raises(UsageError, match="method.band_dropout=0.5: a view of one band"):
        make(name, pair="bands", band_dropout=0.5)


@pytest.mark.parametrize("name, scheduled", [("byol", True), ("simsiam", False)])
def test_the_predictor_alone_learns_at_its_own_rate(name: str, scheduled: bool) -> None:
    method = make(name, predictor_lr_scale=8.0)
    optimizer = make_optimizer(method, TrainConfig(lr=0.5))
    set_learning_rate(optimizer, 0.25, base=0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for key, p in method.named_parameters():
        if p.requires_grad:
            assert rates[id(p)] == ((2.0 if scheduled else 4.0) if key.startswith("predictor") else 0.25), key
    for wrong in (0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="method.predictor_lr_scale=.*: must be above 0 and finite"):
            make(name, predictor_lr_scale=wrong)


@pytest.mark.parametrize("name, setting, legal", [
    *((name, {key: wrong}, f"{key}={wrong}: must be 1 or more") for name, key in (
        ("scarf", "hidden"), ("scarf", "out"), ("simclr", "hidden"), ("simclr", "out"), ("byol", "hidden"), ("byol", "out"), ("simsiam", "dim"),
        ("simsiam", "hidden"), ("supervised", "channels"), ("vae", "latent")) for wrong in (0, -1)),
    *((name, {key: wrong}, f"{key}={wrong}: must be above 0 and finite") for name, key in (
        ("csf", "margin"), ("t2v", "margin"), ("t2v", "scale_km"), ("byol", "scale_km")) for wrong in (0.0, -1.0, math.inf, math.nan)),
    *((name, {"temperature": wrong}, f"temperature={wrong}: must be in [0.0001, 10000]") for name in ("csf", "simclr", "scarf")
      for wrong in (0.0, 1e-300, math.inf, math.nan)),
    *(("vae", {"beta": wrong}, f"beta={wrong}: must be 0 or more and finite") for wrong in (-1.0, math.inf, math.nan)),
    *(("csf", {key: -1}, f"{key}=-1: must be 0 or more epochs") for key in ("warmup", "ramp")),
    ("simclr", {"jitter_strength": 2.0}, "jitter_strength=2.0: must be in [0, 1]"),
    ("byol", {"jitters": -1}, "jitters=-1: must be in [0, 16384]"),
    ("simsiam", {"band_dropout": 1.5}, "band_dropout=1.5: must be in [0, 1]"),
    ("byol", {"tau": 1.5}, "tau=1.5: must be in [0, 1]"),
])
def test_a_number_that_no_method_can_learn_with_is_refused_by_its_name(name: str, setting: dict, legal: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"method.{legal}")):
        plugin.configure("dsengine.methods", name, setting)


@pytest.mark.parametrize("name, settings, at_fault, where", [
    ("csf", {"loss": "nce", "margin": 3.0}, "margin=3.0", "loss=nce"),
    ("csf", {"loss": "nce", "distance": "l1"}, "distance=l1", "loss=nce"),
    ("csf", {"temperature": 0.2}, "temperature=0.2", "loss=triplet"),
    ("t2v", {"neighbour": "literal", "scale_km": 3.0}, "scale_km=3.0", "neighbour=literal"),
    ("byol", {"scale_km": 3.0}, "scale_km=3.0", "second=itself"),
    ("simclr", {"modalities": ("s2", "s1"), "second": "neighbour"}, "second=neighbour", "modalities"),
    ("simclr", {"modalities": ("s2", "s1"), "blur": 1.0}, "blur=1.0", "modalities"),
])
def test_a_setting_that_does_nothing_beside_another_is_refused(name: str, settings: dict, at_fault: str, where: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"method.{at_fault}: does nothing with {where}")):
        plugin.configure("dsengine.methods", name, settings)


@pytest.mark.parametrize("name", plugin.names("dsengine.methods"))
def test_presets_are_legal(name: str) -> None:
    for preset in plugin.find("dsengine.methods", name).PRESETS:
        plugin.configure("dsengine.methods", name, {"preset": preset})


def test_scarf_refuses_images() -> None:
    method = make("scarf")
    with pytest.raises(UsageError, match=r"scarf takes pixels \(B, C\) or series"):
        method(make_batch(method)._replace(views=(torch.zeros(4, 3, 8, 8),)))


def test_a_method_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Method must define forward"):
        Method()(None)


def test_no_small_setting_is_of_a_method_that_is_gone() -> None:
    assert SMALL.keys() <= set(METHODS)
