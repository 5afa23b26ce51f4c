"""The oracle of the loader: the same batches by plain zarr-python and the step-by-step augmentation, one after the other.

Slow and obvious: no threads, no slabs, no prefetch, no shard index. What it shares with `Loader` is the order and the draws.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dsengine.augment.apply import Request
from dsengine.augment.reference import augment_reference
from dsengine.corpus import Corpus
from dsengine.data.order import batch_ids, steps_per_epoch
from dsengine.data.plan import make_plan, members, requests
from dsengine.data.sample import Batch, View
from dsengine.dist import World

Augmenter = Callable[[list[Tensor], list[Request]], tuple[Tensor, ...]]


class ReferenceLoader:
    """Endless batches as `Loader` gives them, float64 unless another `augmenter` is given; see `Loader` for the rest."""

    def __init__(self, corpus: Corpus, views: Sequence[View], batch_size: int, seed: int = 0, rank: int = 0,
                 world: int = 1, *, split: str = "train", level: float | None = None,
                 augmenter: Augmenter = augment_reference) -> None:
        self._plan = make_plan(corpus, views, split=split, limit=None, global_batch=batch_size, seed=seed, rank=rank,
                               world=world, device="cpu", dtype=torch.float32, pad_channels=False)
        self._level = level
        self._augmenter = augmenter
        self.steps_per_epoch = steps_per_epoch(len(self._plan.rows), batch_size)

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """This rank's rows of global step `step`."""
        plan = self._plan
        epoch, ids = batch_ids(plan.rows, seed=plan.seed, step=step, global_batch=plan.global_batch)
        share = plan.global_batch // plan.world
        mine = ids[plan.rank * share:(plan.rank + 1) * share]
        of = members(plan, mine, epoch=epoch)
        views = []
        for view, request in zip(plan.views, requests(plan, of, epoch=epoch, level=self._level), strict=True):
            sources = [torch.from_numpy(plan.corpus.arrays[layout.name].oindex[of[view.of]]) for layout in plan.layouts]
            views += self._augmenter(sources, [request])
        return Batch(views=tuple(views), sample_id=torch.tensor(mine), seed=plan.seed, step=step, world=World(plan.rank, plan.world))
