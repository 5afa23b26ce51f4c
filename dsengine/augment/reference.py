"""The oracle: the same views as augment.apply, one sample, one jitter and one adjustment at a time, in float64.

Slow and obvious. The mean of the crop travels along as one more pixel: as long as no pixel lacks data it stays the mean
of the others, and where some do it is defined so. Written from the definitions in augment.apply, sharing none of its matrices.
"""

import math

import numpy as np
import torch
from torch import Tensor

from dsengine.augment.apply import BandPlan, Request
from dsengine.augment.warp import Warp

_LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)


def augment_reference(sources: list[Tensor], requests: list[Request]) -> tuple[Tensor, ...]:
    """What augment.apply.augment returns, in float64 and contiguous."""
    return tuple(torch.stack([_view(sources, request, row) for row in range(len(sources[0]))]) for request in requests)


def _view(sources: list[Tensor], request: Request, row: int) -> Tensor:
    """One sample's view, (C, size, size)."""
    plan, draws = request.plan, request.draws
    raw = _crop(sources, request, row)
    present = raw != plan.nodata
    in_zscore = request.jitter_space == "zscore"
    # Where there is no data, the band is at its mean: 0 after z-scoring.
    value = torch.where(present, _physical(raw, plan), _column(plan.mean)[..., None])
    value = torch.cat((value.flatten(1), _mean(value, present, plan)), dim=1)
    value = _zscore(value, plan) if in_zscore else value
    for triple, factor in zip(draws.triple[row], draws.factor[row]):
        colour = len(plan.names) >= 3 and (in_zscore or bool(plan.is_colour[triple].all()))
        bands = triple.tolist() if colour else sorted(set(triple.tolist()))
        value[bands] = _jitter(value[bands], factor.tolist(), colour)
    value = value if in_zscore else _zscore(value, plan)
    view = torch.where(present, value[:, :-1].view(raw.shape), 0) * _column(draws.keep[row])[..., None]
    if request.warp is not None:
        view = _warped(view, request.warp, row)
    return view if request.pick is None else view[request.pick[row].tolist()]


def _warped(view: Tensor, warp: Warp, row: int) -> Tensor:
    """(C, window, window) as (C, size, size): each output pixel looked up between the four pixels around its place, then blurred."""
    if warp.theta is not None:
        places = np.stack(np.meshgrid(np.arange(warp.size), np.arange(warp.size), [1.0], indexing="ij"), axis=-1)[:, :, 0]
        y, x = np.moveaxis(places @ warp.theta[row].astype(np.float64).T, -1, 0)
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        down, right = torch.from_numpy(y - top), torch.from_numpy(x - left)
        upper = (1 - right) * _mirrored(view, top, left) + right * _mirrored(view, top, left + 1)
        lower = (1 - right) * _mirrored(view, top + 1, left) + right * _mirrored(view, top + 1, left + 1)
        view = (1 - down) * upper + down * lower
    if warp.sigma is not None and warp.sigma[row] > 0:
        taps = range(-warp.radius, warp.radius + 1)
        weights = [math.exp(-0.5 * (tap / float(warp.sigma[row])) ** 2) for tap in taps]
        at = np.arange(warp.size)
        rows, columns = at[:, None] + 0 * at, at + 0 * at[:, None]
        view = sum(w * _mirrored(view, rows + tap, columns) for w, tap in zip(weights, taps)) / sum(weights)
        view = sum(w * _mirrored(view, rows, columns + tap) for w, tap in zip(weights, taps)) / sum(weights)
    return view


def _mirrored(view: Tensor, y: np.ndarray, x: np.ndarray) -> Tensor:
    """view (C, H, W) at whole rows y and columns x, mirrored about its edge pixels."""
    folded = []
    for at, extent in ((y, view.shape[1]), (x, view.shape[2])):
        period = max(2 * (extent - 1), 1)
        folded.append(np.minimum(at % period, period - at % period) if extent > 1 else at * 0)
    return view[:, folded[0], folded[1]]


def _crop(sources: list[Tensor], request: Request, row: int) -> Tensor:
    """(C, size, size) raw integers, turned."""
    y, x = request.draws.offset[row].tolist()
    code, size = int(request.draws.code[row]), request.size
    bands = []
    for source, channel, factor in request.plan.bands.tolist():
        fine = sources[source][row, channel].repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        turned = torch.rot90(fine[y:y + size, x:x + size], code % 4, dims=(0, 1))
        bands.append(turned.flip(1) if code >= 4 else turned)
    return torch.stack(bands)


def _jitter(p: Tensor, factor: list[float], colour: bool) -> Tensor:
    """Brightness, contrast, saturation, hue on p (bands, S * S + 1)."""
    brightness, contrast, saturation, hue = factor
    p = p * brightness
    mean = p[:, -1:]
    p = contrast * p + (1 - contrast) * (_LUMA @ mean if colour else mean)
    if colour:
        p = saturation * p + (1 - saturation) * (_LUMA @ p)
        p = _turn_hue(p, hue)
    return p


def _turn_hue(p: Tensor, cycles: float) -> Tensor:
    luma, i, q = _YIQ @ p
    cos, sin = math.cos(2 * math.pi * cycles), math.sin(2 * math.pi * cycles)
    return torch.linalg.solve(_YIQ, torch.stack((luma, cos * i - sin * q, sin * i + cos * q)))


def _mean(value: Tensor, present: Tensor, plan: BandPlan) -> Tensor:
    """(C, 1) mean of each band over its pixels with data; the corpus mean where there is none."""
    count = present.sum((1, 2))
    mean = (value * present).sum((1, 2)) / count.clamp(min=1)
    return torch.where(count > 0, mean, torch.tensor(plan.mean))[:, None]


def _physical(raw: Tensor, plan: BandPlan) -> Tensor:
    return raw.double() * _column(plan.scale)[..., None] + _column(plan.offset)[..., None]


def _zscore(value: Tensor, plan: BandPlan) -> Tensor:
    return (value - _column(plan.mean)) / _column(plan.std)


def _column(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]
