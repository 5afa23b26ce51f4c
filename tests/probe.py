"""What frozen features are worth: a linear probe with its uncertainty, against image statistics and an untrained encoder."""

import json
from functools import lru_cache

import numpy as np
import torch
from torch import nn

import dsengine
from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.corpus.synth.place import CLUSTER
from dsengine.data.labels import LabelReader
from dsengine.data.loader import Loader
from dsengine.data.open import open_heldout
from dsengine.data.sample import View
from dsengine.encoders import Features
from dsengine.engine.whiten import covariance
from dsengine.nn.whitening import Whitening, whitener


def targets(corpus: Corpus, rows: np.ndarray, name: str = "landcover") -> np.ndarray:
    """(N,) the commonest class of each row's class map."""
    maps = corpus.labels[name].oindex[rows].reshape(len(rows), -1)
    values = np.unique(maps)
    return values[np.argmax([(maps == value).sum(1) for value in values], axis=0)]


@torch.no_grad()
def features(corpus: Corpus, encoder: nn.Module | None, *, size: int) -> np.ndarray:
    """(N, D) pooled features of one fixed crop of every row; of no encoder, mean and standard deviation of every band."""
    found = {}
    with Loader.heldout(corpus, (View(size=size),), batch_size=64, split="all") as loader:
        for batch in loader:
            x = batch.views[0]
            out = torch.cat((x.mean((2, 3)), x.std((2, 3))), dim=1) if encoder is None else encoder.eval()(x).pooled
            found.update(zip(batch.sample_id.tolist(), out.float().numpy()))
    return np.stack([found[row] for row in range(len(corpus))])


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
    kept = s**2 / (s**2 + strength)
    fitted, leverage = (u * kept) @ (u.T @ y), np.square(u) @ kept[:, None]  # never the (N, N) hat matrix, only what is asked of it
    return float((np.argmax((fitted - leverage * y) / (1 - leverage), axis=1) == np.argmax(y, axis=1)).mean())


def advantage(ours: np.ndarray, theirs: np.ndarray, clusters: np.ndarray, *, draws: int = 2000) -> tuple[float, float]:
    """Difference of two shares of right answers on the same samples, and the lower end of its 95 % bootstrap interval.

    `clusters` (N,) are drawn whole: samples of one are alike, and would make the interval too narrow one by one.
    """
    rng = np.random.default_rng(0)
    _, group = np.unique(clusters, return_inverse=True)
    gained, sizes = np.bincount(group, ours.astype(float) - theirs.astype(float)), np.bincount(group)
    drawn = rng.integers(len(sizes), size=(draws, len(sizes)))
    return float(gained.sum() / len(ours)), float(np.percentile(gained[drawn].sum(1) / sizes[drawn].sum(1), 2.5))


def compare(corpus_path: str, encoder: nn.Module, *, size: int, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """{"ours": (share right,), "random": (share, advantage over it, its lower end), "statistics" and "whitened statistics": the same}.

    The untrained encoder is of the same shape and shown the same: one that whitens has the same map.
    """
    corpus = dsengine.open_corpus(corpus_path)
    train, test = corpus.rows("train"), np.concatenate((corpus.rows("val"), corpus.rows("test")))
    y, t = targets(corpus, train), targets(corpus, test)
    seen = {"ours": features(corpus, encoder, size=size), "random": _random(corpus_path, encoder, size=size, seed=seed), **_statistics(corpus_path, size=size)}
    right = {name: probe(x[train], y, x[test], t) for name, x in seen.items()}
    return {"ours": (float(right["ours"].mean()),),
            **{name: (float(right[name].mean()), *advantage(right["ours"], right[name], test // CLUSTER)) for name in list(seen)[1:]}}


def _random(corpus_path: str, encoder: nn.Module, *, size: int, seed: int) -> np.ndarray:
    """Features of an untrained encoder, which methods of one shape and seed share; one that whitens has its map from the encoder."""
    if encoder.recipe.get("whiten"):
        return features(dsengine.open_corpus(corpus_path), untrained(encoder, seed=seed), size=size)
    return _of_shape(corpus_path, encoder.in_channels, json.dumps(encoder.recipe), size=size, seed=seed)


@lru_cache
def _of_shape(corpus_path: str, in_channels: int, recipe: str, *, size: int, seed: int) -> np.ndarray:
    return features(dsengine.open_corpus(corpus_path), _fresh(json.loads(recipe), in_channels, seed=seed), size=size)


@lru_cache
def _statistics(corpus_path: str, *, size: int) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every band, as they are and of bands whitened over the corpus."""
    corpus = dsengine.open_corpus(corpus_path)
    matrix = whitener(covariance(corpus, View(), where=None, size=size))
    whitening = Whitening(len(matrix))
    whitening.matrix.copy_(matrix)
    return {"statistics": features(corpus, None, size=size), "whitened statistics": features(corpus, Statistics(whitening), size=size)}


def compare_rows(corpus_path: str, encoder: nn.Module, *, sensor: str, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """What `compare` gives, of pixels or series of a sensor: {"ours", "random", "numbers" (the z-scores themselves)}."""
    corpus = dsengine.open_corpus(corpus_path)
    train, test = corpus.rows("train"), np.concatenate((corpus.rows("val"), corpus.rows("test")))
    labels = LabelReader(corpus, "landcover")
    y, t = (labels.read(rows, None).numpy() for rows in (train, test))
    seen = {name: rows_of(corpus, model, sensor) for name, model in (("ours", encoder), ("random", untrained(encoder, seed=seed)), ("numbers", None))}
    right = {name: probe(x[train], y, x[test], t) for name, x in seen.items()}
    return {"ours": (float(right["ours"].mean()),),
            **{name: (float(right[name].mean()), *advantage(right["ours"], right[name], test // CLUSTER)) for name in ("random", "numbers")}}


@torch.no_grad()
def rows_of(corpus: SeriesCorpus, encoder: nn.Module | None, sensor: str) -> np.ndarray:
    """(N, D) features of all of a sensor's pixels or series; of no encoder, their z-scores, 0 where there is no data."""
    with open_heldout(corpus, (View(sensor=sensor),), 512, split="all") as batches:
        found = [batch.views[0].nan_to_num().flatten(1) if encoder is None else encoder.eval()(batch.views[0]).pooled for batch in batches]
    return torch.cat(found).float().numpy()


def untrained(encoder: nn.Module, *, seed: int) -> nn.Module:
    """A fresh encoder of the shape of `encoder`, with its whitening."""
    fresh = _fresh(encoder.recipe, encoder.in_channels, seed=seed)
    if encoder.recipe.get("whiten"):
        fresh.whitening.load_state_dict(encoder.whitening.state_dict())
    return fresh


def _fresh(recipe: dict, in_channels: int, *, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return dsengine.build_encoder(recipe["name"], in_channels, **{key: value for key, value in recipe.items() if key != "name"})


class Statistics(nn.Module):
    """Mean and standard deviation of every band after `first`."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: torch.Tensor) -> Features:
        y = self.first(x)
        return Features(torch.cat((y.mean((2, 3)), y.std((2, 3))), dim=1), None)


def taught(corpus: Corpus, encoder: nn.Module, *, epochs: int, batch: int = 64, lr: float = 1e-3) -> nn.Module:
    """`encoder` after training on the commonest class of each whole training patch, which no method sees: what the corpus lets a network learn."""
    rows = corpus.rows("train")
    torch.manual_seed(0)
    y = torch.from_numpy(targets(corpus, rows)).long()
    head = nn.Linear(encoder.dim, int(y.max()) + 1)
    with Loader.heldout(corpus, (View(size=corpus.patch_size),), batch_size=64, split="train") as loader:
        found = {int(row): x for batch_ in loader for row, x in zip(batch_.sample_id, batch_.views[0])}
    x = torch.stack([found[int(row)] for row in rows])
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * (len(x) // batch), pct_start=0.1)
    encoder.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x))[:len(x) // batch * batch].view(-1, batch):
            turned = torch.rot90(x[part], int(torch.randint(4, ())), (2, 3)).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_amx_tile_supported()):  # elsewhere it is emulated
                logits = head(encoder(turned).pooled)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits.float(), y[part]).backward()
            optimizer.step()
            schedule.step()
    return encoder
