"""From draws to views: each view's jitters, dropout and z-scoring become one affine operator, which one op applies.

A jitter acts on a triple p of bands with luma weights w; G = 1 w^T is the grey projection, mean() the crop's mean:
    brightness f: f p        contrast c: c p + (1 - c) G mean(p)        saturation s: s p + (1 - s) G p
    hue h: the chroma (I and Q of YIQ) turned by h cycles, luma kept
Nothing is clamped (torchvision clamps to [0, 1]). In the frame (luma, chroma) all four are scalings, one rotation and a
move of the luma, so they commute, and one jitter is p -> P p + Q mean(p) with
    P = f c (G + s (cos(2 pi h) (I - G) + sin(2 pi h) J)),    P + Q = P + f (1 - c) G
and J the quarter turn of the chroma. A chain keeps y = A x + T m + b: A -> P A, (A + T) -> (P + Q) (A + T), b -> (P + Q) b
on the triple's rows. The means are thus propagated, never measured again; where no pixel lacks data both are equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine import ops
from dsengine.augment.params import Draws
from dsengine.augment.warp import Warp, apply_warp
from dsengine.errors import UsageError, nearest

if TYPE_CHECKING:
    from dsengine.corpus.schema import Contract

_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
LUMA = _YIQ[0]
GREY = np.tile(LUMA, (3, 1))
CHROMA = np.eye(3) - GREY
QUARTER_TURN = np.linalg.inv(_YIQ) @ np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _YIQ


@dataclass(frozen=True, kw_only=True)
class BandPlan:
    """What the op and the composition need to know about a choice of C bands."""

    names: tuple[str, ...]
    bands: Tensor  # (C, 3) int32: source, channel, factor
    scale: np.ndarray  # (C,) float64; physical = raw * scale + offset
    offset: np.ndarray
    mean: np.ndarray  # (C,) float64, physical units
    std: np.ndarray
    is_colour: np.ndarray  # (C,) bool: reflectance, so that luma and hue mean something in physical units
    nodata: int

    @property
    def raw_mean(self) -> np.ndarray:
        """(C,) float64 mean in raw units."""
        return (self.mean - self.offset) / self.scale

    @property
    def center(self) -> Tensor:
        """(C,) float32 raw value that the op subtracts: the mean as far as float32 holds it."""
        return torch.from_numpy(self.raw_mean.astype(np.float32))


# (shape, dtype) -> a contiguous tensor whose numbers may be anything.
Memory = Callable[[tuple[int, ...], torch.dtype], Tensor]


class Request(NamedTuple):
    """One view of a batch."""

    plan: BandPlan
    draws: Draws
    size: int  # pixels of the finest grid; with a warp, of the window it is cut from
    jitter_space: str = "zscore"  # zscore | physical
    warp: Warp | None = None  # crop-resize, rotation and blur that follow
    pick: np.ndarray | None = None  # (B, K) int64: the bands of the plan that each sample shows, last of all


def band_plan(contract: "Contract", band_names: tuple[str, ...] | None, array_names: Sequence[str]) -> BandPlan:
    """The plan for `band_names` (None: all) in corpus order, when the op's sources are the arrays `array_names`.

    Raises UsageError for a band that the corpus lacks, one whose array is not among the sources, and one that is constant.
    """
    known = [band.name for band in contract.bands]
    names = tuple(known) if band_names is None else tuple(band_names)
    for name in names:
        if name not in known:
            raise UsageError(f"bands: {name!r} is not in the corpus, {nearest(name, known)}")
    if not names or list(names) != [name for name in known if name in names]:
        raise UsageError(f"bands: {', '.join(names)} must be in corpus order without repetition: {', '.join(known)}")
    rows = np.array([known.index(name) for name in names])
    plan = BandPlan(
        names=names, bands=_table(contract, rows, list(array_names)), scale=np.array(contract.scale)[rows],
        offset=np.array(contract.offset)[rows], mean=np.array(contract.mean)[rows], std=np.array(contract.std)[rows],
        is_colour=np.array([contract.units[row] == "reflectance" for row in rows]), nodata=contract.nodata)
    for name, std in zip(names, plan.std):
        if not std > 0:
            raise UsageError(f"bands: {name} has standard deviation {std} in this corpus, so it cannot be z-scored; leave it out")
    return plan


def _table(contract: "Contract", rows: np.ndarray, array_names: list[str]) -> Tensor:
    table = []
    for band in (contract.bands[row] for row in rows):
        if band.array not in array_names:
            raise UsageError(f"bands: {band.name} lies in array {band.array!r}, which is not read: {', '.join(array_names)}")
        table.append((array_names.index(band.array), band.channel, band.factor))
    return torch.tensor(table, dtype=torch.int32)


def affine(plan: BandPlan, draws: Draws, jitter_space: str) -> tuple[Tensor, Tensor, Tensor]:
    """The operator of each sample: A, T (B, C, C) and b (B, C) float32, from raw centered values to augmented z-scores."""
    num_samples, num_bands = draws.keep.shape
    diagonal, in_zscore = np.arange(num_bands), jitter_space == "zscore"
    M = np.zeros((num_samples, num_bands, 2, num_bands + 1))  # M[:, :, 0] is [A | 0], M[:, :, 1] is [A + T | b]
    M[:, diagonal, :, diagonal] = (plan.scale / plan.std if in_zscore else plan.scale)[:, None, None]
    if not in_zscore:
        M[:, :, 1, -1] = plan.mean
    _jitter(M, plan, draws, jitter_space)
    if not in_zscore:
        M[:, :, 1, -1] -= plan.mean
    M *= (draws.keep if in_zscore else draws.keep / plan.std)[:, :, None, None]
    A, S, b = M[:, :, 0, :-1], M[:, :, 1, :-1], M[:, :, 1, -1]
    # The op centers by float32(raw_mean); what that rounds off is added back here.
    b = b + S @ (plan.center.numpy().astype(np.float64) - plan.raw_mean)
    return tuple(torch.from_numpy(part.astype(np.float32, order="C")) for part in (A, S - A, b))


def _jitter(M: np.ndarray, plan: BandPlan, draws: Draws, jitter_space: str) -> None:
    """Multiply the chain of jitters onto M (B, C, 2, C + 1), in place."""
    factors = np.stack(_jitter_matrices(plan, draws, jitter_space), axis=2)
    rows = np.arange(len(M))[:, None]
    for k in range(draws.triple.shape[1]):
        triple = draws.triple[:, k]
        M[rows, triple] = (factors[:, k] @ M[rows, triple].transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def _jitter_matrices(plan: BandPlan, draws: Draws, jitter_space: str) -> tuple[np.ndarray, np.ndarray]:
    """P and P + Q of every jitter, (B, K, 3, 3) each.

    A triple that is no colour (fewer than three bands; or, in physical units, a band in dB) takes brightness as a gain
    and contrast about each band's own mean; saturation and hue leave it.
    """
    brightness, contrast, saturation, hue = np.moveaxis(draws.factor, -1, 0)[..., None, None]
    chroma = saturation * (np.cos(2 * np.pi * hue) * CHROMA + np.sin(2 * np.pi * hue) * QUARTER_TURN)
    is_colour = is_colour_triple(plan, draws, jitter_space)[..., None, None]
    P = brightness * contrast * np.where(is_colour, GREY + chroma, np.eye(3))
    return P, P + brightness * (1 - contrast) * np.where(is_colour, GREY, np.eye(3))


def is_colour_triple(plan: BandPlan, draws: Draws, jitter_space: str) -> np.ndarray:
    """(B, K) bool: whether luma and hue are defined on the jitter's triple."""
    if len(plan.names) < 3:
        return np.zeros(draws.triple.shape[:2], dtype=bool)
    if jitter_space == "zscore":
        return np.ones(draws.triple.shape[:2], dtype=bool)
    return plan.is_colour[draws.triple].all(axis=-1)


def augment(sources: list[Tensor], requests: Sequence[Request], *, dtype: torch.dtype = torch.float32,
            out_channels: int | None = None, memory: Memory | None = None) -> tuple[Tensor, ...]:
    """The views of one batch, each (B, C or out_channels, size, size) channels-last on the device of the sources.

    sources: (B, C_s, H_s, W_s) int16 per array of the plans. Views that are alike in bands, size, jitter space and number of
    jitters go through one composition and one op call. memory: where an op call's output lies; None is fresh memory.
    """
    views: list[Tensor] = [None] * len(requests)
    for members in _alike(requests):
        for member, view in zip(members, _run(sources, [requests[k] for k in members], dtype, out_channels, memory)):
            views[member] = _finish(view, requests[member])
    return tuple(views)


def _finish(view: Tensor, request: Request) -> Tensor:
    """What follows the affine operator: the warp, then the choice of bands."""
    view = view if request.warp is None else apply_warp(view, request.warp)
    if request.pick is None:
        return view
    rows = torch.arange(len(view), device=view.device)[:, None]
    return view[rows, torch.from_numpy(request.pick).to(view.device)].contiguous(memory_format=torch.channels_last)


def _alike(requests: Sequence[Request]) -> list[list[int]]:
    """Positions of requests that can share a call."""
    groups: dict[tuple, list[int]] = {}
    for position, request in enumerate(requests):
        kind = (request.plan.names, request.size, request.jitter_space, request.draws.triple.shape[1])
        groups.setdefault(kind, []).append(position)
    return list(groups.values())


def _run(sources: list[Tensor], requests: list[Request], dtype: torch.dtype, out_channels: int | None,
         memory: Memory | None) -> Sequence[Tensor]:
    plan, _, size, jitter_space = requests[0][:4]
    num_samples, device = len(sources[0]), sources[0].device
    draws = Draws(*(np.concatenate(field) for field in zip(*(request.draws for request in requests))))
    place = (torch.from_numpy(draws.offset), torch.from_numpy(draws.code))
    by_view = [part.unflatten(0, (len(requests), num_samples)).to(device) for part in (*place, *affine(plan, draws, jitter_space))]
    arguments = sources, plan.bands.to(device), plan.center.to(device), *by_view
    if memory is None:
        out = ops.augment(*arguments, size, out_channels=out_channels, dtype=dtype, nodata=plan.nodata)
    else:
        out = memory((len(requests) * num_samples, size, size, out_channels or len(plan.names)), dtype).permute(0, 3, 1, 2)
        ops.augment_into(*arguments, out, nodata=plan.nodata)
    return out.split(num_samples)
