"""A training step of every method with every encoder it takes: samples/s, TFLOP/s, and the share of a serial bound.

Run `pytest bench/bench_methods.py --benchmark-enable -s`. Batches lie on the device (the loader has its own bench); a step is forward, backward and
update through `engine.step`. FLOPs are those of convolutions and matrix products, counted by torch. The bound is that count at the rate that one
large matrix product reaches in the same run and precision: what moves the share is everything that is no matrix product. On a CPU 16 samples of 64 px
in fp32, on a GPU 256 of 128 px in bf16; of pixels 2,048 (the second paper's batch), of series 16 and 256 of the paper's 144 and 365 dates.
"""

import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from paired import paired_ratio
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import dsengine
from dsengine import plugin
from dsengine.data.sample import Batch, sized
from dsengine.dist import SOLO
from dsengine.engine.optim import make_optimizer
from dsengine.engine.precision import place, view_dtype
from dsengine.engine.settings import TrainConfig
from dsengine.engine.step import Step
from dsengine.methods import Method
from dsengine.nn.norm import set_groups
from dsengine.nn.stem import set_form

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, SIZE, PRECISION = (256, 128, "bf16") if DEVICE.type == "cuda" else (16, 64, "fp32")
DTYPE = torch.bfloat16 if PRECISION == "bf16" else torch.float32
BANDS = 14
PIXELS, CHANNELS, DATES = 2048, {"all": 12, "s2": 12, "planet": 36}, {"all": 144, "s2": 144, "planet": 365}
SETTINGS = {"supervised": {"label": "landcover", "kind": "classmap", "channels": 7}}
TABLES = {"scarf": {}, "simclr": {"modalities": ("s2", "planet")}, "supervised": {"label": "crop", "kind": "class", "channels": 9}}
INPUTS = {name: getattr(plugin.find("dsengine.encoders", name), "INPUT", "image") for name in plugin.names("dsengine.encoders")}
PAIRS = [(method, encoder) for method in plugin.names("dsengine.methods") for encoder, kind in INPUTS.items()
         if (method != "scarf" if kind == "image" else method in TABLES)]


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# torch 2.13 counts the attention of a GPU, and not that of a CPU.
COUNTED = {_ATTENTION: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
           _ATTENTION_BACKWARD: lambda grad, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(grad, q, k, v)}


@cache
def matmul_rate() -> float:
    """FLOP/s of a large matrix product in the precision of the steps."""
    n = 8192 if DEVICE.type == "cuda" else 1024
    a = torch.randn(n, n, device=DEVICE, dtype=DTYPE)
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


def _images(encoder: str, name: str) -> tuple[Method, Batch]:
    method = dsengine.build_method(name, encoder=dsengine.build_encoder(encoder, BANDS), **SETTINGS.get(name, {}))
    g = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(ROWS, BANDS, view.size, view.size, generator=g).to(DEVICE, DTYPE, memory_format=torch.channels_last)
                  for view in sized(method.views, SIZE))
    label = torch.randint(0, 7, (ROWS, SIZE, SIZE), generator=g).to(DEVICE) if method.label else None
    return method, Batch(views, torch.arange(ROWS, device=DEVICE), label)


def _tables(encoder: str, name: str) -> tuple[Method, Batch]:
    keys = TABLES[name].get("modalities", ("all",))
    method = dsengine.build_method(name, encoders={key: dsengine.build_encoder(encoder, CHANNELS[key]) for key in keys}, **TABLES[name])
    g, rows = torch.Generator().manual_seed(0), PIXELS if INPUTS[encoder] == "pixel" else ROWS
    of = [view.sensor or "all" for view in method.views]
    shapes = [(rows, CHANNELS[key]) if INPUTS[encoder] == "pixel" else (rows, DATES[key], CHANNELS[key]) for key in of]
    views = tuple(torch.randn(shape, generator=g).to(DEVICE, DTYPE) for shape in shapes)
    label = torch.randint(0, 9, (rows,), generator=g).to(DEVICE) if method.label else None
    return method, Batch(views, torch.arange(rows, device=DEVICE), label)


@pytest.mark.parametrize("name, encoder", PAIRS)
def test_step(name: str, encoder: str, benchmark: Callable) -> None:
    torch.manual_seed(0)
    method, batch = _images(encoder, name) if INPUTS[encoder] == "image" else _tables(encoder, name)
    method, rows = place(method, PRECISION, DEVICE), len(batch.sample_id)
    set_groups(method, rows, rows)
    step = Step(method, make_optimizer(method, TrainConfig()), precision=PRECISION, world=SOLO)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        first = step(batch, lr=1e-4)["loss"]
    assert torch.isfinite(first)

    def run() -> None:
        step(batch, lr=1e-4)
        _wait()

    benchmark.pedantic(run, rounds=10 if benchmark.enabled else 1, warmup_rounds=2 if benchmark.enabled else 0)
    if benchmark.enabled:
        seconds, flops = benchmark.stats.stats.median, counter.get_total_flops()
        found = {"samples_per_s": rows / seconds, "tflop_per_s": flops / seconds / 1e12, "share_of_bound": flops / matmul_rate() / seconds}
        benchmark.extra_info.update(found, flops=flops, device=str(DEVICE), precision=PRECISION)
        print(f"\n{name} {encoder}: {found['samples_per_s']:.1f} samples/s, {found['tflop_per_s']:.3f} TFLOP/s, {found['share_of_bound']:.0%} of the bound")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["padded", "space_to_depth"])
def test_other_forms_of_the_first_convolution(form: str, precision: str, benchmark: Callable) -> None:
    """A whole step of CSF with a ResNet18, against the same step with the convolution as it is (`train.first_conv`)."""
    torch.manual_seed(0)
    method, batch = _images("resnet18", "csf")
    batch = batch._replace(views=tuple(view.to(view_dtype(precision)) for view in batch.views))
    method = place(method, precision, DEVICE)
    set_groups(method, ROWS, ROWS)
    step = Step(method, make_optimizer(method, TrainConfig()), precision=precision, world=SOLO)

    def in_form(which: str) -> Callable[[], None]:
        def run() -> None:
            set_form(method, which)
            step(batch, lr=1e-4)
            _wait()

        return run

    ratio = paired_ratio(in_form(form), in_form("as_is"), pairs=20 if benchmark.enabled else 1)
    print(f"\nfirst convolution {form}, {precision}: {ratio} of the time of a step with it as it is")
    benchmark.pedantic(in_form(form), rounds=3 if benchmark.enabled else 1)
