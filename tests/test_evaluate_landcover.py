"""Land cover: the head and loss of the first paper and what its code got wrong, the loop, floors, and real labels of five sites."""

import copy
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from evaluate_cases import untrained_run  # noqa: E402

import dsengine
from dsengine import cli
from dsengine.encoders import Features
from dsengine.errors import RunError
from dsengine.evaluate import baselines
from dsengine.evaluate.segment import Data, Schedule, Segmenter, fit, judge, loss_of, predicted
from dsengine.nn.heads import Decoder

CPU = torch.device("cpu")
FLOOR = 1.1654  # nats: what the first paper's loss cannot fall below with its 7 channels


class Small(nn.Module):
    """An encoder of two bands with the paper's stride and few channels."""

    in_channels, dim = 2, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 16, 16)

    def forward(self, x: Tensor) -> Features:
        dense = self.conv(x).tanh()
        return Features(dense.mean((2, 3)), dense)


def scenes(count: int, *, seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images (count, 2, size, size) whose class, in all pixels but a few without, is the sign of the first band: 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 2, (count, 1, 1), generator=g).expand(-1, size, size).clone()
    x = torch.randn(count, 2, size, size, generator=g) * 0.3
    x[:, 0] += 2.0 * which - 1
    which[:, :2, :2] = -1
    return x, which


def data(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], batch: int) -> Data:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from zip(train[0].split(batch), train[1].split(batch))

    return Data(endless, len(train[0]) // batch, lambda: iter([val]))


def schedule(**changed: object) -> Schedule:
    return Schedule(**{"epochs": 12, "patience": 12, "lr": 2e-3, "weight": None, "autocast": False, **changed})


def test_the_head_has_the_papers_parameters_and_with_each_encoder_the_sum_of_table_9() -> None:
    head = sum(p.numel() for p in Decoder(512, 7).parameters())
    assert head == 2_266_631
    sums = {"resnet18": 13_477_639, "resnet34": 23_585_799, "resnet18_attn": 13_888_201}  # 13.5, 23.5 and 13.9 million in print
    for name, expected in sums.items():
        model = Segmenter(dsengine.build_encoder(name, 14), 512, 7, seed=0)
        assert sum(p.numel() for p in model.parameters()) == expected
        assert model.eval()(torch.zeros(1, 14, 64, 64)).shape == (1, 7, 64, 64)


def test_the_originals_double_softmax_cannot_fall_below_its_floor_and_ours_does() -> None:
    logits = torch.zeros(4, 7, 2, 2, dtype=torch.float64, requires_grad=True)
    label = torch.arange(16).reshape(4, 2, 2) % 7
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        double = F.cross_entropy(logits.softmax(1), label)
        double.backward()
        optimizer.step()
    assert double.item() == pytest.approx(math.log(1 + 6 / math.e), abs=1e-4) == pytest.approx(FLOOR, abs=1e-4)
    assert loss_of(logits.detach(), label).item() < 1e-3


def test_the_loss_is_the_mean_over_labelled_pixels_by_hand_also_with_class_weights() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(3, 5, 4, 4, dtype=torch.float64), torch.randint(-1, 3, (3, 4, 4))
    weight = torch.tensor([0.5, 2.0, 1.5])
    for given in (None, weight):
        total = scale = 0.0
        for b in range(3):
            for y in range(4):
                for x in range(4):
                    if label[b, y, x] >= 0:
                        w = 1.0 if given is None else given[label[b, y, x]].item()
                        row = logits[b, :, y, x].float().double()
                        total += w * (math.log(row.exp().sum()) - row[label[b, y, x]].item())
                        scale += w
        assert loss_of(logits, label, given).item() == pytest.approx(total / scale, rel=1e-5)
    assert loss_of(logits, torch.full((3, 4, 4), -1)).item() == 0.0


def test_training_learns_keeps_the_best_epoch_and_stops_when_val_does_not_rise() -> None:
    train, val, test = scenes(24), scenes(12, seed=1), scenes(16, seed=2)
    model = Segmenter(Small(), 8, 3, seed=0)  # a channel beyond the two classes
    history = fit(model, data(train, val, 8), schedule(), num_classes=2, device=CPU)
    assert history[-1]["loss"] < 0.25 and max(record["val_iou_weighted"] for record in history) > 0.98
    counts = sum(judge(model, iter([test]), num_classes=2, device=CPU))
    assert counts.sum() == 16 * (256 - 4) and np.trace(counts) > 0.98 * counts.sum()
    kept = sum(judge(model, iter([val]), num_classes=2, device=CPU))
    best = max(history, key=lambda record: record["val_iou_weighted"])
    assert np.trace(kept) / kept.sum() == pytest.approx(best["val_accuracy"])
    still = fit(Segmenter(Small(), 8, 2, seed=0), data(train, val, 8), schedule(lr=1e-12, patience=2), num_classes=2, device=CPU)
    assert 3 <= len(still) <= 5


def test_the_weights_of_the_best_epoch_are_kept_where_val_falls() -> None:
    train, (x, label) = scenes(16), scenes(8, seed=1)
    against = (x, torch.where(label < 0, label, 1 - label))  # the more is learned, the worse
    long = Segmenter(Small(), 8, 2, seed=0)
    short = copy.deepcopy(long)
    history = fit(long, data(train, against, 8), schedule(epochs=6, patience=6), num_classes=2, device=CPU)
    best = max(history, key=lambda record: record["val_iou_weighted"])
    assert best["epoch"] < 6 and history[-1]["val_iou_weighted"] < 0.5 * best["val_iou_weighted"]
    fit(short, data(train, against, 8), schedule(epochs=int(best["epoch"])), num_classes=2, device=CPU)
    assert all(torch.equal(a, b) for a, b in zip(long.state_dict().values(), short.state_dict().values()))


def test_few_batches_an_epoch_still_give_statistics_of_their_own() -> None:
    """With a running mean that takes a tenth of each batch, two batches would leave the initial 0 and 1, far from these inputs."""
    train = (scenes(8)[0] * 50 + 300, scenes(8)[1])
    model = Segmenter(None, 2, 2, seed=0)
    maps = (F.avg_pool2d(train[0], 16), train[1])
    fit(model, data(maps, maps, 4), schedule(epochs=1, lr=1e-9), num_classes=2, device=CPU)
    with torch.no_grad():
        trained, judged = (getattr(model, mode)()(maps[0][:4]) for mode in ("train", "eval"))
    assert (trained - judged).abs().mean() < 0.5 * trained.std()


def test_a_head_on_maps_says_what_the_encoder_with_that_head_says() -> None:
    whole, head = Segmenter(Small(), 8, 3, seed=4).eval(), Segmenter(None, 8, 3, seed=4).eval()
    x, label = scenes(3)
    with torch.no_grad():
        torch.testing.assert_close(head(whole.encoder(x).dense), whole(x))
        found = predicted(whole, x, label.shape[1:], num_classes=2)
        logits = whole(x)
        logits[:, 2] = 99  # a channel that is no class
        assert found.max() <= 1 and torch.equal(found, logits[:, :2].argmax(1))
        assert predicted(whole, x, torch.Size((24, 24)), num_classes=3).shape == (3, 24, 24)


@pytest.mark.parametrize("side, stride", [(40, 16), (40, 8), (64, 32), (32, 16)])
def test_a_pixel_is_judged_by_the_cell_above_it_also_where_the_stride_does_not_divide_the_size(side: int, stride: int) -> None:
    """The head as a plain enlargement of each cell by 16: the finished map must be that of the cells where they lie."""
    cells = -(-side // stride)
    which = torch.arange(cells * cells).reshape(cells, cells) % 7
    logits = F.one_hot(which, 7).permute(2, 0, 1)[None].float().repeat_interleave(16, 2).repeat_interleave(16, 3)
    found = predicted(lambda x: logits, torch.zeros(1, 1, side, side), torch.Size((side, side)), num_classes=7)
    middles = torch.arange(stride // 2, side, stride)
    middles = middles[middles < side - stride // 4]
    expected = which[middles // stride][:, middles // stride]
    assert found.shape == (1, side, side) and torch.equal(found[0][middles][:, middles], expected)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    train = scenes(8)
    train[0][3] = math.nan
    with pytest.raises(RunError, match="not finite"):
        fit(Segmenter(Small(), 8, 2, seed=0), data(train, train, 8), schedule(), num_classes=2, device=CPU)


def test_floors_are_the_commonest_class_and_a_line_through_the_bands_of_a_pixel() -> None:
    x, label = scenes(20)
    label[label == 1] = 2  # class 1 does not occur
    for name, least in (("majority", 0.4), ("pixel", 0.97)):
        guess, said = baselines.FITS[name](iter(zip(x.split(8), label.split(8))), 3, seed=0)
        counts = baselines.judge(guess, x, label, 3).sum(0)
        assert counts.sum() == (label >= 0).sum() and np.trace(counts) / counts.sum() >= least
        if name == "majority":
            assert said["class"] == torch.bincount(label[label >= 0]).argmax() and (counts.sum(0) > 0).sum() == 1
        else:
            assert said["pixels"] == 20 * 252


@pytest.fixture(scope="module")
def sites(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, out = sample_data / "pairs" / "terramesh", tmp_path_factory.mktemp("sites") / "corpus"
    assert cli.main(["corpus", "build", str(out), "--source", "geotiff", "--s2", f"{folder}/S2L2A/*.tif", "--s1", f"{folder}/S1RTC/*.tif",
                     "--label", f"lulc={folder}/LULC/*.tif", "--size", "64", "--stride", "160"]) == 0
    return out


@pytest.mark.parametrize("size, epochs", [(32, 1), pytest.param(64, 30, marks=pytest.mark.learning)])
def test_real_labels_of_five_sites_are_judged_site_by_site_with_floors_and_no_claim(sites: Path, tmp_path: Path, size: int, epochs: int) -> None:
    run = untrained_run(tmp_path / "run", sites)
    assert cli.main(["evaluate", "landcover", "--run", str(run), "--corpus", str(sites), "--out", str(tmp_path / "out"), "--finetune", "--split",
                     "leave-out:source", "--size", str(size), "--epochs", str(epochs), "--set", f"crop={size - 16}", "--set", "num_draws=100",
                     *(["--floors", "majority,pixel", "--set", "train_batch=4"] if epochs > 1 else [])]) == 0
    found, table = json.loads((tmp_path / "out" / "results.json").read_text()), (tmp_path / "out" / "table.md").read_text()
    assert len(found["folds"]) == 5 and all(fold["test"] == fold["val"] == len(dsengine.open_corpus(sites)) // 5 for fold in found["folds"])
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"run", "commonest class", "pixel by pixel", *(["untrained resnet18"] if epochs == 1 else [])}
    assert all(row["num_groups"] == 5 for row in rows.values())
    assert "water" in found["classes"] and len({np.sum(row["confusion"]) for row in rows.values()}) == 1
    assert rows["run"]["over_best_floor"]["floor"] in rows and "5 places are few" in table and "prove nothing" in table
    if epochs > 1:
        print(table)
        losses = [[epoch["loss"] for epoch in chosen["history"]] for chosen in rows["run"]["protocol"]["chosen"]]
        assert all(fold[-1] < 0.8 * fold[0] for fold in losses), losses
