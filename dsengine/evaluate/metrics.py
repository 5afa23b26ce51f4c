"""Figures of merit, from counts that add up over batches, places and ranks.

n[t, p] counts samples (pixels) of class t that were called p. With T_c = sum_p n[c, p] and P_c = sum_t n[t, c]:
    IoU_c = n_cc / (T_c + P_c - n_cc)        F1_c = 2 n_cc / (T_c + P_c)
    weighted: sum_c T_c x_c / sum_c T_c      macro: the mean over classes that occur, in truth or prediction
    accuracy = sum_c n_cc / sum n
The weighted mean IoU is what Table 9 of the first paper calls the class-weighted IoU. Nothing to score gives NaN. All of it equals
scikit-learn's jaccard_score, f1_score and accuracy_score with zero_division=0. ROC-AUC needs the scores themselves (`ScoreList`).
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as torch_dist
from torch import Tensor

from dsengine.dist import World, gather_rows

IGNORED = -1


class PerClass(NamedTuple):
    """Each (..., K) float64; NaN for a class that occurs neither in truth nor in prediction."""

    iou: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # samples of the class


def confusions(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(B, K, K) int64, truth by prediction of each sample; predicted and truth (B, ...) integers, truth -1 is not counted.

    Raises ValueError for a class outside [0, K).
    """
    known = truth != IGNORED
    if bool(((predicted < 0) | (predicted >= num_classes) | (truth >= num_classes) | (truth < IGNORED))[known].any()):
        raise ValueError(f"classes must be in [0, {num_classes}), or {IGNORED} in truth")
    sample = torch.arange(len(truth), device=truth.device).reshape(-1, *[1] * (truth.ndim - 1)).expand_as(truth)
    cell = (sample * num_classes + truth) * num_classes + predicted
    return torch.bincount(cell[known], minlength=len(truth) * num_classes**2).reshape(len(truth), num_classes, num_classes)


class Confusion:
    """The sum of `confusions` over everything that was added."""

    def __init__(self, num_classes: int, device: str | torch.device = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Count a batch, (B, ...) each."""
        self.counts += confusions(predicted, truth, len(self.counts)).sum(0)

    def merge(self, world: World) -> None:
        """Add up over ranks; afterwards each holds the counts of all. Call it once, at the end."""
        if world.group is not None:
            torch_dist.all_reduce(self.counts, group=world.group)

    def scores(self) -> dict[str, float]:
        """`scores` of what was counted."""
        return {name: float(value) for name, value in scores(self.counts.cpu().numpy()).items()}


def per_class(counts: np.ndarray) -> PerClass:
    """IoU and F1 of each class, from confusion matrices (..., K, K)."""
    counts = np.asarray(counts, np.float64)
    hit, truth, called = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)
    return PerClass(_ratio(hit, truth + called - hit), _ratio(2 * hit, truth + called), truth)


def scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (...)} of confusion matrices (..., K, K): iou_weighted, miou, f1_weighted, f1_macro, accuracy."""
    iou, f1, support = per_class(counts)
    hit = np.diagonal(np.asarray(counts, np.float64), axis1=-2, axis2=-1).sum(-1)
    return {"iou_weighted": _weighted(iou, support), "miou": _macro(iou), "f1_weighted": _weighted(f1, support), "f1_macro": _macro(f1),
            "accuracy": _ratio(hit, support.sum(-1))}


def roc_auc(truth: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Chance that a positive has a higher score than a negative, ties half: truth (N,) bool, score (N,), weight (N,) or 1.

    NaN where one of the two kinds is missing. Equals sklearn.metrics.roc_auc_score.
    """
    _, place = np.unique(np.asarray(score), return_inverse=True)
    return auc_of_places(np.asarray(truth) == 1, place, np.ones(len(place)) if weight is None else np.asarray(weight, np.float64))


def auc_of_places(positive: np.ndarray, place: np.ndarray, weight: np.ndarray) -> float:
    """`roc_auc` where the scores' ranks (N,) are known, equal for equal scores; positive (N,) bool."""
    above, below = np.bincount(place, weight * positive, minlength=1), np.bincount(place, weight * ~positive, minlength=1)
    pairs = above.sum() * below.sum()
    return float((above * (np.cumsum(below) - below / 2)).sum() / pairs) if pairs else float("nan")


class ScoreList:
    """Truth and score of every sample, for what is no function of counts."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, truth: Tensor, score: Tensor) -> None:
        """Keep a batch: truth (B,) 0 or 1, score (B,)."""
        self._parts.append((truth.detach().to("cpu", torch.float64), score.detach().to("cpu", torch.float64)))

    def merge(self, world: World) -> None:
        """Gather over ranks, which may hold unequal numbers; afterwards each has those of all, in rank order."""
        if world.group is None:
            return
        mine = torch.stack([torch.cat([part[k] for part in self._parts] or [torch.zeros(0, dtype=torch.float64)]) for k in (0, 1)], dim=1)
        device = "cuda" if torch_dist.get_backend(world.group) == "nccl" else "cpu"
        sizes = gather_rows(torch.tensor([len(mine)], device=device), world.group).tolist()
        padded = torch.cat((mine, mine.new_zeros(max(sizes) - len(mine), 2))).to(device)
        every = gather_rows(padded, world.group).cpu().split(max(sizes)) if max(sizes) else []
        self._parts = [(part[:size, 0], part[:size, 1]) for part, size in zip(every, sizes)]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(truth, score), (N,) float64 each."""
        return tuple(np.concatenate([part[k].numpy() for part in self._parts] or [np.zeros(0)]) for k in (0, 1))

    def roc_auc(self) -> float:
        """`roc_auc` of all of them."""
        return roc_auc(*self.arrays())


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)


def _weighted(x: np.ndarray, support: np.ndarray) -> np.ndarray:
    return _ratio((np.nan_to_num(x) * support).sum(-1), support.sum(-1))


def _macro(x: np.ndarray) -> np.ndarray:
    return _ratio(np.nansum(x, axis=-1), np.isfinite(x).sum(-1).astype(np.float64))
