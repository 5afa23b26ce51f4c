"""Triplet, attention, BatchNorm, warp and unfilter against the eager form, torch.compile of it, and the best library form.

Run `pytest bench/bench_kernels.py --benchmark-enable -s`. On a GPU where there is one, else on CPU with torch's threads, where the
shapes have an eighth of the samples. Each line gives ours, the ratio to each baseline (median of pairs, 95 % interval), the bytes that
must move and, on a GPU, their share of the bandwidth that a copy reaches in the same run; multiply-adds counted twice, and what is allocated at
most above the inputs, ours and eager (on CPU by the resident size). NT-Xent has bench_ntxent.py, the augmentation bench_augment.py.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import shapes
import torch
import torch.nn.functional as F
from paired import paired_ratio
from torch import Tensor

from dsengine import ops
from dsengine.kernels import attention, batch_norm, triplet
from dsengine.kernels.attention import reference as attention_reference
from dsengine.kernels.batchnorm import reference as norm_reference
from dsengine.kernels.triplet import reference as triplet_reference
from dsengine.ops.unfilter_op import unfilter_reference
from dsengine.ops.warp_op import blur_reference, warp_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
PAIRS = 30 if DEVICE == "cuda" else 9


class Case(NamedTuple):
    """What is timed: functions of the same inputs with the same result."""

    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    library: Callable[..., Tensor] | None
    inputs: tuple[Tensor, ...]
    num_bytes: int  # that must move, forward and backward
    num_flops: int  # of the definition, forward and backward, nothing recomputed
    tolerance: float


def _batch(num: int) -> int:
    return num if DEVICE == "cuda" else max(1, num // 8)


def _random(*shape: int, last: bool = False, gradient: bool = True) -> Tensor:
    x = torch.randn(_batch(shape[0]), *shape[1:], device=DEVICE, dtype=DTYPE)
    return (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_(gradient)


def _triplet(shape: tuple[int, ...], kind: str) -> Case:
    anchor, positive = (_random(*shape, last=len(shape) == 4) for _ in range(2))

    def library(a: Tensor, p: Tensor) -> Tensor:
        flat_a, flat_p = (x.flatten(2).transpose(1, 2).flatten(0, 1) if x.ndim == 4 else x for x in (a, p))
        return F.triplet_margin_loss(flat_a, flat_p, flat_p.roll(7 * (flat_p.shape[0] // p.shape[0]), 0), margin=0.5, p=2.0 if kind == "euclidean" else 1.0)

    return Case(lambda a, p: triplet(a, p, margin=0.5, distance=kind, shift=7)[0],
                lambda a, p: triplet_reference.triplet(a, p, p.roll(7, 0), 0.5, kind, False), library, (anchor, positive),
                7 * anchor.numel() * anchor.element_size(), 20 * anchor.numel(), 2e-2)


def _attention(shape: tuple[int, int, int, int]) -> Case:
    num, cells, head, value = shape
    q, k, v, x = _random(num, cells, head), _random(num, cells, head), _random(num, cells, value), _random(num, cells, value)
    gamma = torch.tensor(0.5, device=DEVICE, requires_grad=True)

    def library(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
        return gamma.to(x.dtype) * F.scaled_dot_product_attention(q, k, v, scale=1.0) + x

    moved = 2 * (2 * q.numel() + 3 * v.numel()) + 2 * v.numel()
    return Case(attention, attention_reference.attention, library, (q, k, v, x, gamma), moved * q.element_size(),
                6 * len(q) * cells * cells * (head + value), 5e-2)


def _norm(shape: tuple[int, int, int, int], group: int) -> Case:
    x, residual = _random(*shape, last=True), _random(*shape, last=True)
    weight, bias = (torch.rand(shape[1], device=DEVICE).requires_grad_() for _ in range(2))
    size = _batch(group)

    def library(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parts = [F.batch_norm(part, None, None, weight, bias, True, 0.0, 1e-5) for part in x.split(size)]
        return F.relu(torch.cat(parts) + residual)

    return Case(lambda x, r, w, b: batch_norm(x, w, b, group=size, residual=r, relu=True).y,
                lambda x, r, w, b: norm_reference.batch_norm(x, w, b, group=size, eps=1e-5, residual=r, relu=True).y, library,
                (x, residual, weight, bias), 11 * x.numel() * x.element_size(), 16 * x.numel(), 5e-2)


CASES = {
    "triplet dense l1": lambda: _triplet(shapes.TRIPLET_DENSE, "l1"),
    "triplet pooled euclidean": lambda: _triplet(shapes.TRIPLET_POOLED, "euclidean"),
    "attention N=256": lambda: _attention(shapes.ATTENTION[0]),
    "attention N=64": lambda: _attention(shapes.ATTENTION[1]),
    "batch_norm 64 x 64": lambda: _norm(*shapes.NORM[0]),
    "batch_norm 32 x 32": lambda: _norm(*shapes.NORM[1]),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name: str, benchmark: Callable) -> None:
    case = CASES[name]()
    step = _step_of(case)
    baselines = {"eager": case.eager, "compiled": torch.compile(case.eager), "library": case.library}
    ours = step(case.ours)
    for mine, other in zip(ours, step(case.eager), strict=True):
        outside = (mine.float() - other.float()).abs() > case.tolerance * other.float().abs().max()
        assert outside.float().mean() <= 1e-6  # a ReLU's input that is 0 up to rounding may fall on either side
    ratios = {label: paired_ratio(lambda: step(form), lambda: step(case.ours), pairs=PAIRS) for label, form in baselines.items()}
    benchmark.pedantic(lambda: step(case.ours), rounds=10, warmup_rounds=2)
    peaks = {label: _peak_mb(lambda: step(form)) for label, form in (("ours", case.ours), ("eager", case.eager))}
    _report(name, case, ratios, peaks, benchmark)


def _step_of(case: Case) -> Callable[[Callable[..., Tensor]], tuple[Tensor, ...]]:
    """A function that runs a form forward and backward; returns its value and gradients."""
    seed = torch.randn_like(case.eager(*case.inputs))

    def step(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = function(*case.inputs)
        grads = torch.autograd.grad(y, case.inputs, seed.to(y.dtype))
        return _waited((y.detach(), *grads))

    return step


@pytest.mark.parametrize("shape", shapes.WARP)
def test_warp_and_blur(shape: tuple[int, ...], benchmark: Callable) -> None:
    x = _random(*shape, last=True, gradient=False)
    theta = torch.tensor([[[0.7, 0.1, 5.0], [-0.1, 0.7, 8.0]]], device=DEVICE).repeat(len(x), 1, 1)
    sigma = torch.full((len(x),), 1.2, device=DEVICE)
    side = shape[-1]
    for name, ours, eager in (("warp", lambda: _waited(ops.warp(x, theta, side, side)), lambda: _waited(warp_reference(x, theta, side, side))),
                              ("blur", lambda: _waited(ops.blur(x, sigma, 6)), lambda: _waited(blur_reference(x, sigma, 6)))):
        torch.testing.assert_close(ours().float(), eager().float(), rtol=0, atol=4e-2 if DTYPE == torch.bfloat16 else 1e-4)  # torch places pixels in fp32
        print(f"\n{name} {tuple(x.shape)}: {paired_ratio(eager, ours, pairs=PAIRS)} x faster than torch")
    benchmark.pedantic(lambda: _waited(ops.warp(x, theta, side, side)), rounds=10, warmup_rounds=2)


def test_unfilter(benchmark: Callable) -> None:
    raw = torch.randint(0, 256, shapes.UNFILTER, dtype=torch.uint8, device=DEVICE)
    ours, eager = lambda: _waited(ops.unfilter(raw, "shuffle", 2, 65536)), lambda: _waited(unfilter_reference(raw, "shuffle", 2, 65536))
    assert torch.equal(ours(), eager())
    print(f"\nunfilter {tuple(raw.shape)}: {paired_ratio(eager, ours, pairs=PAIRS)} x faster than torch")
    benchmark.pedantic(ours, rounds=10, warmup_rounds=2)


def _waited(result: object) -> object:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


def _report(name: str, case: Case, ratios: dict[str, object], peaks: dict[str, float], benchmark: Callable) -> None:
    benchmark.extra_info.update(device=DEVICE, dtype=str(DTYPE), bytes=case.num_bytes, **{label: str(ratio) for label, ratio in ratios.items()})
    text = ", ".join(f"{label} {ratio} x" for label, ratio in ratios.items())
    benchmark.extra_info.update(flops=case.num_flops, **{f"peak_mb_{form}": peak for form, peak in peaks.items()})
    seconds = None if benchmark.stats is None else benchmark.stats.stats.median
    share = f", {case.num_bytes / seconds / _copy_bandwidth():.0%} of a copy's bandwidth" if seconds and DEVICE == "cuda" else ""
    print(f"\n{name}: faster than {text}; {case.num_bytes / 2**20:.0f} MiB must move, "
          f"{case.num_flops / 1e9:.2f} GFLOP, {peaks['ours']:.0f} MB above the inputs (eager {peaks['eager']:.0f})" + (f", ours {seconds * 1e3:.2f} ms{share}" if seconds else ""))


def _peak_mb(step: Callable[[], object]) -> float:
    """What a step allocates at most above what is there before it, 1e6 bytes; on CPU by the process's resident size."""
    step()
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return (_resident("VmHWM") - before) / 1e6


def _resident(field: str) -> int:
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024


@cache
def _copy_bandwidth() -> float:
    """Bytes/s, read and written, of the best of ten copies of 1 GiB."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start.record()
        x.clone()
        stop.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(stop) * 1e-3)
    return 2 * x.numel() / best
