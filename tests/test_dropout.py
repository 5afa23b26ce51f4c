"""Dropout keyed by sample: its rate, and what its mask does and does not depend on."""

import pytest
import torch
from torch import nn

from dsengine.data.sample import Batch
from dsengine.engine.step import forward
from dsengine.errors import UsageError
from dsengine.nn.dropout import KeyedDropout, set_keys


def _layers(p: float = 0.3) -> nn.Sequential:
    return nn.Sequential(KeyedDropout(p), nn.Sequential(KeyedDropout(p)))


def _mask(layers: nn.Sequential, ids: torch.Tensor, *, views: int = 1, step: int = 5, width: int = 400, layer: int = 0) -> torch.Tensor:
    set_keys(layers, ids, seed=9, step=step)
    chosen = layers[0] if layer == 0 else layers[1][0]
    return chosen(torch.ones(views * len(ids), width)) != 0


def test_values_are_dropped_at_the_rate_and_the_rest_keeps_the_mean() -> None:
    layers, ids = _layers(), torch.arange(256)
    set_keys(layers, ids, seed=1, step=0)
    out = layers[0](torch.ones(256, 10, 40))
    assert abs((out == 0).double().mean() - 0.3) < 0.005
    assert torch.allclose(out[out != 0], torch.tensor(1 / 0.7))


def test_a_mask_belongs_to_its_sample_view_layer_and_step() -> None:
    layers, ids = _layers(), torch.tensor([4, 9, 2**40])
    mask = _mask(layers, ids)
    assert torch.equal(_mask(layers, ids[1:]), mask[1:])  # other batch, other rank
    assert torch.equal(_mask(layers, ids.flip(0)), mask.flip(0))
    others = [_mask(layers, ids, step=6), _mask(layers, ids, layer=1), _mask(layers, ids, views=2)[3:]]
    assert all(abs((other == mask).double().mean() - 0.58) < 0.06 for other in others)  # 0.7^2 + 0.3^2, as chance has it
    assert torch.equal(_mask(layers, ids, views=2)[:3], mask)


def test_a_wrapped_module_draws_what_it_draws_alone() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    layers, ids = _layers(), torch.arange(3)
    mask = _mask(layers, ids, layer=1)
    set_keys(Wrapper(layers), ids, seed=9, step=5)
    assert torch.equal(layers[1][0](torch.ones(3, 400)) != 0, mask)


def test_in_evaluation_nothing_is_dropped_and_without_keys_training_is_refused() -> None:
    x = torch.randn(6, 4)
    assert torch.equal(_layers().eval()(x), x) and torch.equal(KeyedDropout(0.0)(x), x)
    with pytest.raises(UsageError, match="6 rows are no whole views of the 0 samples"):
        _layers()(x)
    with pytest.raises(UsageError, match=r"dropout=1.0: must be in \[0, 1\)"):
        KeyedDropout(1.0)


def test_the_engine_names_the_samples_of_every_step() -> None:
    class Method(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = KeyedDropout(0.5)

        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"loss": self.drop(torch.cat(batch.views)).sum(), "out": self.drop(torch.cat(batch.views))}

    method = Method()
    batch = Batch((torch.ones(4, 64), torch.ones(4, 64)), torch.arange(4), seed=3, step=8)
    first, again, later = (forward(method, b, "fp32")["out"] for b in (batch, batch, batch._replace(step=9)))
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first[:4], first[4:])


def test_it_compiles_into_one_graph() -> None:
    layers = _layers()
    set_keys(layers, torch.arange(8), seed=1, step=2)
    x = torch.randn(16, 12)
    assert torch.equal(torch.compile(layers, fullgraph=True, backend="aot_eager")(x), layers(x))
