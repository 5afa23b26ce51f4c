"""Maps of a few test patches: what the encoder was shown, the truth, and what was predicted."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dsengine.corpus.colours import class_colours
from dsengine.evaluate.metrics import IGNORED

matplotlib.use("Agg")
MOST = 6  # patches
_RGB = ("B04", "B03", "B02")


def draw(x: np.ndarray, truth: np.ndarray, predicted: np.ndarray, bands: tuple[str, ...], names: tuple[str, ...], *, path: Path) -> Path:
    """x (n, C, H, W) z-scores of `bands`; truth and predicted (n, H, W) classes, -1 for none."""
    colours = class_colours(dict(enumerate(names)))
    palette = ListedColormap(["#ffffff", *(colours[c] for c in range(len(names)))])
    rgb = [bands.index(band) for band in _RGB] if set(_RGB) <= set(bands) else [min(k, len(bands) - 1) for k in range(3)]
    figure = Figure(figsize=(1.7 * len(x) + 0.6, 6.2), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    for k in range(len(x)):
        axes[0, k].imshow(np.clip((x[k][rgb].transpose(1, 2, 0) + 2) / 4.5, 0, 1))
        for row, classes in ((1, truth), (2, predicted)):
            axes[row, k].imshow(classes[k], cmap=palette, vmin=IGNORED, vmax=len(names) - 1, interpolation="nearest")
    for row, name in enumerate((" ".join(dict.fromkeys(bands[k] for k in rgb)), "truth", "predicted")):
        axes[row, 0].set_ylabel(name, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    shown = sorted(set(np.unique(truth)) | set(np.unique(predicted)))
    keys = [Patch(facecolor=palette(c + 1), edgecolor="0.6", label="no label" if c == IGNORED else names[c]) for c in shown]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), fontsize=8)
    figure.savefig(path, dpi=110)
    return path
