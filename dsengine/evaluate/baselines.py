"""Floors of land cover that no encoder takes part in. A fit takes pairs of views and labels and returns a guess of views, and what to note."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsengine.evaluate.metrics import IGNORED, confusions

Guess = Callable[[Tensor], Tensor]  # (B, C, H, W) -> (B, H, W) int64
TITLES = {"majority": "commonest class", "pixel": "pixel by pixel"}
_PIXELS, _A_PATCH = 20_000, 256  # that the logistic regression is fitted on, in all and of a patch


def majority(pairs: Iterator[tuple[Tensor, Tensor]], num_classes: int, *, seed: int) -> tuple[Guess, dict[str, Any]]:
    """The class that most train pixels have, everywhere."""
    counts = sum(torch.bincount(label.flatten() + 1, minlength=num_classes + 1)[1:].cpu() for _, label in pairs)
    commonest = int(counts.argmax())
    return lambda x: torch.full((x.shape[0], *x.shape[2:]), commonest, device=x.device), {"class": commonest}


def pixel(pairs: Iterator[tuple[Tensor, Tensor]], num_classes: int, *, seed: int) -> tuple[Guess, dict[str, Any]]:
    """Multinomial logistic regression of a pixel's z-scored bands and of nothing around it, on up to 20,000 train pixels."""
    from sklearn.linear_model import LogisticRegression

    x, y = _sampled(pairs, seed=seed)
    if len(np.unique(y)) < 2:
        only = int(y[0]) if len(y) else 0
        return lambda views: torch.full((views.shape[0], *views.shape[2:]), only, device=views.device), {"pixels": len(y)}
    model = LogisticRegression(max_iter=300).fit(x, y)

    def guess(views: Tensor) -> Tensor:
        found = model.predict(_flat(views))
        return torch.from_numpy(found).reshape(views.shape[0], *views.shape[2:])

    return guess, {"pixels": len(y)}


def _sampled(pairs: Iterator[tuple[Tensor, Tensor]], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bands (n, C) and classes (n,) of labelled pixels, as many of each patch."""
    rng, bands, classes = np.random.default_rng(seed), [], []
    for x, label in pairs:
        every, of = _flat(x).reshape(len(x), -1, x.shape[1]), label.flatten(1).cpu().numpy()
        for pixels, known in zip(every, of):
            where = np.flatnonzero(known != IGNORED)
            picked = rng.choice(where, min(_A_PATCH, len(where)), replace=False)
            bands.append(pixels[picked])
            classes.append(known[picked])
    x, y = np.concatenate(bands), np.concatenate(classes)
    some = rng.permutation(len(y))[:_PIXELS]
    return x[some], y[some]


def _flat(x: Tensor) -> np.ndarray:
    """(B, C, H, W) as (B H W, C) float32."""
    return x.float().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).cpu().numpy()


FITS = {"majority": majority, "pixel": pixel}


def judge(guess: Guess, x: Tensor, label: Tensor, num_classes: int) -> np.ndarray:
    """(B, K, K) int64 confusion of each sample."""
    return confusions(guess(x).to(label.device), label, num_classes).cpu().numpy()
