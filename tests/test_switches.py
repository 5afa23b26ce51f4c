"""Switches of a step that are off by default: each gives the values of the step without it, or to a stated tolerance those of the precision it computes in."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from method_cases import Tiny, encoder_for, make, make_batch  # noqa: E402

import dsengine  # noqa: E402
from dsengine import config as configuration  # noqa: E402
from dsengine.data.sample import Batch  # noqa: E402
from dsengine.dist import SOLO  # noqa: E402
from dsengine.engine import graphs, plan, scaler  # noqa: E402
from dsengine.engine.compiled import compile_encoders  # noqa: E402
from dsengine.engine.optim import make_optimizer  # noqa: E402
from dsengine.engine.precision import place, view_dtype  # noqa: E402
from dsengine.engine.settings import TrainConfig  # noqa: E402
from dsengine.engine.step import Step  # noqa: E402
from dsengine.errors import UsageError  # noqa: E402
from dsengine.nn.norm import set_groups  # noqa: E402
from dsengine.nn.stem import FirstConv, set_form  # noqa: E402

STEPS = 4


def _losses(name: str, *, precision: str = "fp32", backend: str | None = None, micro_batch: int | None = None) -> tuple[torch.Tensor, nn.Module]:
    """Losses of some steps of the case `name`, and the method after them."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    method = place(make(name, encoder_for(name, normed=True)), precision, torch.device("cpu"))
    set_groups(method, 4, micro_batch or 8)
    if backend is not None:
        compile_encoders(method, backend=backend)
    step = Step(method, make_optimizer(method, TrainConfig(optimizer="sgd")), precision=precision, world=SOLO, micro_batch=micro_batch)
    found = []
    for k in range(STEPS):
        batch = make_batch(method, 8, step=k, seed=k)
        batch = batch._replace(views=tuple(view.to(view_dtype(precision)) for view in batch.views))
        found.append(step(batch, lr=0.01)["loss"])
        method.after_step((k + 1) / STEPS)
    assert step.withheld() == []
    return torch.stack(found), method


# BYOL has a target of the encoder's kind, scarf/resmlp dropout, which is drawn anew at every step.
@pytest.mark.parametrize("name, backend", [("byol", "aot_eager"), ("scarf/resmlp", "aot_eager"), ("csf", "inductor")])
def test_compiled_encoders_learn_what_they_learn_as_they_are_and_compile_once(name: str, backend: str) -> None:
    from torch._dynamo.utils import counters

    plain, before = _losses(name)
    counters.clear()
    compiled, after = _losses(name, backend=backend)
    assert torch.allclose(compiled, plain, rtol=1e-4, atol=1e-5) and plain.std() > 1e-3
    assert before.state_dict().keys() == after.state_dict().keys()
    assert counters["stats"]["unique_graphs"] == (2 if name == "byol" else 1)
    after.eval()
    assert after.encoders["all"](make_batch(after).views[0][:3]).pooled.shape[0] == 3
    assert counters["stats"]["unique_graphs"] == (2 if name == "byol" else 1)  # evaluation compiles nothing


def test_a_copy_of_a_compiled_encoder_computes_with_its_own_weights() -> None:
    method = make("csf")
    compile_encoders(method, backend="eager")
    encoder = method.encoders["all"]
    x = torch.randn(2, 14, 16, 16)
    copied = copy.deepcopy(encoder)
    again = copy.deepcopy(copied)
    nn.init.zeros_(copied.conv.weight)
    assert not torch.equal(copied(x).pooled, encoder(x).pooled)
    assert torch.equal(again(x).pooled, encoder(x).pooled)


def test_compiled_encoders_run_in_several_passes_too() -> None:
    plain, _ = _losses("csf")
    both, _ = _losses("csf", backend="aot_eager", micro_batch=4)
    assert torch.allclose(both, plain, rtol=1e-5)


@pytest.mark.parametrize("name", ["csf", "simsiam"])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_fp16_learns_what_fp32_learns(name: str, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaler, "_START", 2.0**8)  # nothing overflows here: an update that is withheld would be another run
    full, ours = _losses(name)
    half, theirs = _losses(name, precision="fp16", micro_batch=micro_batch)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert torch.allclose(half, full, atol=5e-3)  # fp16 keeps 11 bits
    assert all(torch.allclose(a, b, atol=5e-3) for a, b in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("form", ["padded", "space_to_depth"])
@pytest.mark.parametrize("channels, height, width", [(14, 32, 32), (1, 7, 9), (12, 17, 8), (16, 2, 1), (3, 1, 5)])
def test_other_forms_of_the_first_convolution_have_its_values_and_gradients(form: str, channels: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    conv = FirstConv(channels).double()
    x = torch.randn(2, channels, height, width, dtype=torch.float64).to(memory_format=torch.channels_last)
    pull, found = torch.randn_like(conv(x)), []
    for which in ("as_is", form):
        set_form(conv, which)
        given = x.clone().requires_grad_()
        y = conv(given)
        found.append([y, *torch.autograd.grad(y, (given, conv.weight), pull)])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(*found))


@pytest.mark.parametrize("form", ["padded", "space_to_depth"])
def test_a_run_with_another_first_convolution_learns_what_it_learns_as_it_is(form: str, small_corpus: Path, tmp_path: Path) -> None:
    losses = []
    for which in ("as_is", form):
        run = dsengine.train(corpus=str(small_corpus), out=str(tmp_path / which), device={"gpus": 0}, data={"size": 16},
                             train={"max_steps": 5, "batch_size": 8, "precision": "fp64", "log_steps": 1, "heldout_samples": 4, "first_conv": which})
        losses.append([record["loss"] for record in run.metrics])
    assert losses[1] == pytest.approx(losses[0], rel=1e-9) and losses[1] != losses[0] and len(losses[0]) == 5
    assert run.encoder.conv1.form == "as_is"  # a form is of the run, not of the weights


def test_a_method_without_a_first_convolution_is_refused_another_form_of_it_before_a_folder_is_made(small_corpus: Path, tmp_path: Path) -> None:
    assert not any(isinstance(layer, FirstConv) for layer in make("csf").modules())
    with pytest.raises(UsageError, match="train.first_conv=padded: no encoder of this run begins with a 7 x 7 convolution; legal: as_is"):
        dsengine.train(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, encoder="workers.tiny_encoder", data={"size": 16},
                       train={"first_conv": "padded", "batch_size": 8})
    assert not (tmp_path / "run").exists()


class Line(nn.Module):
    """loss = mean(w x), whose gradient is the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 2))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": (self.w * batch.views[0].float()).mean()}


@pytest.fixture()
def line() -> tuple[Line, Step]:
    method = Line()
    return method, Step(method, make_optimizer(method, TrainConfig(optimizer="sgd", momentum=0.0)), precision="fp16", world=SOLO)


def _of(value: float, step: int = 0) -> Batch:
    return Batch((torch.full((3, 2), value),), torch.arange(3), step=step)


def test_gradients_are_those_of_the_loss_whatever_its_scale(line: tuple[Line, Step]) -> None:
    method, step = line
    step(_of(6.0), lr=0.5)
    assert torch.equal(method.w, torch.full((3, 2), 0.5))  # 1 - 0.5 * 6 / 6
    assert step.scaler.scale == 2.0**16


def test_an_overflow_costs_one_step_halves_the_scale_and_stops_nothing(line: tuple[Line, Step]) -> None:
    method, step = line
    step(_of(1e38, step=1), lr=0.5)  # a finite gradient that is not when it is scaled
    assert torch.equal(method.w, torch.ones(3, 2)) and step.withheld() == []
    assert step.scaler.scale == 2.0**15
    step(_of(6.0, step=2), lr=0.5)
    assert torch.equal(method.w, torch.full((3, 2), 0.5))


def test_what_overflows_at_scale_1_stops_the_run(line: tuple[Line, Step]) -> None:
    method, step = line
    for k in range(16):
        step(_of(float("nan"), step=k), lr=0.5)
    assert step.withheld() == [] and step.scaler.scale == 1
    step(_of(float("nan"), step=16), lr=0.5)
    step(_of(6.0, step=17), lr=0.5)
    assert step.withheld() == [16, 17] and torch.equal(method.w, torch.ones(3, 2))


def test_the_scale_grows_after_its_interval_up_to_its_most_and_lies_in_the_optimisers_state(line: tuple[Line, Step], monkeypatch: pytest.MonkeyPatch) -> None:
    _, step = line
    monkeypatch.setattr(scaler, "_INTERVAL", 3)
    found = []
    for k in range(27):
        step(_of(1e-6, step=k), lr=0.1)
        found.append(step.scaler.scale.item())
    assert found[:4] == [2.0**16, 2.0**16, 2.0**17, 2.0**17] and found[-1] == 2.0**24
    saved = copy.deepcopy(step.optimizer.state_dict())
    method = Line()
    optimizer = make_optimizer(method, TrainConfig(optimizer="sgd", momentum=0.0))
    optimizer.load_state_dict(saved)
    assert Step(method, optimizer, precision="fp16", world=SOLO).scaler.scale == 2.0**24


def test_a_saved_scale_is_not_written_to_by_later_steps(line: tuple[Line, Step]) -> None:
    _, step = line
    group = step.optimizer.state_dict()["param_groups"][0]
    step(_of(1e38), lr=0.1)
    assert group["loss_scale"][0] == 2.0**16 and step.scaler.scale == 2.0**15


def test_graphs_are_told_what_each_encoder_is_called_with() -> None:
    method = make("byol")
    shown = graphs.inputs_of(method, make_batch(method, 8), "fp32")
    assert {name: [tuple(x.shape) for x in calls] for name, calls in shown.items()} == {
        "encoders.all": [(16, 14, 16, 16)], "target_encoder": [(16, 14, 16, 16)]}
    for name, calls in shown.items():
        graphs.check(name, method.get_submodule(name), calls)


def test_what_no_graph_can_stand_for_is_refused() -> None:
    with pytest.raises(UsageError, match="train.cuda_graphs: encoders.all is called 2 times a step"):
        graphs.check("encoders.all", Tiny(), [torch.zeros(1), torch.zeros(1)])
    encoder = dsengine.build_encoder("resmlp", 12, width=8, blocks=1, dropout=0.1)
    with pytest.raises(UsageError, match="train.cuda_graphs: encoders.all has dropout, drawn anew for each step; legal: encoder.dropout=0"):
        graphs.check("encoders.all", encoder, [torch.zeros(1)])
    for other in (dict(compile=True), dict(micro_batch=4), dict(bn_group="global")):
        with pytest.raises(UsageError, match="cuda_graphs=true: legal without compile, micro_batch and bn_group=global"):
            TrainConfig(cuda_graphs=True, **other)


def test_graphs_on_a_cpu_are_refused(small_corpus: Path) -> None:
    config = configuration.resolve({"corpus": str(small_corpus), "train": {"cuda_graphs": True}})
    with pytest.raises(UsageError, match="train.cuda_graphs=true: takes a GPU, this run is on cpu; legal: false"):
        plan.complete(config, dsengine.open_corpus(small_corpus), ranks=1, device=torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs run on one alone")
@pytest.mark.parametrize("name", ["csf", "byol"])
def test_graphs_learn_what_the_encoder_learns_as_it_is(name: str) -> None:
    found = []
    for cuda_graphs in (False, True):
        torch.manual_seed(0)
        method = place(make(name, encoder_for(name, normed=True)), "fp32", torch.device("cuda"))
        set_groups(method, 4, 8)
        step = Step(method, make_optimizer(method, TrainConfig()), precision="fp32", world=SOLO, cuda_graphs=cuda_graphs)
        batches = [make_batch(method, 8, step=k, seed=k) for k in range(STEPS)]
        batches = [b._replace(views=tuple(v.cuda() for v in b.views), sample_id=b.sample_id.cuda()) for b in batches]
        losses = [step(batch, lr=1e-3)["loss"].item() for batch in batches]
        found.append(([*losses], [buffer.clone() for buffer in method.buffers()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert all(torch.allclose(a.double(), b.double(), rtol=1e-4) for a, b in zip(found[0][1], found[1][1]))
