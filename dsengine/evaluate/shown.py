"""What an encoder is shown of a corpus: its own bands, in its own order, z-scored with its own statistics.

The loader z-scores with the statistics of the corpus it reads; here the plan gets those of the encoder's contract, so that a value of
0.3 reflectance is the same number as in pretraining. Bands that the corpus lacks are 0, the mean, where that is allowed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsengine.augment.params import HELDOUT_EPOCH, Augment
from dsengine.corpus import Contract, Corpus
from dsengine.data import order
from dsengine.data.labels import LabelReader
from dsengine.data.loader import FixedViews, make_pace, produce, received
from dsengine.data.plan import LoadPlan, make_plan, members, requests
from dsengine.data.prefetch import Prefetcher
from dsengine.data.sample import Batch, View
from dsengine.errors import UsageError
from dsengine.evaluate.subjects import Subject


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The input of one encoder."""

    bands: tuple[str, ...]  # read, in the order of the corpus
    places: tuple[int, ...]  # channel of each in the encoder's input
    channels: int
    mean: tuple[float, ...]  # of the bands read, physical units
    std: tuple[float, ...]
    size: int  # side of the crop, pixels; of a smaller crop than the patch, the place is drawn from the patch's number

    def to_json(self) -> dict[str, Any]:
        """For results.json and the key of feature files."""
        return asdict(self)


def shown(subject: Subject, corpus: Corpus, *, size: int | None = None, bands: tuple[str, ...] | None = None, missing: str = "refuse") -> Shown:
    """What `subject` is shown of `corpus`. size None: whole patches. bands: only these, None: all that it knows.

    missing: "refuse" bands that the corpus lacks, or make them "zero". UsageError names what is legal.
    """
    size = corpus.patch_size if size is None else size
    if not 1 <= size <= corpus.patch_size:
        raise UsageError(f"size={size} is not legal: {corpus.path} has patches of {corpus.patch_size} px")
    known = [band.name for band in subject.contract.bands]
    there = [band.name for band in corpus.bands]
    _check_units(subject, corpus)
    if subject.takes_any:
        names = _chosen(subject, there, bands)
        places = {name: k for k, name in enumerate(names)}
    else:
        wanted = known if bands is None else [name for name in known if name in bands]
        if lacking := [name for name in wanted if name not in there]:
            if missing == "refuse" or len(lacking) == len(wanted):
                raise UsageError(f"{subject.name} takes {', '.join(known)}; {corpus.path} has {', '.join(there)} and lacks {', '.join(lacking)}; "
                                 "legal: a corpus with these, or, if some are there, missing=zero")
        places = {name: known.index(name) for name in wanted if name in there}
        if not places:
            raise UsageError(f"bands={','.join(bands or ())}: {subject.name} takes {', '.join(known)}")
    read = tuple(name for name in there if name in places)
    of = [known.index(name) for name in read]
    return Shown(bands=read, places=tuple(places[name] for name in read), channels=subject.channels,
                 mean=tuple(subject.contract.mean[k] for k in of), std=tuple(subject.contract.std[k] for k in of), size=size)


def arranged(x: Tensor, what: Shown) -> Tensor:
    """(B, channels, H, W): the bands of x (B, C, H, W) at the encoder's channels, 0 elsewhere."""
    if what.places == tuple(range(what.channels)):
        return x
    out = x.new_zeros(x.shape[0], what.channels, *x.shape[2:]).contiguous(memory_format=torch.channels_last)
    out[:, list(what.places)] = x
    return out


def plan_of(corpus: Corpus, what: Shown, rows: np.ndarray, *, batch_size: int, device: torch.device | str = "cpu", label: str | None = None,
            seed: int = 0, augment: Augment = Augment()) -> LoadPlan:
    """The loader's plan for `rows` of `corpus` shown as `what`."""
    view = View(size=what.size, bands=what.bands, augment=augment)
    plan = make_plan(corpus, (view,), split="all", global_batch=min(batch_size, max(len(rows), 1)), seed=seed, device=device, label=label)
    bands = replace(plan.bands[0], mean=np.array(what.mean), std=np.array(what.std))
    return replace(plan, rows=np.asarray(rows, np.int64), bands=(bands,))


def once(plan: LoadPlan) -> FixedViews:
    """Each row once, in the plan's order, the same views at every pass."""
    return FixedViews(plan, make_pace(None, None, plan))


def endless(plan: LoadPlan) -> Iterator[Batch]:
    """Shuffled whole batches, epoch after epoch. Close the generator to end its threads."""
    steps = order.walk(plan.rows, seed=plan.seed, start=0, global_batch=plan.global_batch)
    pace = make_pace(None, None, plan)
    ahead = Prefetcher(produce(plan, steps, pace=pace, level=1.0), depth=pace.prefetch)
    try:
        while True:
            yield received(next(ahead))
    finally:
        ahead.close()


def labels(plan: LoadPlan, rows: np.ndarray) -> Tensor:
    """The plan's label of `rows`, cut as `once` cuts their views; see `LabelReader.read`."""
    asked = requests(plan, members(plan, rows, epoch=HELDOUT_EPOCH), epoch=HELDOUT_EPOCH, level=1.0)
    return LabelReader(plan.corpus, plan.label).read(rows, asked[0])


def _check_units(subject: Subject, corpus: Corpus) -> None:
    contract = corpus.contract()
    theirs = _units(contract)
    wrong = [f"{name} is in {theirs[name]}, not {unit}" for name, unit in _units(subject.contract).items() if theirs.get(name, unit) != unit]
    if wrong:
        raise UsageError(f"{corpus.path}: {'; '.join(wrong)}; legal: the units that {subject.name} was trained on")


def _units(contract: Contract) -> dict[str, str]:
    return {band.name: unit for band, unit in zip(contract.bands, contract.units, strict=True)}


def _chosen(subject: Subject, there: list[str], bands: tuple[str, ...] | None) -> tuple[str, ...]:
    known = [band.name for band in subject.contract.bands]
    legal = [name for name in known if name in there]
    if bands is None or len(bands) != subject.channels or not set(bands) <= set(legal):
        given = "none" if bands is None else ", ".join(bands)
        raise UsageError(f"bands: {subject.name} takes {subject.channels} of its bands at a time, got {given}; "
                         f"legal: {subject.channels} of {', '.join(legal) or 'those it knows, and the corpus has none of them'}")
    return tuple(name for name in known if name in bands)
