"""While training: do nearest neighbours in feature space have the same label? Every `train.knn_epochs` epochs, logged as `knn_accuracy`.

    of each held-out sample, the `_K` train samples with the highest cosine vote for their class, each with exp(cosine / 0.07)

Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018. A trend to watch, on few samples and one
fixed crop each; `dsengine evaluate knn` is the measurement.
"""

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.data.labels import IGNORED, label_tables
from dsengine.data.open import open_heldout
from dsengine.data.sample import View
from dsengine.engine.precision import computing, ready
from dsengine.errors import UsageError, nearest

KINDS = ("class", "classmap")
_K = 20
_TEMPERATURE = 0.07
_BANK, _ASKED = 2048, 512  # most samples of the train and the val split
_BATCH = 64


def chosen_label(corpus: Corpus | SeriesCorpus, label: str | None, *, every: int | None, where: str | None) -> str | None:
    """The label that a probe `every` so many epochs is to predict, `label` as it is where that is None; UsageError where that cannot be."""
    if every is None:
        return label
    tables = label_tables(corpus)
    fitting = [name for name, table in tables.items() if table.kind in KINDS and len(table.values) > 1]
    if label is None and len(fitting) != 1:
        raise UsageError(f"train.knn_epochs={every}: needs a label of kind {' or '.join(KINDS)} with 2 classes or more; {corpus.path} has "
                         + (f"{', '.join(fitting)}; name one, train.knn_label" if fitting else "none"))
    if label is not None and label not in fitting:
        raise UsageError(f"train.knn_label={label!r}: no label of kind {' or '.join(KINDS)} with 2 classes or more; {nearest(label, fitting)}")
    if empty := [split for split in ("train", "val") if not len(corpus.rows(split, where))]:
        raise UsageError(f"train.knn_epochs={every}: the {empty[0]} split of {corpus.path} is empty; "
                         "legal: a corpus with both, or no train.knn_epochs")
    return label or fitting[0]


class Probe:
    """A context manager that holds the probe's two loaders."""

    def __init__(self, corpus: Corpus | SeriesCorpus, view: View, loading: dict[str, Any], *, label: str) -> None:
        """view: what the encoder reads, its size filled in. loading: as of the run's own batches."""
        self._classes = len(label_tables(corpus)[label].values)
        loading = {**loading, "label": label}
        self._open = ExitStack()
        self._bank, self._asked = (self._open.enter_context(open_heldout(corpus, (view,), _BATCH, split=split, limit=limit, **loading))
                                   for split, limit in (("train", _BANK), ("val", _ASKED)))

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @torch.no_grad()
    def accuracy(self, encoder: nn.Module, *, precision: str) -> dict[str, float]:
        """{"knn_accuracy": share of held-out samples whose class the vote finds}; {} where none has a class. Every rank computes all of it."""
        was_training = encoder.training
        encoder.eval()
        bank, asked = (_features(encoder, part, precision) for part in (self._bank, self._asked))
        encoder.train(was_training)
        if not len(bank[1]) or not len(asked[1]):
            return {}
        return {"knn_accuracy": (vote(*bank, asked[0], num_classes=self._classes) == asked[1]).double().mean().item()}


def vote(bank_ND: Tensor, class_N: Tensor, x_BD: Tensor, *, num_classes: int) -> Tensor:
    """(B,) int64 classes of x by their nearest of `bank`; of equals the lower class."""
    cosine = F.normalize(x_BD, dim=1) @ F.normalize(bank_ND, dim=1).T
    near, at = cosine.topk(min(_K, len(bank_ND)), dim=1)
    votes = torch.zeros(len(x_BD), num_classes, dtype=near.dtype, device=near.device)
    return votes.scatter_add_(1, class_N[at], (near / _TEMPERATURE).exp()).argmax(1)


def _features(encoder: nn.Module, part: Any, precision: str) -> tuple[Tensor, Tensor]:
    """(n, D) at least fp32 and (n,) int64 of the samples that have a class: of a map, the one that most of its pixels have."""
    features, classes = [], []
    for batch in part:
        with computing(batch, precision):
            found = encoder(ready(encoder, batch, precision).views[0]).pooled
        features.append(found.to(torch.promote_types(found.dtype, torch.float32)))
        classes.append(batch.label if batch.label.ndim == 1 else _commonest(batch.label))
    x, y = torch.cat(features), torch.cat(classes)
    known = y != IGNORED
    return x[known], y[known]


def _commonest(maps_BHW: Tensor) -> Tensor:
    """(B,) the class that most pixels have, the lower of equals; IGNORED where none has one."""
    counts = torch.stack([(maps_BHW == c).sum((1, 2)) for c in range(int(maps_BHW.max()) + 1)] or [maps_BHW.new_zeros(len(maps_BHW))], dim=1)
    return torch.where(counts.any(1), counts.argmax(1), IGNORED)
