"""Pictures of a run: its loss curves, and what the encoder was shown."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.data.sample import Batch, View, band_names
from dsengine.engine.log import read_metrics

matplotlib.use("Agg")
_RGB = ("B04", "B03", "B02")
_SAMPLES = 6


def draw_losses(run: Path) -> Path:
    """figures/loss.png from metrics.jsonl: training loss (harder as the curriculum grows), held-out loss and, where it was probed, k-NN accuracy."""
    records = read_metrics(run)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title="loss")
    for key, label, style in (("loss", "training", "-"), ("heldout_loss", "held-out, full strength", "o-")):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points), style, label=label, markersize=3)
    axes.grid(alpha=0.3)
    axes.legend()
    points = [(r["step"], 100 * r["knn_accuracy"]) for r in records if "knn_accuracy" in r]
    if points:
        shares = axes.twinx()
        shares.plot(*zip(*points), "s--", color="tab:green", markersize=3)
        shares.set_ylabel("k-NN accuracy, %", color="tab:green")
    return _save(figure, run / "figures" / "loss.png")


def draw_views(batch: Batch, corpus: Corpus | SeriesCorpus, views: tuple[View, ...], path: Path, *, titles: tuple[str, ...] = ()) -> Path:
    """The first samples of a batch: for each view true colour (or its first three bands) and its last band; of pixels and series, curves."""
    count = min(_SAMPLES, batch.sample_id.shape[0])
    if batch.views[0].ndim < 4:
        return _draw_rows(batch, corpus, views, path, count=count)
    figure = Figure(figsize=(1.6 * count, 3.4 * len(views)), layout="constrained")
    axes = figure.subplots(2 * len(views), count, squeeze=False)
    for v, (view, x) in enumerate(zip(views, batch.views)):
        names = ("drawn",) * x.shape[1] if view.draw_bands else band_names(view, corpus.bands)
        rgb = [names.index(b) for b in _RGB] if set(_RGB) <= set(names) else [min(i, len(names) - 1) for i in range(3)]
        pixels = x[:count].float().cpu().numpy()
        for i in range(count):
            axes[2 * v, i].imshow(_stretch(pixels[i][rgb]).transpose(1, 2, 0))
            axes[2 * v + 1, i].imshow(_stretch(pixels[i][len(names) - 1]), cmap="gray")
            axes[0, i].set_title(f"sample {int(batch.sample_id[i])}", fontsize=8)
        title = titles[v] if titles else f"view {v + 1}"
        axes[2 * v, 0].set_ylabel(f"{title}: {' '.join(dict.fromkeys(names[b] for b in rgb))}", fontsize=8)
        axes[2 * v + 1, 0].set_ylabel(f"{title}: {names[-1]}", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return _save(figure, path)


def _draw_rows(batch: Batch, corpus: Corpus | SeriesCorpus, views: tuple[View, ...], path: Path, *, count: int) -> Path:
    """z-scores of pixels against their bands, of series against their dates, one line a band; dates that are missing are gaps."""
    figure = Figure(figsize=(2.2 * count, 2.0 * len(views)), layout="constrained")
    axes = figure.subplots(len(views), count, squeeze=False, sharey=True)
    for v, (view, x) in enumerate(zip(views, batch.views)):
        names = band_names(view, corpus.bands)
        for i in range(count):
            axes[v, i].plot(x[i].float().cpu().numpy(), linewidth=0.8, marker=".", markersize=2)
            axes[v, i].set_xlabel("date" if x.ndim == 3 else f"band, {names[0]} to {names[-1]}", fontsize=7)
            axes[v, i].tick_params(labelsize=6)
            axes[0, i].set_title(f"sample {int(batch.sample_id[i])}", fontsize=8)
        axes[v, 0].set_ylabel(f"view {v + 1}: {view.sensor or 'all sensors'}", fontsize=7)
    return _save(figure, path)


def draw_pictures(scores: dict[str, Tensor], batch: Batch, corpus: Corpus | SeriesCorpus, views: tuple[View, ...], folder: Path) -> list[Path]:
    """NAME.png for each picture (n, C, h, w) that the method returned: its samples under the same ones of the first view."""
    drawn = []
    for name, picture in scores.items():
        if picture.ndim == 4:
            pair = batch._replace(views=(batch.views[0][:len(picture)], picture), sample_id=batch.sample_id[:len(picture)])
            drawn.append(draw_views(pair, corpus, (views[0], views[0]), folder / f"{name}.png", titles=("view 1", name)))
    return drawn


def _stretch(x: np.ndarray) -> np.ndarray:
    """z-scores of -2 .. 2.5 as 0 .. 1, the same for every sample so that pictures can be compared."""
    return np.clip((x + 2) / 4.5, 0, 1)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
