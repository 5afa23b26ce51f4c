"""What frozen features are worth: a linear probe with its uncertainty, against image statistics and an untrained encoder."""

import numpy as np
import torch
from torch import nn

import dsengine
from dsengine.corpus import Corpus
from dsengine.data.loader import Loader
from dsengine.data.sample import View


def targets(corpus: Corpus, rows: np.ndarray, name: str = "landcover") -> np.ndarray:
    """(N,) the commonest class of each row's class map."""
    maps = corpus.labels[name].oindex[rows].reshape(len(rows), -1)
    values = np.unique(maps)
    return values[np.argmax([(maps == value).sum(1) for value in values], axis=0)]


@torch.no_grad()
def features(corpus: Corpus, rows: np.ndarray, encoder: nn.Module | None, *, size: int) -> np.ndarray:
    """(N, D) pooled features of one fixed crop each; of no encoder, mean and standard deviation of every band."""
    found = {}
    with Loader.heldout(corpus, (View(size=size),), batch_size=64, split="all") as loader:
        for batch in loader:
            x = batch.views[0]
            out = torch.cat((x.mean((2, 3)), x.std((2, 3))), dim=1) if encoder is None else encoder.eval()(x).pooled
            found.update(zip(batch.sample_id.tolist(), out.float().numpy()))
    return np.stack([found[row] for row in rows])


def probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """(N,) bool, which test samples a ridge classifier gets right; its strength is chosen by leaving samples out of training."""
    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    x, t = (np.c_[(part - mean) / std, np.ones(len(part))].astype(np.float64) for part in (train_x, test_x))
    classes = np.unique(train_y)
    y = (train_y[:, None] == classes) * 2.0 - 1
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    best = max(10.0 ** np.arange(-1, 5), key=lambda strength: _left_out(u, s, y, strength))
    weights = np.linalg.solve(x.T @ x + best * np.eye(x.shape[1]), x.T @ y)
    return classes[np.argmax(t @ weights, axis=1)] == test_y


def _left_out(u: np.ndarray, s: np.ndarray, y: np.ndarray, strength: float) -> float:
    """Share that ridge gets right of samples left out one at a time, by the closed form."""
    hat = (u * (s**2 / (s**2 + strength))) @ u.T
    leverage = np.diag(hat)[:, None]
    return float((np.argmax((hat @ y - leverage * y) / (1 - leverage), axis=1) == np.argmax(y, axis=1)).mean())


def advantage(ours: np.ndarray, theirs: np.ndarray, *, draws: int = 2000) -> tuple[float, float]:
    """Difference of two shares of right answers on the same samples, and the lower end of its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    difference = ours.astype(float) - theirs.astype(float)
    means = [rng.choice(difference, len(difference)).mean() for _ in range(draws)]
    return float(difference.mean()), float(np.percentile(means, 2.5))


def compare(corpus_path: str, encoder: nn.Module, *, size: int, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """{"ours": (share right,), "random": (share, advantage over it, its lower end), "statistics": the same}."""
    corpus = dsengine.open_corpus(corpus_path)
    train, test = corpus.rows("train"), np.concatenate((corpus.rows("val"), corpus.rows("test")))
    torch.manual_seed(seed)
    untrained = dsengine.build_encoder("resnet18", len(corpus.bands))
    right = {name: probe(features(corpus, train, model, size=size), targets(corpus, train), features(corpus, test, model, size=size), targets(corpus, test))
             for name, model in (("ours", encoder), ("random", untrained), ("statistics", None))}
    found = {"ours": (float(right["ours"].mean()),)}
    for name in ("random", "statistics"):
        found[name] = (float(right[name].mean()), *advantage(right["ours"], right[name]))
    return found
