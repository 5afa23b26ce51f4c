"""What a study will cost: operations against a count by hand, and when n at a time are done."""

import pytest
import torch
from torch import nn

from dsengine import config as configuration
from dsengine.corpus.schema import standard_layout
from dsengine.encoders import build_encoder
from dsengine.study import cells, cost, spec
from dsengine.study.cells import Cell
from dsengine.study.operations import Images, of_sample, operations

IMAGES = Images(standard_layout(64).bands(), 64, 100, (80, 10, 10))
STUDY = {"corpus": {"synth": {"patches": 100, "size": 64}}, "encoders": ["resnet18"], "methods": ["csf"], "train": {"epochs": 3, "batch_size": 20},
         "data": {"size": 48}, "evaluations": {"landcover": {"finetune": True, "epochs": 5, "crop": 32}, "linear": {}}}


def by_hand(module: nn.Module, x: torch.Tensor) -> list[float]:
    """2 x multiplications of each convolution of `module`, in order."""
    found = []

    def add(layer: nn.Module, given: tuple, y: torch.Tensor) -> None:
        height, width = layer.kernel_size
        pixels = given[0].shape[2:] if isinstance(layer, nn.ConvTranspose2d) else y.shape[2:]
        found.append(2.0 * layer.in_channels * layer.out_channels * height * width * pixels.numel() * len(y))

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        module(x)
    return found


def test_a_sample_of_csf_is_two_views_forward_and_backward_but_for_the_gradient_of_the_image() -> None:
    config = configuration.resolve({"method": "csf", "encoder": "resnet18", "data": {"size": 48}})
    convolutions = by_hand(build_encoder("resnet18", 14).eval(), torch.zeros(1, 14, 48, 48))
    wanted = 2 * (3 * sum(convolutions) - convolutions[0])
    assert of_sample(config, IMAGES) == pytest.approx(wanted, rel=1e-3)


def test_cells_are_their_samples_times_that() -> None:
    planned = cells.plan(spec.parse(spec._mapped(STUDY)))
    corpus, train, *judged = planned
    landcover, linear = sorted(judged, key=lambda cell: cell.about["evaluation"])
    sample = of_sample(configuration.resolve(train.task), IMAGES)
    assert operations(corpus, planned) == 0
    rows = 80  # of 100, in a corpus that is not made yet
    assert operations(train, planned) == pytest.approx(3 * (rows // 20) * 20 * sample)
    encoder = sum(by_hand(build_encoder("resnet18", 14).eval(), torch.zeros(1, 14, 64, 64)))
    assert operations(linear, planned) == pytest.approx(100 * encoder, rel=1e-3)
    from dsengine.nn.heads import Decoder

    whole = encoder + sum(by_hand(Decoder(512, 9).eval(), torch.zeros(1, 512, 4, 4)))
    assert operations(landcover, planned) == pytest.approx(5 * (rows * 3 * whole / 4 + 10 * whole) + 10 * whole, rel=1e-3)


@pytest.mark.parametrize("slots, seconds", [(1, 15), (2, 8), (8, 8)])
def test_cells_begin_in_order_when_a_slot_is_free_and_what_they_need_is_done(slots: int, seconds: float) -> None:
    def cell(name: str, *needs: Cell) -> Cell:
        return Cell(kind="train", name=name, settings={"name": name}, needs=tuple(need.id for need in needs))

    first = cell("first")
    others = [cell("a", first), cell("b", first), cell("c")]
    last = cell("last", others[0])
    lasts = dict(zip((of.id for of in (first, *others, last)), (2.0, 4.0, 3.0, 4.0, 2.0)))
    # Two slots: first 0 to 2, c 0 to 4, a 2 to 6, b 4 to 7, last 6 to 8.
    assert cost.makespan([first, *others, last], lasts, slots=slots) == seconds


def test_a_given_rate_is_that_of_the_first_training(tmp_path_factory: pytest.TempPathFactory) -> None:
    study = spec.parse(spec._mapped({**STUDY, "evaluations": []}))
    planned = cells.plan(study)
    text = cost.report(study, planned, tmp_path_factory.mktemp("none") / "out", num_slots=1, rate=2.0, device="cpu")
    assert cost_of(text, "train resnet18 csf s0").endswith("0:02:10")  # 10 s and 240 samples
    assert "1 at a time: about 0:02:20" in text and "8 at a time: about 0:02:20" in text


def cost_of(text: str, title: str) -> str:
    (line,) = [line for line in text.splitlines() if title in line and "TFLOP" in line and "given" not in line]
    return line
