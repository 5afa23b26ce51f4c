"""The loader that goes with a corpus: of patches, or of pixels and series. Whoever trains or embeds asks here and needs to know no kind."""

from collections.abc import Sequence

import torch

from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.data.loader import TIMEOUT_S, FixedViews, Loader, plan_tier
from dsengine.data.plan import make_plan, make_triples
from dsengine.data.sample import View
from dsengine.data.table_loader import TableLoader, make_table_plan, table_tier
from dsengine.errors import UsageError


def open_loader(corpus: Corpus | SeriesCorpus, views: Sequence[View], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1,
                device: str | torch.device = "cpu", split: str = "train", where: str | None = None, dtype: torch.dtype = torch.float32,
                shuffle: bool = True, num_threads: int | None = None, prefetch: int | None = None, label: str | None = None, resident: str = "auto",
                timeout_s: float = TIMEOUT_S) -> Loader:
    """Endless batches of one split: `Loader` or `TableLoader`, with the arguments of both."""
    return _loader(corpus)(corpus, views, batch_size, seed, rank, world, device, split=split, where=where, dtype=dtype, shuffle=shuffle,
                           num_threads=num_threads, prefetch=prefetch, label=label, resident=resident, timeout_s=timeout_s)


def open_heldout(corpus: Corpus | SeriesCorpus, views: Sequence[View], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1,
                 device: str | torch.device = "cpu", split: str = "val", where: str | None = None, limit: int | None = None,
                 dtype: torch.dtype = torch.float32, num_threads: int | None = None, prefetch: int | None = None, label: str | None = None,
                 timeout_s: float = TIMEOUT_S) -> FixedViews:
    """The same views of a split at every pass: `FixedViews` or `FixedRows`."""
    return _loader(corpus).heldout(corpus, views, batch_size, seed, rank, world, device, split=split, where=where, limit=limit, dtype=dtype,
                                   num_threads=num_threads, prefetch=prefetch, label=label, timeout_s=timeout_s)


def check_request(corpus: Corpus | SeriesCorpus, views: Sequence[View], *, global_batch: int, where: str | None, device: str | torch.device,
                  resident: str, ranks: int) -> None:
    """UsageError for what `open_loader` would refuse; nothing is read."""
    if isinstance(corpus, SeriesCorpus):
        table_tier(make_table_plan(corpus, views, global_batch=global_batch, where=where, device=device), resident, ranks=ranks)
    else:
        plan_tier(make_plan(corpus, views, global_batch=global_batch, where=where, device=device), resident, ranks=ranks)


def can_tell_apart(corpus: Corpus | SeriesCorpus, views: Sequence[View], split: str, where: str | None) -> bool:
    """Whether the samples of a split are places enough to be told from each other: patches of two places, of triples as far apart as their
    neighbour table reaches; two pixels or series."""
    rows = corpus.rows(split, where)
    if isinstance(corpus, SeriesCorpus):
        return len(rows) > 1
    places = {(lon * 4 // 1, lat * 4 // 1) for lon, lat in zip(corpus.index.lon[rows], corpus.index.lat[rows])}  # of a quarter degree
    if len(places) < 2:
        return False
    try:
        make_triples(corpus, views, rows)
    except UsageError:
        return False
    return True


def _loader(corpus: Corpus | SeriesCorpus) -> type[Loader]:
    return TableLoader if isinstance(corpus, SeriesCorpus) else Loader
