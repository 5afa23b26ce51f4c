"""Pictures of a crop study: win matrices and gains as in Figures 3 and 4 of Patnala et al., accuracies, learning."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure

from dsengine.evaluate.crops.results import Results
from dsengine.evaluate.crops.tables import PARTS
from dsengine.evaluate.figures import save

matplotlib.use("Agg")


def draw(results: Results, folder: Path) -> list[Path]:
    """All that fit the study, in `folder`."""
    drawn = [_learning(results, folder / "learning.png")]
    for part in results.judged:
        drawn.append(_accuracies(results, part, folder / f"accuracy-{part}.png"))
        if len(results.inputs) > 1:
            drawn += [_win_matrices(results, part, folder / f"wins-{part}.png"), _gains(results, part, folder / f"gains-{part}.png")]
    return drawn


def _win_matrices(results: Results, part: str, path: Path) -> Path:
    """One heat map a network."""
    side = 2.4 + 0.45 * len(results.names)
    figure, every = _panels(results, width=side, height=side + 0.3)
    for k, (axes, network) in enumerate(zip(every, results.configurations)):
        won = results.wins(network, part)
        image = axes.imshow(won.share, vmin=0, vmax=1, cmap="RdYlGn")
        axes.set(title=network, xlabel="over this input", ylabel="wins of this input" if k == 0 else None)
        _inputs(axes, results.names)
        axes.set_yticks(range(len(results.names)), results.names, fontsize=8)
        axes.tick_params(labelleft=k == 0)
        for (i, j), share in np.ndenumerate(won.share):
            if i != j:
                axes.text(j, i, "ties" if np.isnan(share) else f"{share:.2f}", ha="center", va="center", fontsize=8)
    figure.suptitle(PARTS[part], fontsize=10)
    figure.colorbar(image, ax=every, label="share won, ties left out", shrink=0.8)
    return save(figure, path)


def _gains(results: Results, part: str, path: Path) -> Path:
    """One box an input and network: quartiles and the median over configurations, whiskers to 1.5 times the box, dots each configuration.

    The axis is that of the whiskers: where raw input is near 0 a gain has no bound. Arrows at its ends are configurations beyond it.
    """
    names = results.names[1:]
    low, high = _whiskers(results, part)
    figure, every = _panels(results, width=1.6 + 0.7 * len(names), height=4)
    for k, (axes, network) in enumerate(zip(every, results.configurations)):
        boxes = [row[np.isfinite(row)] for row in results.gains(network, part)]
        axes.boxplot(boxes, showfliers=False)
        for at, box in enumerate(boxes, 1):
            place = at + np.linspace(-0.12, 0.12, len(box))
            for marker, of in ((".", (box >= low) & (box <= high)), ("^", box > high), ("v", box < low)):
                axes.plot(place[of], box[of].clip(low, high), marker, color="C0", markersize=4, alpha=0.7, clip_on=False)
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set(title=network, xlabel="input", ylabel="accuracy relative to raw input, %" if k == 0 else None)
        _inputs(axes, names, start=1)
        axes.grid(axis="y", alpha=0.3)
    every[0].set_ylim(low, high)
    figure.suptitle(f"{PARTS[part]}; arrows lie beyond the axis", fontsize=10)
    return save(figure, path)


def _whiskers(results: Results, part: str) -> tuple[float, float]:
    """Ends of an axis that has all boxes with their whiskers on it."""
    boxes = [row[np.isfinite(row)] for network in results.configurations for row in results.gains(network, part)]
    ends = [stats[key] for box in boxes if len(box) for stats in boxplot_stats(box) for key in ("whislo", "whishi")]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return low - 0.1 * (high - low) - 1, high + 0.1 * (high - low) + 1


def _accuracies(results: Results, part: str, path: Path) -> Path:
    """Each configuration on each input; a line joins a configuration."""
    figure, every = _panels(results, width=1.8 + 0.6 * len(results.names), height=4)
    for k, (axes, network) in enumerate(zip(every, results.configurations)):
        accuracy = 100 * results.figure(network, part)
        axes.plot(range(len(accuracy)), accuracy, ".-", color="C0", linewidth=0.6, alpha=0.6)
        axes.axhline(100 * results.commonest(part), color="0.5", linestyle="--", linewidth=1, label="commonest class")
        axes.set(title=network, xlabel="input", ylabel="accuracy, %" if k == 0 else None, xlim=(-0.5, len(accuracy) - 0.5))
        _inputs(axes, results.names)
        axes.grid(axis="y", alpha=0.3)
    every[0].legend(fontsize=7)
    figure.suptitle(PARTS[part], fontsize=10)
    return save(figure, path)


def _learning(results: Results, path: Path) -> Path:
    """Val loss by epoch, a line a fit."""
    figure, every = _panels(results, width=3.6, height=3.6)
    for k, (axes, network) in enumerate(zip(every, results.configurations)):
        for run in (run for run in results.runs if run.network == network):
            first = run.configuration == results.configurations[network][0].number and run.seed == 0
            axes.plot([record["epoch"] for record in run.history], [record["val_loss"] for record in run.history],
                      color=f"C{results.names.index(run.input) % 10}", linewidth=0.7, alpha=0.7, label=run.input if first else None)
        axes.set(title=network, xlabel="epoch", ylabel="cross-entropy on val, nats" if k == 0 else None)
        axes.grid(alpha=0.3)
    every[0].legend(fontsize=7)
    return save(figure, path)


def _panels(results: Results, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """One panel a network, with the same vertical axis."""
    count = len(results.configurations)
    figure = Figure(figsize=(1 + width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _inputs(axes: Axes, names: list[str], *, start: int = 0) -> None:
    axes.set_xticks(range(start, start + len(names)), names, rotation=35, ha="right", fontsize=8)
