"""A training step of every method with every image encoder: samples/s, TFLOP/s, and the share of a serial bound.

Run `pytest bench/bench_methods.py --benchmark-enable -s`. Batches lie on the device (the loader has its own bench); a step is forward, backward and
update through `engine.step`. FLOPs are those of convolutions and matrix products, counted by torch. The bound is that count at the rate that one
large matrix product reaches in the same run and precision: what moves the share is everything that is no matrix product. On a CPU 16 samples of 64 px
in fp32, on a GPU 256 of 128 px in bf16.
"""

import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dsengine
from dsengine import plugin
from dsengine.data.sample import Batch, sized
from dsengine.dist import SOLO
from dsengine.engine.optim import make_optimizer
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step, place
from dsengine.methods import Method
from dsengine.nn.norm import set_groups

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, SIZE, PRECISION = (256, 128, "bf16") if DEVICE.type == "cuda" else (16, 64, "fp32")
BANDS = 14
SETTINGS = {"supervised": {"label": "landcover", "kind": "classmap", "channels": 7}}
METHODS = [name for name in plugin.names("dsengine.methods") if name != "scarf"]
ENCODERS = [name for name in plugin.names("dsengine.encoders") if getattr(plugin.find("dsengine.encoders", name), "INPUT", "image") == "image"]


@cache
def matmul_rate() -> float:
    """FLOP/s of a large matrix product in the precision of the steps."""
    n = 8192 if DEVICE.type == "cuda" else 1024
    a = torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16 if PRECISION == "bf16" else torch.float32)
    return 2 * n**3 / min(_seconds(lambda: a @ a) for _ in range(5))


def _seconds(call: Callable[[], object]) -> float:
    call()
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _batch(method: Method) -> Batch:
    g = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if PRECISION == "bf16" else torch.float32
    views = tuple(torch.randn(ROWS, BANDS, view.size, view.size, generator=g).to(DEVICE, dtype, memory_format=torch.channels_last)
                  for view in sized(method.views, SIZE))
    label = torch.randint(0, 7, (ROWS, SIZE, SIZE), generator=g).to(DEVICE) if method.label else None
    return Batch(views, torch.arange(ROWS, device=DEVICE), label)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", METHODS)
def test_step(name: str, encoder: str, benchmark: Callable) -> None:
    torch.manual_seed(0)
    method = place(dsengine.build_method(name, encoder=dsengine.build_encoder(encoder, BANDS), **SETTINGS.get(name, {})), PRECISION, DEVICE)
    set_groups(method, ROWS, ROWS)
    step = Step(method, make_optimizer(method, TrainConfig()), precision=PRECISION, world=SOLO)
    batch = _batch(method)
    with FlopCounterMode(display=False) as counter:
        first = step(batch, lr=1e-4)["loss"]
    assert torch.isfinite(first)

    def run() -> None:
        step(batch, lr=1e-4)
        _wait()

    benchmark.pedantic(run, rounds=10 if benchmark.enabled else 1, warmup_rounds=2 if benchmark.enabled else 0)
    if benchmark.enabled:
        seconds, flops = benchmark.stats.stats.median, counter.get_total_flops()
        found = {"samples_per_s": ROWS / seconds, "tflop_per_s": flops / seconds / 1e12, "share_of_bound": flops / matmul_rate() / seconds}
        benchmark.extra_info.update(found, flops=flops, device=str(DEVICE), precision=PRECISION)
        print(f"\n{name} {encoder}: {found['samples_per_s']:.1f} samples/s, {found['tflop_per_s']:.3f} TFLOP/s, {found['share_of_bound']:.0%} of the bound")
