"""Pictures of a study: maps of all combinations (Figure 3 of the first paper), IoU of each class (Figure 4), win matrices and gains."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dsengine.evaluate.figures import plain
from dsengine.study import layouts
from dsengine.study.results import Judged, Result
from dsengine.study.spec import Study
from dsengine.study.table import Entry
from dsengine.study.wins import Matrix

matplotlib.use("Agg")


def draw(study: Study, judged: Judged, folder: Path) -> list[Path]:
    """All that fit the evaluation."""
    drawn = []
    for about, results in layouts.comparable(judged):
        drawn.append(draw_classes(study, judged, results, folder / f"{layouts.file_name(f'{judged.evaluation.key}-classes', about)}.png"))
    if maps := draw_maps(study, judged, folder / f"{judged.evaluation.key}-maps.png"):
        drawn.append(maps)
    return drawn


def draw_classes(study: Study, judged: Judged, results: Sequence[Result], path: Path) -> Path:
    """A panel an encoder, a group of bars a class, a bar a pretraining: means over seeds. Whiskers as `whiskers` has them."""
    key, name = layouts.by_class(judged)
    figure = Figure(figsize=(7.5, 0.7 + 2.4 * len(study.encoders)), layout="constrained")
    panels = figure.subplots(len(study.encoders), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    width, place = 0.8 / len(study.methods), np.arange(len(judged.classes))
    for axes, encoder in zip(panels, study.encoders):
        for k, method in enumerate(study.methods):
            of = [layouts.class_entry(results, encoder, method, label, key) for label in judged.classes]
            axes.bar(place + (k - (len(study.methods) - 1) / 2) * width, [100 * np.nan_to_num(entry.mean) for entry in of], width, color=f"C{k}",
                     yerr=whiskers(of), label=method.title, capsize=1.5, error_kw={"linewidth": 0.7})
        axes.set(title=encoder.title, ylabel=f"{name}\non test, %")
        axes.grid(axis="y", alpha=0.3)
    panels[-1].set_xticks(place, judged.classes, rotation=30, ha="right", fontsize=8)
    panels[-1].set_xlabel("class")
    panels[0].legend(fontsize=7, ncols=len(study.methods), title="pretraining", title_fontsize=7)
    said = "deviation over seeds" if len(study.seeds) > 1 else "95 % interval"
    figure.suptitle(f"{judged.evaluation.title}; whiskers: {said}", fontsize=10)
    return _save(figure, path)


def draw_maps(study: Study, judged: Judged, path: Path) -> Path | None:
    """What the evaluations drew of the first test patches, a row a pretraining, a column an encoder; None where they drew none."""
    maps = {(encoder.key, method.key): _maps(judged, encoder.key, method.key, study.seeds[0]) for encoder in study.encoders for method in study.methods}
    if not any(maps.values()):
        return None
    figure = Figure(figsize=(5.2 * len(study.encoders), 3.2 * len(study.methods)), layout="constrained")
    panels = figure.subplots(len(study.methods), len(study.encoders), squeeze=False)
    for line, method in zip(panels, study.methods):
        for axes, encoder in zip(line, study.encoders):
            picture = maps[encoder.key, method.key]
            axes.set(xticks=[], yticks=[], title=f"{encoder.title}, {method.title}")
            axes.imshow(matplotlib.image.imread(picture)) if picture else axes.text(0.5, 0.5, "not done", ha="center", va="center")
            for spine in axes.spines.values():
                spine.set_visible(False)
    return _save(figure, path, dpi=150)


def draw_wins(matrices: Sequence[Matrix], title: str, path: Path) -> Path:
    """A heat map a network."""
    names = matrices[0].inputs
    figure = Figure(figsize=(len(matrices) * (2.4 + 0.5 * len(names)), 2.6 + 0.5 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, matrix in zip(panels, matrices):
        image = axes.imshow(matrix.share, vmin=0, vmax=1, cmap="RdYlGn")
        axes.set(title=matrix.network, xlabel="over this input", ylabel="wins of this input")
        axes.set_xticks(range(len(matrix.inputs)), matrix.inputs, rotation=40, ha="right", fontsize=7)
        axes.set_yticks(range(len(matrix.inputs)), matrix.inputs, fontsize=7)
        for (i, j), share in np.ndenumerate(matrix.share):
            if i != j:
                axes.text(j, i, "ties" if np.isnan(share) else f"{share:.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=panels, label="share of configurations and seeds won, ties left out", shrink=0.8)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def draw_gains(matrices: Sequence[Matrix], title: str, path: Path) -> Path | None:
    """A box an input: quartiles over configurations and seeds, whiskers to 1.5 times the box; dots are the single ones. None without inputs."""
    names = [name for name in matrices[0].inputs if matrices[0].gains.get(name)]
    if not names:
        return None
    figure = Figure(figsize=(len(matrices) * (1.8 + 0.8 * len(names)), 4.2), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    for axes, matrix in zip(panels, matrices):
        boxes = [[gain for gain in matrix.gains[name] if np.isfinite(gain)] for name in names]
        axes.boxplot(boxes, showfliers=False)
        for at, box in enumerate(boxes, 1):
            axes.plot(at + np.linspace(-0.12, 0.12, len(box)), box, ".", color="C0", markersize=4, alpha=0.7)
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set(title=matrix.network, xlabel="input", ylabel="accuracy relative to raw input, %")
        axes.set_xticks(range(1, 1 + len(names)), names, rotation=40, ha="right", fontsize=7)
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def whiskers(entries: Sequence[Entry]) -> np.ndarray:
    """(2, n) per cent below and above: the deviation over seeds, of one seed the interval; 0 where there is neither."""
    ends = [(of.std, of.std) if of.num_seeds > 1 else (of.mean - of.low, of.high - of.mean) for of in entries]
    return 100 * np.clip(np.nan_to_num(np.array(ends, np.float64).reshape(-1, 2).T), 0, None)


def _maps(judged: Judged, encoder: str, method: str, seed: int) -> Path | None:
    folder = judged.folders.get((encoder, method, seed))
    if folder is None:
        return None
    own = [sorted((folder / "figures").glob(f"maps-{start}*.png")) for start in (f"{plain(f'{encoder}-{method}')}-", "untrained-")]
    return (own[0] or own[1] or [None])[-1]


def _save(figure: Figure, path: Path, dpi: int = 110) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path
