"""What an encoder makes of a corpus: vectors of some samples, maps of a few patches, and the label that colours them."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.corpus.colours import SPLITS as SPLIT_COLOURS
from dsengine.corpus.colours import class_colours
from dsengine.corpus.schema import SPLITS, Contract
from dsengine.corpus.series import read_rows
from dsengine.data.open import open_heldout
from dsengine.data.sample import Batch, View
from dsengine.engine import checkpoint
from dsengine.errors import UsageError, nearest
from dsengine.study.report.folders import RunFolder

NUM_MAPS = 6
_BATCH = 32
_ENOUGH = 64  # samples of the val split, below which all splits are shown
_RGB = ("B04", "B03", "B02")
NO_CLASS = ("no label", "#b8bec4")


class Embedded(NamedTuple):
    """Samples of a corpus through one encoder."""

    rows: np.ndarray  # (N,) rows of the corpus
    splits: str  # which of them
    pooled: np.ndarray  # (N, D)
    map_rows: np.ndarray  # (M,)
    dense: np.ndarray | None  # (M, D, h, w); None where the encoder makes no maps
    images: np.ndarray | None  # (M, 3, H, W) z-scores of what was shown, for the same; None of pixels and series
    image_bands: tuple[str, ...]  # of `images`


class Colouring(NamedTuple):
    """A class for each sample, and what the classes are called."""

    name: str  # "label NAME" or "split"
    classes: np.ndarray  # (N,) position in `names`
    names: list[str]
    colours: list[str]


def encoders_of(run: RunFolder) -> list[str]:
    """Names of the run's encoders. UsageError where there is no whole checkpoint."""
    if run.saved is None:
        raise UsageError("there is no whole checkpoint to take an encoder from")
    return list(run.saved.inputs or {"all": {}})


def embed(run: RunFolder, key: str, corpus: Corpus | SeriesCorpus, *, samples: int) -> Embedded:
    """`samples` samples, evenly spread over the val split (over all splits where that is too small), through the run's encoder `key`.

    Shown as in training but whole and without augmentation. UsageError where the corpus is not of the run's contract.
    """
    run.saved.contract.check(corpus.contract(), what=f"corpus {corpus.path}")
    encoder, contract = checkpoint.load_encoder(run.saved.path, key)
    view = _view(corpus, contract.bands, (run.saved.inputs or {}).get(key), len(contract.bands))
    split = "val" if len(corpus.rows("val")) >= min(samples, _ENOUGH) else "all"
    splits, total = "the val split" if split == "val" else "all splits", min(samples, len(corpus.rows(split)))
    at = np.unique(np.linspace(0, total - 1, min(NUM_MAPS, total)).astype(int))  # of those that get a map
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open_heldout(corpus, (view,), _BATCH, split=split, limit=samples, device=device) as batches:
        rows, pooled, dense, images = _encoded(encoder.to(device), batches, at)
    if dense is None:
        return Embedded(rows, splits, pooled, rows[:0], None, None, ())
    return Embedded(rows, splits, pooled, rows[at], dense, *_three(images, _names(view, contract)))


@torch.inference_mode()
def _encoded(encoder: nn.Module, batches: Iterable[Batch], at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Rows (N,), vectors (N, D), and of samples `at` maps (M, D, h, w) and input (M, C, H, W), None where there are no maps of images."""
    rows, pooled, dense, images = [], [], [], []
    done = 0
    for batch in batches:
        x, found = batch.views[0], encoder(batch.views[0])
        chosen = torch.from_numpy(at[(at >= done) & (at < done + len(x))] - done).to(x.device)
        if found.dense is not None and x.ndim == 4:
            dense.append(found.dense[chosen].float().cpu().numpy())
            images.append(x[chosen].float().cpu().numpy())
        rows.append(batch.sample_id.cpu().numpy())
        pooled.append(found.pooled.float().cpu().numpy())
        done += len(x)
    return np.concatenate(rows), np.concatenate(pooled), *(np.concatenate(maps) if maps else None for maps in (dense, images))


def colouring(corpus: Corpus | SeriesCorpus, rows: np.ndarray, label: str | None) -> Colouring:
    """The class of each row by `label` (None: the first that gives one), of a class map the commonest; by split where there is no label."""
    if label is not None and label not in corpus.labels:
        raise UsageError(f"--label {label}: {nearest(label, corpus.labels) if corpus.labels else f'{corpus.path} has no labels'}")
    usable = {name: array for name, array in corpus.labels.items() if array.attrs.get("kind") in ("class", "classmap")}
    if label is not None and label not in usable:
        raise UsageError(f"--label {label}: has several classes a sample; legal: {', '.join(usable) or 'none of this corpus'}")
    first = label or next((name for kind in ("class", "classmap") for name, array in usable.items() if array.attrs["kind"] == kind), None)
    if first is None:
        split = (corpus.index["split"] if isinstance(corpus, SeriesCorpus) else corpus.index.split)[rows]
        colours = [SPLIT_COLOURS[name] for name in SPLITS]
        return Colouring("split (the corpus has no label with one class a sample)", split.astype(int), list(SPLITS), colours)
    array = corpus.labels[first]
    stored = read_rows(array, rows, corpus.path / "labels" / first)
    table = _table(array.attrs)
    values = stored if stored.ndim == 1 else np.array([_commonest(patch, table) for patch in stored])
    places = {value: k for k, value in enumerate(table)}
    names = [*(table[value] for value in table), NO_CLASS[0]]
    chosen = class_colours(table)
    classes = np.array([places.get(int(value), len(table)) for value in values])
    what = f"label {first}" + ("" if stored.ndim == 1 else ", commonest class of the patch")
    return Colouring(what, classes, names, [*(chosen[value] for value in table), NO_CLASS[1]])


def label_maps(corpus: Corpus | SeriesCorpus, rows: np.ndarray, label: str | None) -> tuple[str, np.ndarray, dict[str, str]] | None:
    """Name, pictures (M, H, W, 3) and legend of a class map of `rows`: `label` where it is one, else the first; None without one."""
    maps = {name: array for name, array in corpus.labels.items() if array.attrs.get("kind") == "classmap"}
    name = label if label in maps else next(iter(maps), None)
    if name is None:
        return None
    array, table = maps[name], _table(maps[name].attrs)
    stored, colours = read_rows(array, rows, corpus.path / "labels" / name), class_colours(table)
    rgb = lambda colour: [int(colour[k:k + 2], 16) / 255 for k in (1, 3, 5)]  # noqa: E731
    pictures = np.empty((*stored.shape, 3))
    pictures[:] = rgb(NO_CLASS[1])
    for value, colour in colours.items():
        pictures[stored == value] = rgb(colour)
    present = np.unique(stored)
    legend = {table[value]: colours[value] for value in table if value in present}
    return name, pictures, {**legend, **({NO_CLASS[0]: NO_CLASS[1]} if not set(present.tolist()) <= set(table) else {})}


def _view(corpus: Corpus | SeriesCorpus, bands: tuple, shown: dict | None, count: int) -> View:
    """The encoder's bands of whole patches, or of pixels and series; of an encoder that takes any, the first that make a picture."""
    names = [band.name for band in bands]
    channels = (shown or {}).get("in_channels", count)
    if channels < count:
        names = [*(name for name in _RGB if name in names), *(name for name in names if name not in _RGB)][:channels]
        names = [band.name for band in corpus.bands if band.name in names]
    if isinstance(corpus, SeriesCorpus):
        sensors = {band.sensor for band in bands}
        return View(sensor=sensors.pop()) if len(sensors) == 1 else View()
    whole = len(names) == len(corpus.bands)
    return View(size=corpus.patch_size, bands=None if whole else tuple(names))


def _names(view: View, contract: Contract) -> tuple[str, ...]:
    return view.bands if view.bands is not None else tuple(band.name for band in contract.bands)


def _three(images: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """True colour, or the first band."""
    chosen = _RGB if set(_RGB) <= set(names) else (names[0],) * 3
    return images[:, [names.index(name) for name in chosen]], chosen


def _table(attrs: dict) -> dict[int, str]:
    ignored = attrs.get("ignore")
    return {int(value): str(text) for value, text in attrs["classes"].items() if ignored is None or int(value) != int(ignored)}


def _commonest(patch: np.ndarray, table: dict[int, str]) -> int:
    """The commonest class that is one; something that is none where there is none."""
    values, counts = np.unique(patch, return_counts=True)
    known = np.isin(values, list(table))
    return int(values[known][counts[known].argmax()]) if known.any() else int(values[0])


