"""`--dry-run`: what it counts equals what is there, it refuses what a start refuses, and it needs no GPU and writes nothing."""

import gc
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsengine import cli
from dsengine import config as configuration
from dsengine.corpus import open_corpus
from dsengine.data.sample import Batch
from dsengine.engine import dry_run, estimate
from dsengine.engine.precision import place
from dsengine.engine.step import forward
from dsengine.engine.train import fresh_method
from dsengine.nn.norm import set_groups

ROWS, SIDE = 16, 32


class Wide(nn.Module):
    """loss = mean(relu(x W) V), by hand: 2 products forward, 3 backward (x takes no gradient)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 50, bias=False), nn.Linear(50, 3, bias=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.second(torch.relu(self.first(batch.views[0]))).mean()}


def test_operations_and_bytes_kept_are_those_of_a_network_counted_by_hand() -> None:
    cost = estimate.cost_of(Wide(), Batch((torch.empty(8, 20, device="meta"),), torch.empty(8, dtype=torch.int64, device="meta")), precision="fp32")
    first, second = 2 * 8 * 20 * 50, 2 * 8 * 50 * 3
    assert cost.flops == first + second + first + 2 * second and cost.backward
    assert cost.saved_bytes == 8 * 50 * 4  # the ReLU's output, which its own node and the second product share; x and the weights were there before
    # Activations 8x50 (before and behind the ReLU) and 8x3 forward at least; gradients of both weights backward.
    assert 4 * (8 * 50 + 50 * 3 + 20 * 50) <= cost.peak_bytes <= 4 * 3 * (8 * 50 + 50 * 3 + 20 * 50)


def _method(corpus: Path, name: str) -> nn.Module:
    method = place(fresh_method(configuration.resolve({"method": name, "encoder": "resnet18"}), open_corpus(corpus).bands), "fp32", torch.device("cpu"))
    set_groups(method, ROWS, ROWS)
    return method


def _batch(device: str, count: int = 2) -> Batch:
    make = torch.empty if device == "meta" else torch.randn
    views = tuple(make(ROWS, 14, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last) for _ in range(count))
    return Batch(views, torch.empty(ROWS, dtype=torch.int64, device="meta") if device == "meta" else torch.arange(ROWS))


@pytest.mark.parametrize("name", ["csf", "simclr"])
def test_what_is_kept_and_held_is_what_real_tensors_take(small_corpus: Path, tmp_path: Path, name: str) -> None:
    cost = estimate.cost_of(_method(small_corpus, name), _batch("meta"), precision="fp32")
    method, batch, kept = _method(small_corpus, name), _batch("cpu"), {}
    there = {x.untyped_storage().data_ptr() for x in (*method.parameters(), *method.buffers(), *batch.views)}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        scores = forward(method, batch, "fp32")
    real = sum(size for key, size in kept.items() if key not in there)
    assert cost.saved_bytes == pytest.approx(real, rel=0.02)
    del scores
    kept.clear()
    gc.collect()
    assert cost.peak_bytes == pytest.approx(_real_peak(method, batch, tmp_path / "trace.json"), rel=0.15)


def _real_peak(method: nn.Module, batch: Batch, trace: Path) -> float:
    """Bytes that the CPU allocator gave out at most during a pass, above those before it, as torch's profiler saw them."""
    method.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward(method, batch, "fp32")["loss"].backward()
    profiler.export_chrome_trace(str(trace))
    events = sorted((e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    held = peak = 0
    for event in events:
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def test_collectives_are_the_gradients_and_what_the_loss_gathers(small_corpus: Path) -> None:
    method = _method(small_corpus, "simclr")
    dim = method.projector[-1].out_features if hasattr(method, "projector") else next(reversed(list(method.projectors.values())))[-1].out_features
    sizes = [p.numel() * 4 for p in method.parameters() if p.requires_grad]
    buckets = estimate.buckets([p for p in method.parameters() if p.requires_grad])
    assert sum(buckets) == sum(sizes) and 1 < len(buckets) < len(sizes)
    assert [size for _, size in estimate.collectives_of(method, _batch("meta"), precision="fp32", ranks=8)] == [2 * ROWS * dim * 4]
    assert not torch.distributed.is_initialized()


def _plan(**settings: object) -> dry_run.Planned:
    return dry_run.planned(configuration.resolve(configuration.merge({"encoder": {"name": "resnet18"}}, settings)))


def test_the_plan_of_a_run_on_cpu_has_its_numbers(small_corpus: Path, tmp_path: Path) -> None:
    found = _plan(corpus=str(small_corpus), out=str(tmp_path / "run"), device={"gpus": 0}, train={"batch_size": 16, "precision": "fp32", "epochs": 3})
    rows = len(open_corpus(small_corpus).rows("train"))
    assert (found.ranks, found.per_epoch, found.steps, found.buckets) == (1, rows // 16, 3 * (rows // 16), ())
    weights = sum(p.numel() * 4 for p in _method(small_corpus, "csf").parameters())
    assert found.gradient_bytes == weights and found.optimizer_bytes == 2 * weights and found.weight_bytes > weights
    assert found.samples_per_s["this CPU"] > 0 and "timed here" in found.basis
    assert not (tmp_path / "run").exists()


def test_eight_gpus_are_planned_where_there_are_none(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["train", "--corpus", str(small_corpus), "--out", str(tmp_path / "run"), "--gpus", "8", "--batch-size", "64", "--encoder", "resnet18_attn", "--dry-run"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    for words in ("on 8 GPUs (", "64 = 8 x 8, bf16", "groups of 8 samples of a view, 1 on each rank", "H200 141 GB", "estimated:", "all-reduces of 46.5 MB", "MB a checkpoint"):
        assert words in said, words
    assert not (tmp_path / "run").exists() and not torch.distributed.is_initialized()


def test_the_estimate_for_the_reference_network_is_that_of_the_derivation(small_corpus: Path) -> None:
    # 28.8 GFLOP a sample, 158 MB moved, 790 TFLOP/s and 4.3 TB/s one after the other: 13.7 thousand samples/s, of which 0.8 are reached.
    method = place(fresh_method(configuration.resolve({"encoder": "resnet18_attn"}), open_corpus(small_corpus).bands), "bf16", torch.device("cpu"))
    set_groups(method, 256, 256)
    views = tuple(torch.empty(256, 14, 128, 128, dtype=torch.bfloat16, device="meta").contiguous(memory_format=torch.channels_last) for _ in range(2))
    cost = estimate.cost_of(method, Batch(views, torch.empty(256, dtype=torch.int64, device="meta")), precision="bf16")
    assert cost.flops / 256 == pytest.approx(28.8e9, rel=0.01) and cost.saved_bytes / 256 == pytest.approx(20.8e6, rel=0.02)
    assert dry_run._by_roofline(cost, 256, "bf16")["H200 141 GB"] == pytest.approx(0.8 * 13_700, rel=0.02)
    # Few samples a rank wait for the host: 900 launches, 5 to 8 ms.
    few = cost._replace(flops=cost.flops // 256, saved_bytes=cost.saved_bytes // 256)
    assert 5e-3 < 1 / dry_run._by_roofline(few, 1, "bf16")["H200 141 GB"] < 8e-3


@pytest.mark.parametrize("argv, words", [
    (["--gpus", "0", "--batch-size", "1000"], "train.batch_size=1000"),
    (["--gpus", "8", "--batch-size", "20"], "does not divide among 8 ranks"),
    (["--gpus", "8", "--batch-size", "64", "--set", "train.bn_group=16"], "train.bn_group=16"),
    (["--gpus", "0", "--encoder", "resmlp"], "encoder resmlp takes pixels"),
    (["--gpus", "0", "--set", "data.size=33"], "data.size=33"),
    (["--gpus", "0", "--resident", "gpu"], "'gpu' on a CPU"),
])
def test_it_refuses_what_a_start_refuses(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture, argv: list[str], words: str) -> None:
    for more in (["--dry-run"], []) if "8" not in argv else (["--dry-run"],):
        assert cli.main(["train", "--corpus", str(small_corpus), "--out", str(tmp_path / "run"), *argv, *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_it_refuses_a_folder_that_a_start_would_not_write_to(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "thesis.txt").touch()
    assert cli.main(["train", "--corpus", str(small_corpus), "--out", str(tmp_path), "--gpus", "8", "--batch-size", "64", "--dry-run"]) == 2
    assert "is not empty" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
