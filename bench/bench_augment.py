"""Our whole augmentation (draws, composition, op) of two CSF views against the same views by batched torch ops, eager and compiled,
against kornia's operations, and against a per-sample Pillow chain on 8-bit images in two worker processes.

Run `pytest bench/bench_augment.py --benchmark-enable -s`. All sides use two threads or processes. The torch baselines run at glibc's
own settings and at their best: big blocks kept by the process (mallopt), which matters more than most changes to code, and
torch.compile. Ours writes into memory that is used again, as the loader has it do. The op's inner loops, its stores and the jitters' composition move the numbers. Run it on an idle machine:
with a neighbour on one of two cores torch's threads wait for each other and the ratio comes out several times too high.
"""

import colorsys
import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from paired import paired_ratio
from peers import kornia_enhance
from pil_chain import sample as pil_sample
from shapes import AUGMENT_BATCH, CSF_VIEWS, NUM_BANDS, PATCH_PX, VIEW_PX
from torch import Tensor

from dsengine import ops
from dsengine.augment.apply import BandPlan, Request, affine, augment
from dsengine.augment.params import Draws, draw
from dsengine.data.ring import Ring

WORKERS = 2
RING = Ring(2)
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(WORKERS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plan() -> BandPlan:
    """Raw values of a few thousand on one array."""
    bands = torch.tensor([(0, band, 1) for band in range(NUM_BANDS)], dtype=torch.int32)
    ones = np.ones(NUM_BANDS)
    return BandPlan(names=tuple(f"B{band}" for band in range(NUM_BANDS)), bands=bands, scale=1e-4 * ones, offset=0 * ones,
                    mean=0.2 * ones, std=0.08 * ones, is_colour=ones > 0, nodata=-32768)


@pytest.fixture(scope="module")
def raw() -> Tensor:
    """(B, C, P, P) int16."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 4000, (AUGMENT_BATCH, NUM_BANDS, PATCH_PX, PATCH_PX), generator=g).to(torch.int16)


def draws() -> list[Draws]:
    return [draw(spec, view=k, size=VIEW_PX, patch_size=PATCH_PX, num_bands=NUM_BANDS, seed=0, epoch=0,
                 ids=np.arange(AUGMENT_BATCH), level=1.0) for k, spec in enumerate(CSF_VIEWS)]


def fused(raw: Tensor, plan: BandPlan) -> tuple[Tensor, ...]:
    return augment([raw], [Request(plan, view, VIEW_PX) for view in draws()], memory=RING)


Chain = Callable[[Tensor, Tensor, Tensor], Tensor]


def stepwise(raw: Tensor, plan: BandPlan, drawn: list[Draws], chain: Chain) -> tuple[Tensor, ...]:
    """The same views by torch ops over the whole batch; gets its draws for nothing."""
    return tuple(_stepwise_view(raw, plan, view, chain) for view in drawn)


def _stepwise_view(raw: Tensor, plan: BandPlan, view: Draws, chain: Chain) -> Tensor:
    crops = torch.stack([raw[row, :, y:y + VIEW_PX, x:x + VIEW_PX] for row, (y, x) in enumerate(view.offset.tolist())])
    z = (crops.float() - plan.center[:, None, None]) * torch.from_numpy(plan.scale / plan.std).float()[:, None, None]
    z = chain(z, torch.from_numpy(view.triple), torch.from_numpy(view.factor).float())
    z *= torch.from_numpy(view.keep)[:, :, None, None]
    return z.contiguous(memory_format=torch.channels_last)


def jitters(z: Tensor, triples: Tensor, factors: Tensor) -> Tensor:
    """z (B, C, S, S), overwritten; triples (B, K, 3), factors (B, K, 4)."""
    for k in range(triples.shape[1]):
        index = triples[:, k, :, None, None].expand(-1, -1, VIEW_PX, VIEW_PX)
        z.scatter_(1, index, _jitter(z.gather(1, index), *factors[:, k, :, None, None, None].unbind(1)))
    return z


def hsv_jitters(z: Tensor, triples: Tensor, factors: Tensor) -> Tensor:
    """The same chain as data sets have it: values clamped to [0, 1] after each step, hue turned in HSV: other numbers."""
    for k in range(triples.shape[1]):
        index = triples[:, k, :, None, None].expand(-1, -1, VIEW_PX, VIEW_PX)
        brightness, contrast, saturation, hue = factors[:, k, :, None, None, None].unbind(1)
        p = (z.gather(1, index) * brightness).clamp(0, 1)
        p = torch.lerp(_grey(p).mean((2, 3), keepdim=True), p, contrast).clamp(0, 1)
        p = torch.lerp(_grey(p), p, saturation).clamp(0, 1)
        z.scatter_(1, index, _turned(p, hue[:, 0]))
    return z


def _turned(p: Tensor, hue: Tensor) -> Tensor:
    """RGB (B, 3, S, S) in [0, 1] with its hue moved by (B, 1, 1) cycles: to HSV, turned, and back."""
    value, low = p.amax(1), p.amin(1)
    chroma = value - low
    safe = torch.where(chroma == 0, 1, chroma)
    r, g, b = p.unbind(1)
    sector = torch.where(value == r, (g - b) / safe % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    turned = (sector + 6 * hue) % 6
    channels = [(turned + shift) % 6 for shift in (5.0, 3.0, 1.0)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in channels], 1)


def kornia_jitters(z: Tensor, triples: Tensor, factors: Tensor) -> Tensor:
    """The same chain by kornia's operations, which clamp to [0, 1] and turn hue in HSV: other numbers."""
    enhance = kornia_enhance()
    for k in range(triples.shape[1]):
        index = triples[:, k, :, None, None].expand(-1, -1, VIEW_PX, VIEW_PX)
        brightness, contrast, saturation, hue = factors[:, k].unbind(1)
        p = enhance.adjust_brightness_accumulative(z.gather(1, index), brightness)
        p = enhance.adjust_saturation(enhance.adjust_contrast_with_mean_subtraction(p, contrast), saturation)
        z.scatter_(1, index, enhance.adjust_hue(p, hue * 2 * torch.pi))
    return z


def _jitter(p: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """p (B, 3, S, S), each factor (B, 1, 1, 1); contrast and saturation blend as torchvision's tensor form does."""
    p = p * brightness
    p = torch.lerp(_grey(p).mean((2, 3), keepdim=True), p, contrast)
    p = torch.lerp(_grey(p), p, saturation)
    angle = 2 * torch.pi * hue.flatten()
    turn = torch.eye(3).repeat(len(p), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 2, 1] = angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    return torch.bmm(torch.linalg.inv(YIQ) @ turn @ YIQ, p.flatten(2)).view_as(p)


def _grey(p: Tensor) -> Tensor:
    return (0.299 * p[:, :1]).add_(p[:, 1:2], alpha=0.587).add_(p[:, 2:], alpha=0.114)


def keep_big_blocks() -> None:
    """glibc: no mmap for big blocks, no handing back of the heap's end (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_ large)."""
    libc = ctypes.CDLL(None)
    assert libc.mallopt(-4, 0) == 1 and libc.mallopt(-1, 2**31 - 1) == 1


def report(name: str, theirs: Callable[[], object], ours: Callable[[], object], benchmark: Callable) -> None:
    ratio = paired_ratio(theirs, ours, pairs=30)
    benchmark.pedantic(ours, rounds=20, warmup_rounds=2)
    rate = "" if benchmark.stats is None else f", ours {AUGMENT_BATCH / benchmark.stats.stats.median:.0f} samples/s"
    print(f"\n{name}: {ratio} x faster{rate} ({ops.build_info()['isa']}, batch {AUGMENT_BATCH})")


def test_two_csf_views_against_kornia(raw: Tensor, plan: BandPlan, benchmark: Callable) -> None:
    kornia_enhance()
    drawn = draws()
    assert all(view.isfinite().all() for view in stepwise(raw, plan, drawn, kornia_jitters))
    report("kornia, allocator default", lambda: stepwise(raw, plan, drawn, kornia_jitters), lambda: fused(raw, plan), benchmark)


def test_two_csf_views_against_a_per_sample_pillow_chain(raw: Tensor, plan: BandPlan, benchmark: Callable) -> None:
    """Not the same numbers (8 bits, clamped, hue in HSV): what users run today."""
    images = (raw.permute(0, 2, 3, 1) // 16).to(torch.uint8).numpy()
    drawn = draws()
    views = [[(d.offset[row], d.triple[row], d.factor[row], d.keep[row].astype(np.float32)) for d in drawn]
             for row in range(AUGMENT_BATCH)]
    stats = (np.full(NUM_BANDS, 125, dtype=np.float32), np.full(NUM_BANDS, 50, dtype=np.float32))
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        def chain() -> None:
            jobs = [pool.submit(pil_sample, image, view, VIEW_PX, *stats) for image, view in zip(images, views)]
            assert all(np.isfinite(job.result()) for job in jobs)

        report("per-sample Pillow chain, 2 processes", chain, lambda: fused(raw, plan), benchmark)


def test_two_csf_views_against_batched_torch_ops_with_hue_in_hsv(raw: Tensor, plan: BandPlan, benchmark: Callable) -> None:
    """What a batched data set does at default settings: nobody reads the matrix form of hue in a tutorial."""
    pixels = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for turn in (-0.3, 0.0, 0.8):
        pairs = zip(_turned(pixels, torch.full((2, 1, 1), turn)).permute(0, 2, 3, 1).reshape(-1, 3).tolist(), pixels.permute(0, 2, 3, 1).reshape(-1, 3).tolist())
        for mine, rgb in pairs:
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            assert mine == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=1e-5)
    drawn = draws()
    report("batched torch ops, hue in HSV, allocator default", lambda: stepwise(raw, plan, drawn, hsv_jitters), lambda: fused(raw, plan), benchmark)


def test_share_of_what_the_machine_can_compute_and_move(raw: Tensor, plan: BandPlan, benchmark: Callable) -> None:
    """The operator alone, C^2 multiply-adds a pixel, against a matrix product; its bytes in and out against a copy of large tensors."""
    square, large, copy = torch.rand(2048, 2048), torch.rand(2**26), torch.empty(2**26)
    pixels = 2 * AUGMENT_BATCH * VIEW_PX**2
    compute = paired_ratio(lambda: torch.mm(square, square), lambda: fused(raw, plan), pairs=15)
    move = paired_ratio(lambda: copy.copy_(large), lambda: fused(raw, plan), pairs=15)
    flops, num_bytes = 2 * pixels * NUM_BANDS**2 / (2 * 2048**3), pixels * NUM_BANDS * (2 + 4) / (8 * 2**26)
    benchmark.pedantic(lambda: fused(raw, plan), rounds=20, warmup_rounds=2)
    print(f"\n{compute.median * flops:.0%} of the rate of a matrix product, {move.median * num_bytes:.0%} of the bandwidth of a copy")


# The allocator's setting cannot be taken back, so it is the slowest of the two to change, and these come last.
@pytest.mark.parametrize("chain", ["eager", "compiled"])
@pytest.mark.parametrize("allocator", ["default", "keeps big blocks"])
def test_two_csf_views_against_batched_torch_ops(raw: Tensor, plan: BandPlan, allocator: str, chain: str, benchmark: Callable) -> None:
    if allocator == "keeps big blocks":
        keep_big_blocks()
    drawn, form = draws(), torch.compile(jitters) if chain == "compiled" else jitters
    for mine, other in zip(fused(raw, plan), stepwise(raw, plan, drawn, form), strict=True):
        # Ten jitters in fp32 one after another against one operator.
        torch.testing.assert_close(mine, other, rtol=0, atol=5e-5 * other.abs().max().item())
    report(f"batched torch ops, {chain}, allocator {allocator}", lambda: stepwise(raw, plan, drawn, form), lambda: fused(raw, plan), benchmark)


def test_drawing_and_composing_are_a_small_part(raw: Tensor, plan: BandPlan, benchmark: Callable) -> None:
    def parameters() -> None:
        for view in draws():
            affine(plan, view, "zscore")

    ratio = paired_ratio(parameters, lambda: fused(raw, plan), pairs=30)
    benchmark.pedantic(parameters, rounds=10)
    print(f"\ndraws and composition: {ratio} of the whole")
