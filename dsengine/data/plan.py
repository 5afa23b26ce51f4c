"""What a loader was asked for, checked: every mistake of the request is found here, before a thread starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dsengine.augment.apply import BandPlan, Request, band_plan
from dsengine.augment.params import draw, draw_bands
from dsengine.augment.warp import draw_warp, window_side
from dsengine.corpus import Contract, Corpus
from dsengine.data.layout import ChunkLayout, chunk_layout
from dsengine.data.sample import View, band_names, default_crop, sized
from dsengine.data.triples import Triples
from dsengine.errors import UsageError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAD = 8  # channels; the tensor cores' multiple


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Everything that decides the content of batches; how fast they come is decided elsewhere."""

    corpus: Corpus
    views: tuple[View, ...]  # sizes filled in
    bands: tuple[BandPlan, ...]  # one a view
    layouts: tuple[ChunkLayout, ...]  # the arrays that have to be read, the op's sources
    rows: np.ndarray  # (N,) int64, ascending
    pool: np.ndarray  # (M,) int64, ascending: every patch that a view may be of
    global_batch: int
    seed: int
    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype
    pad_channels: bool
    label: str | None  # the label that comes with the views
    triples: Triples | None  # who draws the members of a triple, where a view is of another patch


def make_plan(corpus: Corpus, views: Sequence[View], *, global_batch: int, split: str = "train", where: str | None = None,
              limit: int | None = None, seed: int = 0, rank: int = 0, world: int = 1, device: str | torch.device = "cpu",
              dtype: torch.dtype = torch.float32, pad_channels: bool = False, label: str | None = None) -> LoadPlan:
    """The checked plan of the split's patches that meet `where`; `limit` keeps that many, evenly spread. Raises UsageError."""
    contract = corpus.contract()
    views = sized(tuple(views), default_crop(corpus.patch_size))
    arrays = _arrays(contract, views)
    every = corpus.rows(split, where)
    rows = spread(every, limit)
    if not len(rows):
        met = "" if where is None else f" with {where}"
        raise UsageError(f"split: {split!r} of {corpus.path} has no patches{met}; legal: a split that has some")
    check_numbers(global_batch=global_batch, seed=seed, rank=rank, world=world)
    for view in views:
        if view.of == "marginals":
            raise UsageError(f"view: of='marginals' draws cells of a table, and {corpus.path} holds patches; legal: a corpus of pixels or series")
        if view.draw_bands is not None and view.draw_bands > len(names := band_names(view, contract.bands)):
            raise UsageError(f"view: draw_bands={view.draw_bands} of {len(names)} bands is not legal: 1 to {len(names)}")
        if not 1 <= view.size <= corpus.patch_size:
            raise UsageError(f"size: a view of {view.size} px does not fit {corpus.path}, legal: 1 to {corpus.patch_size} px")
    if label is not None and views[0].augment.moves_pixels and label in corpus.labels and corpus.labels[label].ndim == 3:
        raise UsageError(f"label: {label} is a map, which is not resampled; legal: a first view without crop_area and rotation")
    if label is not None and views[0].of != "itself":
        raise UsageError(f"label: {label} belongs to the first view, which is of a {views[0].of}; legal: a first view of the sample itself")
    if dtype not in DTYPES:
        raise UsageError(f"dtype: {dtype} is not legal: {', '.join(map(str, DTYPES))}")
    triples = make_triples(corpus, views, every)
    return LoadPlan(
        corpus=corpus, views=views, bands=tuple(band_plan(contract, band_names(view, contract.bands), arrays) for view in views),
        layouts=tuple(chunk_layout(corpus.arrays[name], root=corpus.path) for name in arrays), rows=rows, pool=rows if triples is None else every,
        global_batch=global_batch, seed=seed, rank=rank, world=world, device=find_device(device), dtype=dtype,
        pad_channels=pad_channels, label=label, triples=triples)


def members(plan: LoadPlan, ids: np.ndarray, *, epoch: int) -> dict[str, np.ndarray]:
    """Whose patches the views of samples `ids` (B,) show: (B,) rows of the corpus for each kind that a view asks for."""
    found = {}
    for kind in dict.fromkeys(view.of for view in plan.views):
        if kind == "itself":
            found[kind] = ids
        else:
            draw_of = plan.triples.neighbours if kind == "neighbour" else plan.triples.distant
            found[kind] = draw_of(ids, seed=plan.seed, epoch=epoch)
    return found


def requests(plan: LoadPlan, of: Mapping[str, np.ndarray], *, epoch: int, level: float | None) -> list[Request]:
    """What is to happen to the patches `of` (`members`) in each view; level None is the curriculum's at `epoch`."""
    found = []
    for k, (view, bands) in enumerate(zip(plan.views, plan.bands, strict=True)):
        ids = of[view.of]
        strength = view.augment.curriculum.level(epoch) if level is None else level
        window = window_side(view.augment, size=view.size, patch_size=plan.corpus.patch_size)
        key = dict(view=k, seed=plan.seed, epoch=epoch, ids=ids)
        draws = draw(view.augment, size=window, patch_size=plan.corpus.patch_size, num_bands=len(bands.names), level=strength, **key)
        warp = draw_warp(view.augment, size=view.size, window=window, **key)
        pick = None if view.draw_bands is None else draw_bands(view.draw_bands, num_bands=len(bands.names), **key)
        found.append(Request(bands, draws, window, view.augment.jitter_space, warp, pick))
    return found


def out_channels(plan: LoadPlan, k: int) -> int:
    """Channels that view number `k` is made with, with the padding asked for; of one whose bands are drawn, all it is drawn from."""
    count = len(plan.bands[k].names)
    return -(-count // PAD) * PAD if plan.pad_channels and plan.views[k].draw_bands is None else count


def make_triples(corpus: Corpus, views: Sequence[View], rows: np.ndarray) -> Triples | None:
    """Who draws members among `rows`, None where no view is of another patch. Raises UsageError."""
    if all(view.of == "itself" for view in views):
        return None
    scales = {view.scale_km for view in views if view.of == "neighbour"} or {View.scale_km}
    if len(scales) > 1:
        raise UsageError(f"scale_km: views have {', '.join(map(str, sorted(scales)))}; legal: one for all")
    return Triples(corpus, rows, scale_km=scales.pop())


def _arrays(contract: Contract, views: tuple[View, ...]) -> tuple[str, ...]:
    """Arrays that hold a band of any view, in corpus order."""
    if not views:
        raise UsageError("views: none given; legal: one View or more")
    return tuple(dict.fromkeys(band.array for band in contract.bands
                               if any(band.name in band_names(view, contract.bands) for view in views)))


def spread(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` of `rows`, evenly spread: neighbouring rows are often neighbours on the ground."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.arange(limit) * len(rows) // limit]


def check_numbers(*, global_batch: int, seed: int, rank: int, world: int) -> None:
    """UsageError for a number that no loader takes."""
    if global_batch < 1:
        raise UsageError(f"batch_size: {global_batch} is not legal, it must be 1 or more")
    if world < 1 or not 0 <= rank < world:
        raise UsageError(f"rank: {rank} of world {world} is not legal, it must be in [0, world)")
    if not 0 <= seed < 1 << 32:
        raise UsageError(f"seed: {seed} is not legal, it must be in [0, 2**32)")


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name. UsageError where there is none."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device: {device!r} is unknown; legal: cpu, cuda, cuda:N") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device: {device} is not there, this process sees {torch.cuda.device_count()} GPUs; legal: cpu, "
                         "or one of them")
    return found
