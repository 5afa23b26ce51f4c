"""Pictures of embeddings: the three main directions as red, green and blue beside the imagery that they were made of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dsengine.corpus import Corpus
from dsengine.corpus.schema import NODATA as NO_VALUE
from dsengine.errors import UsageError
from dsengine.export.facts import read_facts
from dsengine.export.grid import Grid
from dsengine.export.scene import Scene, opened
from dsengine.export.stores import open_store
from dsengine.export.tiles import Span

SIDE = 800  # pixels of a panel at most
SAMPLE = 20_000  # vectors that the directions are fitted to
PERCENTILES = (2.0, 98.0)
RGB = ("B04", "B03", "B02")
NODATA = (0.83, 0.66, 0.80)  # as in the contact sheets of `corpus preview`


def picture_path(out: Path) -> Path:
    """Where the picture of an embedding file goes."""
    return out.with_name(f"{out.stem}.png")


def draw_scene(out: Path, scene: Scene, grid: Grid, *, bands: Sequence[str], nodata: int, scale: Sequence[float]) -> Path:
    """Write the picture of a raster's embedding; returns its path."""
    imagery = _imagery(scene, bands, nodata, scale)
    colours = _cells(out, grid)
    t, (rows, columns) = scene.transform, scene.shape
    extents = [(t.c, t.c + t.a * columns, t.f + t.e * rows, t.f), (t.c, t.c + grid.transform.a * grid.shape[1], t.f + grid.transform.e * grid.shape[0], t.f)]
    unit = 1.0 if scene.crs.is_geographic else 1000.0
    labels = ("longitude (degrees)", "latitude (degrees)") if scene.crs.is_geographic else ("easting (km)", "northing (km)")
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    titles = ("true colour" if set(RGB) <= set(bands) else bands[0], "embedding, three main directions")
    for axes, picture, extent, title in zip(figure.subplots(1, 2), (imagery, colours), extents, titles, strict=True):
        axes.imshow(picture, extent=[v / unit for v in extent], interpolation="nearest")
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1], xlim=[v / unit for v in extents[0][:2]], ylim=[v / unit for v in extents[0][2:]])
        axes.ticklabel_format(useOffset=False)
    return _saved(figure, out, f"{scene.name}  ·  {scene.crs.to_string()}")


def draw_corpus(out: Path, corpus: Corpus) -> Path:
    """Write the places of a corpus's patches, coloured by their embeddings; returns its path."""
    facts = read_facts(out)
    if facts["rule"]["mode"] != "pooled":
        raise UsageError("--map: a picture of a corpus is of pooled embeddings; legal: without --dense")
    store = open_store(out)
    ids, colours = _directions(store)
    lon, lat = store.places(ids)
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _places(left, *_mean_colour(corpus, ids, lon, lat), title="true colour, mean of the patch")
    _places(right, lon, lat, colours, title="embedding, three main directions")
    return _saved(figure, out, str(corpus.path))


def main_directions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and the three directions (3, D) of largest variance of vectors (N, D); each points to where its largest entry is positive."""
    mean = vectors.mean(0, dtype=np.float64)
    centred = vectors - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    top = axes[:, ::-1][:, :3].T
    top = np.concatenate([top, np.zeros((3 - len(top), top.shape[1]))])
    return mean, top * np.sign(top[np.arange(3), np.abs(top).argmax(1)] + 1e-300)[:, None]


def _directions(store: "Store") -> tuple[np.ndarray, np.ndarray]:  # noqa: F821
    """Ids with data (N,), and their colours (N, 3) in [0, 1]."""
    chosen = [vectors[_sampled(ids) & np.isfinite(vectors[:, 0])] for ids, vectors in store.blocks()]
    sample = np.concatenate(chosen)
    if not len(sample):
        raise UsageError("--map: no cell has data, so there is nothing to draw")
    sample = sample[:: -(-len(sample) // SAMPLE)]
    mean, top = main_directions(sample)
    found = [(ids[kept], (vectors[kept] - mean) @ top.T) for ids, vectors in store.blocks() if (kept := np.isfinite(vectors[:, 0])).any()]
    ids, projected = (np.concatenate(part) for part in zip(*found, strict=True))
    low, high = np.percentile((sample - mean) @ top.T, PERCENTILES, axis=0)
    return ids, np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)


def _sampled(ids: np.ndarray) -> np.ndarray:
    """Every id of a small set, an eighth of a large one, spread evenly whatever the order."""
    return np.ones(len(ids), bool) if ids.max() < 8 * SAMPLE else (ids * 2654435761) % 2**32 < 2**29


def _cells(out: Path, grid: Grid) -> np.ndarray:
    ids, colours = _directions(open_store(out))
    picture = np.full((grid.shape[0] * grid.shape[1], 3), NODATA)
    picture[ids] = colours
    return picture.reshape(*grid.shape, 3)


def _imagery(scene: Scene, bands: Sequence[str], nodata: int, scale: Sequence[float]) -> np.ndarray:
    """(h, w, 3) picture of the scene, thinned to about SIDE pixels a side: rows are read a few at a time and most are dropped."""
    names = RGB if set(RGB) <= set(bands) else (bands[0],) * 3
    places = [list(bands).index(name) for name in names]
    step = max(1, -(-max(scene.shape) // SIDE))
    wanted = scene._replace(sources=tuple(scene.sources[k] for k in places))
    with opened(wanted, nodata) as reader:
        rows = [reader.read(Span(y, y + 1), Span(0, scene.shape[1]))[:, 0, ::step] for y in range(0, scene.shape[0], step)]
    stored = np.stack(rows, axis=1).astype(np.float64)
    return _stretched(np.where(stored == nodata, np.nan, stored * np.array(scale)[places][:, None, None]))


def _stretched(values: np.ndarray) -> np.ndarray:
    """One stretch for the three bands, so hues stay true; the root, because forest has 0.03 where snow has 0.9."""
    valid = np.isfinite(values).all(0)
    low, high = np.percentile(values[:, valid], (1, 99)) if valid.any() else (0.0, 1.0)
    scaled = np.sqrt(np.clip((values - low) / max(high - low, 1e-12), 0, 1))
    return np.where(valid[..., None], np.moveaxis(np.nan_to_num(scaled), 0, -1), NODATA)


def _mean_colour(corpus: Corpus, ids: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places and colours of at most SIDE patches, evenly spread over the table; grey where there is no true colour."""
    chosen = np.unique(np.linspace(0, len(ids) - 1, min(SIDE, len(ids))).astype(int))
    names = [band.name for band in corpus.bands if band.sensor == "s2"]
    if not set(RGB) <= set(names):
        return lon[chosen], lat[chosen], np.full((len(chosen), 3), 0.5)
    places, means = [names.index(name) for name in RGB], []
    for row in ids[chosen]:
        stored = corpus.read([int(row)], "s2")[0, places].astype(np.float64)
        stored[stored == NO_VALUE] = np.nan
        means.append([np.nanmean(band) if np.isfinite(band).any() else np.nan for band in stored])
    return lon[chosen], lat[chosen], _stretched(np.array(means).T[:, :, None])[:, 0]


def _places(axes: "Axes", lon: np.ndarray, lat: np.ndarray, colours: np.ndarray, *, title: str) -> None:  # noqa: F821
    axes.scatter(lon, lat, c=colours, s=14, linewidths=0)
    axes.set(title=title, xlabel="longitude (degrees)", ylabel="latitude (degrees)")


def _saved(figure: Figure, out: Path, title: str) -> Path:
    figure.suptitle(title, fontsize=10)
    path = picture_path(out)
    figure.savefig(path, dpi=110)
    return path
